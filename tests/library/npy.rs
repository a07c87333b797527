//! `.npy` files as NumPy 2.4 writes them are read number by number; what is not read is named.

use ndarray::ArrayD;

use crate::support::file::Place;
use repfuse::tensor::arrays::{read_any_arrays, read_arrays};

/// A file of which all but the padding is given: NumPy ends the header with spaces and a line break at a multiple of 64.
fn file(before: &[u8], header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = [before, header.as_bytes()].concat();
    bytes.resize(127, b' ');
    bytes.push(b'\n');
    bytes.extend(data);
    bytes
}

fn read(bytes: &[u8]) -> Result<ArrayD<f64>, String> {
    let place = Place::new();
    place.write("x.npy", bytes);
    let mut arrays = read_any_arrays(&place.path("x.npy")).map_err(|e| e.to_string())?;
    assert_eq!(arrays.len(), 1);
    assert_eq!(arrays[0].0, None);
    Ok(arrays.remove(0).1)
}

const SINGLE: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 2, 3), }";
const NUMBERS: &[u8] = b"\0\0\xc0\xbf\0\0\0\xbf\0\0\0?\0\0\xc0?\0\0 @\0\0`@";

#[test]
fn what_numpy_writes_is_read() {
    let double = "{'descr': '>f8', 'fortran_order': False, 'shape': (1, 1, 2, 3), }";
    let half = "{'descr': '<f2', 'fortran_order': False, 'shape': (1, 1, 2, 3), }";
    // Versions 1.0, 2.0 and 3.0, each with another type of numbers; one is big-endian.
    let files = [
        file(b"\x93NUMPY\x01\0v\0", SINGLE, NUMBERS),
        file(
            b"\x93NUMPY\x02\0t\0\0\0",
            double,
            b"\xbf\xf8\0\0\0\0\0\0\xbf\xe0\0\0\0\0\0\0?\xe0\0\0\0\0\0\0?\xf8\0\0\0\0\0\0@\x04\0\0\0\0\0\0@\x0c\0\0\0\0\0\0",
        ),
        file(
            b"\x93NUMPY\x03\0t\0\0\0",
            half,
            b"\0\xbe\0\xb8\x008\0>\0A\0C",
        ),
    ];
    for bytes in files {
        let array = read(&bytes).expect("an array");
        assert_eq!(array.shape(), [1, 1, 2, 3]);
        let numbers: Vec<f64> = array.into_iter().collect();
        assert_eq!(numbers, [-1.5, -0.5, 0.5, 1.5, 2.5, 3.5]);
    }
}

#[test]
fn more_numbers_than_are_decoded_at_a_time_are_read() {
    let count = 20_001;
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}");
    let data: Vec<u8> = (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let array = read(&file(b"\x93NUMPY\x01\0v\0", &header, &data)).expect("an array");
    let expected: Vec<f64> = (0..count).map(f64::from).collect();
    assert_eq!(array.into_iter().collect::<Vec<f64>>(), expected);
}

#[test]
fn a_scalar_is_an_array_without_dimensions_and_no_feature_map() {
    let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (), }";
    let bytes = file(b"\x93NUMPY\x01\0v\0", header, &2.5f64.to_le_bytes());
    let array = read(&bytes).expect("a scalar");
    assert_eq!((array.shape(), array.iter().next()), (&[][..], Some(&2.5)));
    let place = Place::new();
    place.write("x.npy", bytes);
    let error = read_arrays(&place.path("x.npy")).expect_err("no map");
    let error = error.to_string();
    assert!(error.contains("has shape []; expected [batch"), "{error}");
}

#[test]
fn what_is_not_read_is_named() {
    let other = |header: &str| read(&file(b"\x93NUMPY\x01\0v\0", header, NUMBERS));
    assert!(other(SINGLE).is_ok());
    for (descr, found) in [
        ("'|b1'", "`|b1`"),
        ("'<i4'", "`<i4`"),
        ("'<c8'", "`<c8`"),
        ("'<f16'", "`<f16`"),
        ("'<U2'", "`<U2`"),
        (
            "[('a', '<f4'), ('b', '<i4')]",
            "`[('a', '<f4'), ('b', '<i4')]`",
        ),
    ] {
        let error = other(&SINGLE.replace("'<f4'", descr)).expect_err(descr);
        let expected = format!("its numbers are {found}; expected float16, float32 or float64");
        assert!(error.ends_with(&expected), "{error}");
    }
    let error = other(&SINGLE.replace("False", "True")).expect_err("Fortran order");
    assert!(error.contains("it is in Fortran order; save"), "{error}");
}

#[test]
fn no_beginning_of_a_file_is_read_as_a_whole_one() {
    let whole = file(b"\x93NUMPY\x01\0v\0", SINGLE, NUMBERS);
    assert!(read(&whole).is_ok());
    for len in 0..whole.len() {
        assert!(read(&whole[..len]).is_err(), "{len}");
    }
}
