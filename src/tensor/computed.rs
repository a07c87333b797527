//! Weights that a file keeps in parts, as weight norm and pruning do: computed from them whenever they are read.

use std::collections::BTreeMap;

use super::dtype::Float;
use super::error::Error;
use super::single::Tensor;

/// A weight that is computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Computed {
    how: How,
    parts: [Tensor; 2],
    float: Float,
}

/// Reads bytes of a tensor of the file, from a position of it on.
type ReadAt<'a> = dyn Fn(&Tensor, u64, &mut [u8]) -> Result<(), Error> + 'a;

/// From which parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Lengths and directions of the rows: `g · v / ‖v‖`.
    WeightNorm,
    /// A weight and a mask of zeros and ones.
    Masked,
}

/// How the names of parts end, behind the name of the weight, or as a parametrization of it.
const ENDS: [(&str, &str, How); 2] = [
    ("_g", "_v", How::WeightNorm),
    ("_orig", "_mask", How::Masked),
];
const PARAMETRIZED: [(&str, &str, How); 2] = [
    (".original0", ".original1", How::WeightNorm),
    (".original", ".0.mask", How::Masked),
];
const PARAMETRIZATIONS: &str = "parametrizations.";

/// Puts every weight that can be computed in the place of its parts, which are returned.
pub(crate) fn assemble(tensors: &mut BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let mut found = Vec::new();
    for (name, first) in tensors.iter() {
        if let Some(weight) = of_parts(name, first, tensors) {
            found.push(weight);
        }
    }
    let mut parts = BTreeMap::new();
    for weight in found {
        for part in weight.parts() {
            if let Some(part) = tensors.remove(part.name()) {
                parts.insert(part.name().to_owned(), part);
            }
        }
        tensors.insert(weight.name().to_owned(), weight);
    }
    parts
}

/// The weight of which a tensor is the first part, if the second is there and both fit.
fn of_parts(name: &str, first: &Tensor, tensors: &BTreeMap<String, Tensor>) -> Option<Tensor> {
    let plain = ENDS.iter().find_map(|(end, other, how)| {
        let weight = name.strip_suffix(end)?;
        Some((weight.to_owned(), format!("{weight}{other}"), *how))
    });
    let parametrized = || {
        PARAMETRIZED.iter().find_map(|(end, other, how)| {
            let path = name.strip_suffix(end)?;
            let at = path.rfind(PARAMETRIZATIONS)?;
            let (module, weight) = (&path[..at], &path[at + PARAMETRIZATIONS.len()..]);
            let whole = module.is_empty() || module.ends_with('.');
            (whole && !weight.contains('.'))
                .then(|| (format!("{module}{weight}"), format!("{path}{other}"), *how))
        })
    };
    let (weight, other, how) = plain.or_else(parametrized)?;
    let second = tensors.get(&other)?;
    let (lead, shaped) = match how {
        How::WeightNorm => (first, second),
        How::Masked => (second, first),
    };
    let (float, _) = shaped.dtype().float().zip(lead.dtype().float())?;
    let rows = shaped.shape().first().copied()?;
    let fits = match how {
        // One length for each row, whatever the dimensions after it.
        How::WeightNorm => lead.shape().first() == Some(&rows) && lead.len() == rows,
        How::Masked => lead.shape() == shaped.shape(),
    };
    (fits && !tensors.contains_key(&weight)).then(|| {
        let computed = Computed {
            how,
            parts: [lead.clone(), shaped.clone()],
            float,
        };
        shaped.computed_as(weight, computed)
    })
}

impl Computed {
    /// The tensors of the file.
    pub fn parts(&self) -> &[Tensor; 2] {
        &self.parts
    }

    /// What keeps the weight in parts, as a summary says it.
    pub fn name(&self) -> &'static str {
        match self.how {
            How::WeightNorm => "weight norm",
            How::Masked => "a pruning mask",
        }
    }

    /// Fills `out` with the bytes of the weight from byte `at` on; `read` reads those of a part. Each number is rounded once to the
    /// type of the weight, as it is where PyTorch computes it.
    pub(super) fn read(&self, at: u64, out: &mut [u8], read: &ReadAt<'_>) -> Result<(), Error> {
        let [lead, shaped] = &self.parts;
        let size = self.float.size();
        let row = match self.how {
            How::WeightNorm => shaped.len() / lead.len().max(1),
            // Any stretch of it is computed by itself.
            How::Masked => (1 << 14).min(shaped.len()),
        };
        let mut numbers = vec![0.0; row];
        let mut done = 0;
        while done < out.len() {
            let from = (at as usize + done) / size;
            let first = from / row * row;
            let count = row.min(shaped.len() - first);
            let numbers = &mut numbers[..count];
            self.numbers(shaped, first, numbers, read)?;
            match self.how {
                How::WeightNorm => {
                    let length = numbers.iter().map(|x| x * x).sum::<f64>().sqrt();
                    let mut g = [0.0];
                    self.numbers(lead, first / row, &mut g, read)?;
                    numbers.iter_mut().for_each(|x| *x *= g[0] / length);
                }
                How::Masked => {
                    let mut mask = vec![0.0; count];
                    self.numbers(lead, first, &mut mask, read)?;
                    numbers.iter_mut().zip(mask).for_each(|(x, m)| *x *= m);
                }
            }
            let mut bytes = vec![0; count * size];
            self.float.encode(numbers, &mut bytes);
            let bytes = &bytes[at as usize + done - first * size..];
            let len = bytes.len().min(out.len() - done);
            out[done..done + len].copy_from_slice(&bytes[..len]);
            done += len;
        }
        Ok(())
    }

    fn numbers(
        &self,
        of: &Tensor,
        first: usize,
        out: &mut [f64],
        read: &ReadAt<'_>,
    ) -> Result<(), Error> {
        let float = of.dtype().float().unwrap_or(self.float);
        let mut bytes = vec![0; out.len() * float.size()];
        read(of, (first * float.size()) as u64, &mut bytes)?;
        float.decode(&bytes, out);
        Ok(())
    }
}
