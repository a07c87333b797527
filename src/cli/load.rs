//! How what `fuse` wrote is loaded: one line of Python.

use std::path::Path;

use crate::plan::Plan;
use crate::tensor::plain;

/// What stands for the state dict in a recipe's `load`.
const WEIGHTS: &str = "{weights}";

/// Where neither a recipe nor a graph says which class loads a file.
const ANY_CLASS: &str = "model.load_state_dict({weights})  # model: yours, with a plain conv in the place of each block";

/// The line of Python that loads what was written at `path`; of shards, `path` is their index. `key` is that of the state dict, as in
/// `ema.module`, where a PyTorch file has one.
pub(super) fn load(plan: &Plan, path: &str, key: Option<&str>, graph: bool) -> String {
    let end = Path::new(path).extension().and_then(|end| end.to_str());
    let text = quote(path);
    if graph {
        return match end {
            Some("pt2") => format!("model = torch.export.load({text}).module()"),
            _ => format!("session = onnxruntime.InferenceSession({text})"),
        };
    }
    let weights = match (path.strip_suffix(".index.json"), end) {
        (Some(_), _) => shards(path),
        (None, Some("pt" | "pth" | "bin" | "ckpt")) => {
            let keys = key.iter().flat_map(|key| key.split('.'));
            let keys: String = keys.map(|key| format!("[{}]", quote(key))).collect();
            format!("torch.load({text}, weights_only=True){keys}")
        }
        _ => format!("safetensors.torch.load_file({text})"),
    };
    let how = plan.load().unwrap_or(ANY_CLASS);
    how.replace(WEIGHTS, &weights)
}

/// Shards have no reader of one call: their tensors are put together.
fn shards(index: &str) -> String {
    let stem = index
        .strip_suffix(".safetensors.index.json")
        .unwrap_or(index);
    let glob = quote(&format!("{stem}-*.safetensors"));
    format!(
        "{{name: t for file in glob.glob({glob}) for name, t in safetensors.torch.load_file(file).items()}}"
    )
}

/// A string of Python, which writes one as JSON does.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The line for the end of a summary. It is never broken: it is copied from there.
pub(super) fn line(load: &str) -> String {
    format!("  {:<12}{}\n", "load", plain(load))
}
