//! Feature maps and images from a file, `[batch, channels, height, width]`: safetensors or NumPy's `.npy`.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use ndarray::{Array4, ArrayD, IxDyn};

use super::checkpoint::Checkpoint;
use super::error::{Error, quoted};
use super::open;

/// Arrays by name. A `.npy` file holds one, without a name; a single `[channels, height, width]` is a batch of one.
pub type Arrays = Vec<(Option<String>, Array4<f64>)>;

/// Reads every array of a file.
///
/// # Errors
/// When the file is neither, an array has not four (or three) dimensions, or holds no floating-point numbers.
pub fn read_arrays(path: &Path) -> Result<Arrays, Error> {
    let four = |(name, array): (Option<String>, ArrayD<f64>)| {
        let what = quoted(&name.clone().unwrap_or_else(|| path.display().to_string()));
        in_four_dims(path, &what, array).map(|array| (name, array))
    };
    read_any_arrays(path)?.into_iter().map(four).collect()
}

/// Arrays of any number of dimensions, by name.
pub type AnyArrays = Vec<(Option<String>, ArrayD<f64>)>;

/// The same, whatever dimensions they have.
///
/// # Errors
/// When the file is neither, or an array holds no floating-point numbers.
pub fn read_any_arrays(path: &Path) -> Result<AnyArrays, Error> {
    let (mut file, metadata) = open::regular(path)?;
    let mut magic = [0; 6];
    if file.read_exact(&mut magic).is_ok() && magic == *MAGIC {
        Ok(vec![(None, npy(path, file, metadata.len())?)])
    } else {
        safetensors(path)
    }
}

/// What a `.npy` file begins with.
const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The longest header of a `.npy` file; one of numbers in four dimensions has 118 bytes.
const LONGEST_HEADER: u64 = 1 << 16;

/// The deepest brackets in it, before the parser is let loose on it.
const DEEPEST_HEADER: usize = 8;

/// Checks the claims of a `.npy` header that reading it would allocate memory or stack for.
fn check_npy_header(file: &mut File, file_len: u64) -> Result<(), String> {
    // Behind the magic: two bytes of version, and the length of the header in two bytes, or four since version 2.
    let mut start = [0; 12];
    let truncated = |_| "its header is cut off".to_owned();
    file.rewind()
        .and_then(|()| file.read_exact(&mut start))
        .map_err(truncated)?;
    let [.., major, _, a, b, c, d] = start;
    let (len, before) = match major {
        1 => (u64::from(u16::from_le_bytes([a, b])), 10),
        _ => (u64::from(u32::from_le_bytes([a, b, c, d])), 12),
    };
    let most = LONGEST_HEADER.min(file_len.saturating_sub(before));
    if len > most {
        return Err(format!(
            "its header has {len} bytes; at most {most} are read"
        ));
    }
    let mut text = vec![0; len as usize];
    file.seek(SeekFrom::Start(before))
        .and_then(|_| file.read_exact(&mut text))
        .map_err(truncated)?;
    // The parser multiplies the numbers of the shape without a look at their size, and takes more than decimal ones.
    let decimal = |pair: &[u8]| {
        !pair[0].is_ascii_digit() || !(pair[1] == b'_' || pair[1].is_ascii_alphabetic())
    };
    let mut digits = text
        .split(|b| !b.is_ascii_digit())
        .filter(|digits| !digits.is_empty());
    let product = digits.try_fold(1u64, |product, digits| {
        let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
        product.checked_mul(number.max(1))
    });
    if product.is_none() || !text.windows(2).all(decimal) {
        return Err("its header asks for more than can be addressed".to_owned());
    }
    let mut depth = 0usize;
    for byte in text {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST_HEADER {
            return Err("its header is nested too deep".to_owned());
        }
    }
    Ok(())
}

fn safetensors(path: &Path) -> Result<AnyArrays, Error> {
    let file = Checkpoint::open(path)?;
    let mut arrays = Vec::new();
    for tensor in file.tensors().values() {
        let Some(float) = tensor.dtype().float() else {
            return Err(Error::NotFloat {
                tensor: tensor.to_string(),
                found: tensor.dtype().to_string(),
            });
        };
        // The header has been checked against the file's length, so this is no larger than the file.
        let mut bytes = vec![0; tensor.byte_len() as usize];
        file.read_at(tensor, 0, &mut bytes)?;
        let mut values = vec![0.0; tensor.len()];
        float.decode(&bytes, &mut values);
        let array = shaped(path, tensor.shape(), values)?;
        arrays.push((Some(tensor.name().to_owned()), array));
    }
    Ok(arrays)
}

fn npy(path: &Path, mut file: File, file_len: u64) -> Result<ArrayD<f64>, Error> {
    let io = |source| Error::Io {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let wrong = |reason: String| Error::Array {
        path: path.to_owned(),
        reason,
    };
    check_npy_header(&mut file, file_len).map_err(wrong)?;
    file.rewind().map_err(io)?;
    let mut reader = BufReader::new(file);
    let header = npyz::NpyHeader::from_reader(&mut reader)
        .map_err(|e| wrong(format!("its header is not valid: {e}")))?;
    let left = file_len.saturating_sub(reader.stream_position().map_err(io)?);
    let shape: Vec<usize> = header
        .shape()
        .iter()
        .map(|n| usize::try_from(*n).unwrap_or(usize::MAX))
        .collect();
    let count = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
    // Nothing is allocated on the header's word: every number needs bytes that are there.
    let Some(count) = count.filter(|n| *n <= left) else {
        return Err(wrong(format!(
            "its shape {shape:?} needs more than the {left} bytes that follow"
        )));
    };
    if header.order() != npyz::Order::C {
        return Err(wrong(
            "it is in Fortran order; save `numpy.ascontiguousarray(x)`".to_owned(),
        ));
    }
    let size = header.dtype().num_bytes().unwrap_or(0) as u64;
    let needed = count.saturating_mul(size);
    if needed > left {
        return Err(wrong(format!(
            "its shape {shape:?} needs {needed} bytes; {left} follow"
        )));
    }
    let dtype = header.dtype().descr();
    let file = npyz::NpyFile::with_header(header, reader);
    let values = match file.try_data::<f64>() {
        Ok(data) => data.collect::<Result<Vec<f64>, _>>().map_err(io)?,
        Err(file) => match file.try_data::<f32>() {
            Ok(data) => data
                .map(|x| x.map(f64::from))
                .collect::<Result<Vec<f64>, _>>()
                .map_err(io)?,
            Err(_) => {
                return Err(wrong(format!(
                    "its numbers are {dtype}; expected float32 or float64"
                )));
            }
        },
    };
    shaped(path, &shape, values)
}

fn shaped(path: &Path, shape: &[usize], values: Vec<f64>) -> Result<ArrayD<f64>, Error> {
    ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|e| Error::Array {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

fn in_four_dims(path: &Path, what: &str, array: ArrayD<f64>) -> Result<Array4<f64>, Error> {
    let shape = array.shape().to_vec();
    if array.is_empty() {
        return Err(Error::Array {
            path: path.to_owned(),
            reason: format!("{what} has shape {shape:?} and so no number"),
        });
    }
    let dims = match shape[..] {
        [n, c, h, w] => Some((n, c, h, w)),
        [c, h, w] => Some((1, c, h, w)),
        _ => None,
    };
    dims.and_then(|dims| array.into_shape_with_order(dims).ok())
        .ok_or_else(|| Error::Array {
            path: path.to_owned(),
            reason: format!(
                "{what} has shape {shape:?}; expected [batch, channels, height, width]"
            ),
        })
}
