//! A part of a checkpoint, and a checkpoint that is looked at under other names.

use std::collections::{BTreeMap, BTreeSet};

use super::Error;
use super::channels_last::says;
use super::checkpoint::Checkpoint;
use super::single::Tensor;

/// As many modules as an error names.
const NAMED: usize = 8;

impl Checkpoint {
    /// Only the tensors below a path, under their own names.
    ///
    /// # Errors
    /// When there are none.
    pub fn only_under(mut self, path: &str) -> Result<Checkpoint, Error> {
        let is_below = |name: &str| {
            name.strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        let tensors = self.names_mut();
        if !tensors[0].keys().any(|name| is_below(name)) {
            let modules: BTreeSet<&str> = tensors[0]
                .keys()
                .filter_map(|name| name.split_once('.'))
                .map(|(module, _)| module)
                .collect();
            let more = modules.len() > NAMED;
            let modules: Vec<String> = modules.into_iter().map(str::to_owned).collect();
            return Err(Error::NothingUnder {
                path: self.path().to_owned(),
                module: path.to_owned(),
                known: modules.into_iter().take(NAMED).collect(),
                more,
            });
        }
        for tensors in tensors {
            tensors.retain(|name, _| is_below(name));
        }
        Ok(self)
    }

    /// Whether its convs are stored with the channels last, as MLX does.
    pub fn is_channels_last(&self) -> bool {
        says(self.metadata())
    }

    /// The same tensors, looked at under other names. No two may become the same.
    pub fn seen_as(mut self, name: &dyn Fn(&Tensor) -> String) -> Checkpoint {
        for tensors in self.names_mut() {
            let old = std::mem::take(tensors);
            let new: BTreeMap<String, Tensor> = old
                .into_values()
                .map(|tensor| tensor.seen_as(name(&tensor)))
                .map(|tensor| (tensor.name().to_owned(), tensor))
                .collect();
            *tensors = new;
        }
        self
    }
}
