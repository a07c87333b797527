//! Feature maps and images from a file, `[batch, channels, height, width]`: safetensors or NumPy's `.npy`.

use std::io::Read;
use std::path::Path;

use ndarray::{Array4, ArrayD, IxDyn};

use super::checkpoint::Checkpoint;
use super::error::{Error, quoted};
use super::{npy, open};

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
    if file.read_exact(&mut magic).is_ok() && magic == *npy::MAGIC {
        let (shape, values) = npy::read(path, file, metadata.len())?;
        Ok(vec![(None, shaped(path, &shape, values)?)])
    } else {
        safetensors(path)
    }
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
