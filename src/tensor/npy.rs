//! NumPy's `.npy`: a header, which is a Python dict as text, and the numbers of one array.
//!
//! Every number in the header is a stranger's claim: nothing is allocated before it is checked against the file's length.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::dtype::Float;
use super::error::{Error, quoted};
use super::header::{MAX_RANK, in_bytes};

/// What a `.npy` file begins with.
pub(super) const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The longest header that is read; one of numbers in four dimensions has 118 bytes.
const LONGEST_HEADER: u64 = 1 << 16;

/// As many numbers are decoded at a time.
const AT_A_TIME: usize = 1 << 13;

/// What a header says of the array.
#[derive(Debug, PartialEq)]
struct Header {
    float: Float,
    big_endian: bool,
    shape: Vec<usize>,
}

/// Reads the array of a file of `file_len` bytes, of which the magic has been read: its shape and its numbers in C order.
///
/// # Errors
/// When the header is not one of NumPy's, claims more than the file has, or describes other numbers than floating-point
/// ones in C order.
pub(super) fn read(
    path: &Path,
    mut file: File,
    file_len: u64,
) -> Result<(Vec<usize>, Vec<f64>), Error> {
    let wrong = |reason: String| Error::Array {
        path: path.to_owned(),
        reason,
    };
    let (text, left) = header_text(&mut file, file_len).map_err(wrong)?;
    let Header {
        float,
        big_endian,
        shape,
    } = parse(&text).map_err(wrong)?;
    let size = float.size();
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let needed = count.and_then(|n| u64::try_from(n).ok()?.checked_mul(size as u64));
    let (Some(count), Some(needed)) = (count, needed) else {
        return Err(wrong(format!(
            "its shape {shape:?} is too large to address"
        )));
    };
    if needed > left {
        return Err(wrong(format!(
            "its shape {shape:?} needs {}; {left} follow",
            in_bytes(needed)
        )));
    }
    let mut values = vec![0.0; count];
    let mut bytes = vec![0; AT_A_TIME.min(count) * size];
    for part in values.chunks_mut(AT_A_TIME) {
        let bytes = &mut bytes[..part.len() * size];
        let read = file.read_exact(bytes);
        read.map_err(|source| Error::unreadable(path, source))?;
        if big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        float.decode(bytes, part);
    }
    Ok((shape, values))
}

/// The text behind the magic, and how many bytes follow it.
fn header_text(file: &mut File, file_len: u64) -> Result<(String, u64), String> {
    // Two bytes of version, and the length of the text in two bytes, or in four since version 2.
    let cut_off = |_| "its header is cut off".to_owned();
    let mut version = [0; 2];
    file.read_exact(&mut version).map_err(cut_off)?;
    let mut len = [0; 4];
    let width = match version {
        [1, 0] => 2,
        [2 | 3, 0] => 4,
        [major, minor] => {
            return Err(format!(
                "its format has version {major}.{minor}; 1.0, 2.0 and 3.0 are read"
            ));
        }
    };
    file.read_exact(&mut len[..width]).map_err(cut_off)?;
    let len = u64::from(u32::from_le_bytes(len));
    let before = MAGIC.len() + version.len() + width;
    let left = file_len.saturating_sub(before as u64);
    if len > left {
        return Err(format!(
            "its header has {}; the file has {left} more",
            in_bytes(len)
        ));
    }
    if len > LONGEST_HEADER {
        return Err(format!(
            "its header has {len} bytes; at most {LONGEST_HEADER} are read"
        ));
    }
    let mut text = vec![0; len as usize];
    file.read_exact(&mut text).map_err(cut_off)?;
    Ok((String::from_utf8_lossy(&text).into_owned(), left - len))
}

/// Reads `{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse(text: &str) -> Result<Header, String> {
    let invalid = || {
        let shown: String = text.chars().take(100).collect();
        format!(
            "its header is not valid: found {}; expected a dict of `descr`, `fortran_order` and `shape`",
            quoted(shown.trim_end())
        )
    };
    let items = items(text).ok_or_else(invalid)?;
    let one = |key: &str| {
        let mut found = items.iter().filter(|(name, _)| *name == key);
        found
            .next()
            .map(|(_, value)| *value)
            .filter(|_| found.next().is_none())
    };
    let (Some(descr), Some(order), Some(shape), 3) = (
        one("descr"),
        one("fortran_order"),
        one("shape"),
        items.len(),
    ) else {
        return Err(invalid());
    };
    let (float, big_endian) = element(descr).ok_or_else(|| {
        let bare = unquoted(descr).unwrap_or(descr);
        format!(
            "its numbers are {}; expected float16, float32 or float64",
            quoted(bare)
        )
    })?;
    match order {
        "False" => {}
        "True" => {
            return Err(
                "it is in Fortran order; save `numpy.ascontiguousarray(x)` instead".to_owned(),
            );
        }
        _ => return Err(invalid()),
    }
    let shape = dimensions(shape).ok_or_else(|| {
        format!(
            "its shape is {}; expected a tuple of whole numbers that can be addressed",
            quoted(shape)
        )
    })?;
    if shape.len() > MAX_RANK {
        return Err(format!(
            "its shape has {} dimensions; at most {MAX_RANK} are read",
            shape.len()
        ));
    }
    Ok(Header {
        float,
        big_endian,
        shape,
    })
}

/// The keys of a dict, and its values as they are written.
fn items(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (key, behind) = rest.split_at(value_end(rest, ':')?);
        let behind = behind.strip_prefix(':')?;
        let (value, behind) = behind.split_at(value_end(behind, ',')?);
        items.push((unquoted(key.trim())?, value.trim()));
        rest = behind.strip_prefix(',').unwrap_or_default().trim();
    }
    Some(items)
}

/// Where a value ends: at the mark, outside of brackets and quotes, or with the text.
fn value_end(text: &str, mark: char) -> Option<usize> {
    let (mut depth, mut quote) = (0usize, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.checked_sub(1)?,
            (None, _) if c == mark && depth == 0 => return Some(at),
            (None, _) => {}
        }
    }
    (depth == 0 && quote.is_none()).then_some(text.len())
}

/// What is between two quotes of the same kind.
fn unquoted(text: &str) -> Option<&str> {
    let within = |q: char| text.strip_prefix(q)?.strip_suffix(q);
    ['\'', '"'].into_iter().find_map(within)
}

/// A floating-point format, and whether its bytes are in the other order.
fn element(descr: &str) -> Option<(Float, bool)> {
    let descr = unquoted(descr)?;
    let (big_endian, name) = match descr.split_at_checked(1)? {
        ("<", name) => (false, name),
        (">", name) => (true, name),
        _ => return None,
    };
    let float = match name {
        "f2" => Float::F16,
        "f4" => Float::F32,
        "f8" => Float::F64,
        _ => return None,
    };
    Some((float, big_endian))
}

/// The numbers of a tuple.
fn dimensions(tuple: &str) -> Option<Vec<usize>> {
    let inside = tuple.strip_prefix('(')?.strip_suffix(')')?.trim();
    if inside.is_empty() {
        return Some(Vec::new());
    }
    // (A tuple of one needs a comma behind it.)
    let inside = match inside.strip_suffix(',') {
        Some(inside) => inside,
        None if inside.contains(',') => inside,
        None => return None,
    };
    let number = |text: &str| {
        let digits = text.trim();
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse().ok())?
    };
    inside.split(',').map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape_of(text: &str) -> Option<Vec<usize>> {
        parse(text).ok().map(|header| header.shape)
    }

    #[test]
    fn keys_come_in_any_order_and_in_either_quote() {
        let twins = [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
            "{\"shape\":(2,3),\"descr\":\"<f4\",\"fortran_order\":False}   \n",
            "{ 'fortran_order' : False , 'shape' : ( 2 , 3, ) , 'descr' : '<f4' }",
        ];
        for text in twins {
            let header = Header {
                float: Float::F32,
                big_endian: false,
                shape: vec![2, 3],
            };
            assert_eq!(parse(text), Ok(header), "{text}");
        }
    }

    #[test]
    fn a_shape_is_a_tuple_of_decimal_numbers() {
        let of = |shape: &str| {
            shape_of(&format!(
                "{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}"
            ))
        };
        assert_eq!(of("()"), Some(vec![]));
        assert_eq!(of("(7,)"), Some(vec![7]));
        assert_eq!(of("(1, 0, 2)"), Some(vec![1, 0, 2]));
        for wrong in [
            "(7)", "7", "[7, 8]", "(,)", "(1,,2)", "(-1, 2)", "(0x2, 3)", "(1_0, 2)",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_not_the_header_of_an_array_is_refused() {
        for wrong in [
            "",
            "{}",
            "{'descr': '<f4', 'shape': (2, 3)}",
            "{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (2, 3)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}",
            "{'descr': '<f4', 'fortran_order': false, 'shape': (2, 3)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3}",
            "{'descr: '<f4', 'fortran_order': False, 'shape': (2, 3)}",
            "{'descr'}",
        ] {
            let error = parse(wrong).expect_err(wrong);
            assert!(error.starts_with("its header is not valid: "), "{error}");
        }
    }
}
