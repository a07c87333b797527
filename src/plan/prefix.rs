//! A path that every name of the output begins with: taken away, or put before them.

use super::{Plan, join::refuse_clashes};
use crate::recipe::Error;

impl Plan {
    /// Gives every tensor of the output another beginning: without the path `strip`, and behind the path `add`.
    ///
    /// # Errors
    /// When a name does not begin with `strip`, or nothing else is in the name of a conv.
    pub fn set_prefix(&mut self, strip: Option<&str>, add: Option<&str>) -> Result<(), Error> {
        let other = |name: &str| -> Result<String, Error> {
            let rest = match strip {
                None => name,
                Some(path) => name
                    .strip_prefix(path)
                    .and_then(|rest| rest.strip_prefix('.'))
                    .ok_or_else(|| Error::NoPrefix {
                        name: name.to_owned(),
                        prefix: path.to_owned(),
                    })?,
            };
            Ok(match add {
                Some(path) => format!("{path}.{rest}"),
                None => rest.to_owned(),
            })
        };
        for planned in &mut self.outputs {
            planned.output.name = other(&planned.output.name)?;
        }
        self.rename_convs(other)?;
        refuse_clashes(&self.outputs, &self.blocks)
    }
}
