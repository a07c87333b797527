//! Where the state dict of a file is, and what of the file is read with it.

use repfuse::tensor::{Checkpoint, Error};

use crate::support::pickles::{Value, conv, counted, dict, marked, module, save, tensor};

const CONV: &str = "torch.nn.modules.conv.Conv2d";
const DATA_PARALLEL: &str = "torch.nn.parallel.data_parallel.DataParallel";

struct Folder(tempfile::TempDir);

impl Folder {
    fn open(&self, root: &Value, key: Option<&str>) -> Result<Checkpoint, Error> {
        let path = self.0.path().join("file.pt");
        save(&path, root);
        Checkpoint::open_key(path, key)
    }
}

fn folder() -> Folder {
    Folder(tempfile::tempdir().expect("a folder"))
}

/// The key that is read, and the names of what was found below it.
fn found(root: &Value) -> (Option<String>, Vec<String>) {
    let file = folder().open(root, None).expect("a checkpoint");
    let names = file.tensors().keys().cloned().collect();
    (file.unwrapped().map(str::to_owned), names)
}

fn part() -> Value {
    conv(CONV, [1, 1, 1, 1])
}

fn state() -> Value {
    dict([("a.weight", counted(&[2])), ("a.bias", counted(&[2]))])
}

#[test]
fn a_module_is_read_whole_whatever_its_parts_are_called() {
    for name in [
        "model",
        "module",
        "net",
        "ema",
        "params",
        "state_dict",
        "model_ema",
        "backbone",
    ] {
        let net = || module("__main__.Net", vec![(name, part()), ("head", part())]);
        let mut names = vec![format!("{name}.weight"), "head.weight".to_owned()];
        names.sort();
        assert_eq!(found(&net()), (None, names.clone()), "{name}");
        // Under a key, too.
        let under = Some("model".to_owned());
        assert_eq!(found(&dict([("model", net())])), (under, names), "{name}");
    }
    // Two parts with such names are no two state dicts.
    let two = module("__main__.Net", vec![("model", part()), ("net", part())]);
    assert_eq!(
        found(&two),
        (
            None,
            vec!["model.weight".to_owned(), "net.weight".to_owned()]
        )
    );
}

/// A module that has nothing but the part `module` is a wrapping.
#[test]
fn what_runs_a_module_in_parallel_is_looked_through() {
    let names = vec!["a.weight".to_owned()];
    let parallel = || {
        let net = module("__main__.Net", vec![("a", part())]);
        module(DATA_PARALLEL, vec![("module", net)])
    };
    assert_eq!(
        found(&parallel()),
        (Some("module".to_owned()), names.clone())
    );
    assert_eq!(
        found(&dict([("ema", parallel()), ("updates", Value::Int(3))])),
        (Some("ema.module".to_owned()), names)
    );
}

#[test]
fn a_tensor_is_no_state_dict() {
    for name in ["model", "module", "params", "ema", "net", "state_dict"] {
        let flat = dict([("a.weight", counted(&[2])), (name, counted(&[3]))]);
        let mut names = vec!["a.weight".to_owned(), name.to_owned()];
        names.sort();
        assert_eq!(found(&flat), (None, names), "{name}");
    }
}

#[test]
fn wrapped_state_dicts_are_found() {
    let names = vec!["a.bias".to_owned(), "a.weight".to_owned()];
    for (root, key) in [
        (
            dict([("model", state()), ("epoch", Value::Int(3))]),
            "model",
        ),
        (dict([("state_dict_ema", state())]), "state_dict_ema"),
        (dict([("ema", dict([("module", state())]))]), "ema.module"),
        (Value::Tuple(vec![state(), Value::Int(1)]), "0"),
        (
            Value::List(vec![
                dict([("param_groups", Value::List(vec![])), ("state", state())]),
                state(),
            ]),
            "1",
        ),
    ] {
        assert_eq!(found(&root), (Some(key.to_owned()), names.clone()), "{key}");
    }
    let two = Value::List(vec![state(), state()]);
    match folder().open(&two, None) {
        Err(Error::SeveralKeys { keys, .. }) => assert_eq!(keys, ["0", "1"]),
        other => panic!("{other:?}"),
    }
    assert!(folder().open(&two, Some("1")).is_ok());
}

/// Weights that stand beside the state dict are said; numbers of the training are not.
#[test]
fn weights_beside_a_state_dict_are_known() {
    let optimizer = dict([
        ("state", dict([("0", counted(&[2]))])),
        ("param_groups", Value::List(Vec::new())),
    ]);
    let root = dict([
        ("model", state()),
        ("model_ema", state()),
        ("head", counted(&[3])),
        ("extra", dict([("w", counted(&[2]))])),
        ("criterion", module("__main__.Loss", vec![("a", part())])),
        ("best", tensor(&[], &[0.9])),
        ("optimizer", optimizer),
        ("epoch", Value::Int(3)),
    ]);
    let file = folder().open(&root, None).expect("a checkpoint");
    let wrapping = file.wrapping().expect("wrapped");
    assert_eq!(wrapping.others, ["model_ema"]);
    assert_eq!(wrapping.beside, ["head", "extra", "criterion"]);
    let whole = folder().open(&root, Some("")).expect("the whole file");
    assert!(whole.get("head").is_some() && whole.get("model.a.weight").is_some());
    assert!(whole.wrapping().expect("read as it is").beside.is_empty());
}

fn floats(file: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = file.get(name).expect(name);
    let mut bytes = vec![0; tensor.byte_len() as usize];
    file.read_at(tensor, 0, &mut bytes).expect("bytes");
    let numbers = bytes.as_chunks().0.iter();
    numbers.map(|b| f32::from_le_bytes(*b)).collect()
}

/// PyTorch keeps a sign beside the numbers, where a tensor is a lazy negative or conjugate.
#[test]
fn lazy_signs_are_read() {
    let complex = |key: &str| match marked(&[2], &[1.0, 2.0, -3.0, 4.0], key) {
        Value::Tensor(mut tensor) => {
            tensor.storage = "ComplexFloatStorage";
            Value::Tensor(tensor)
        }
        other => other,
    };
    let root = dict([
        ("plain", tensor(&[2], &[1.5, -2.0])),
        ("neg", marked(&[3], &[1.5, -2.0, 0.0], "neg")),
        ("conjugate", complex("conj")),
        ("negative", complex("neg")),
    ]);
    let file = folder().open(&root, None).expect("a checkpoint");
    assert_eq!(floats(&file, "plain"), [1.5, -2.0]);
    assert_eq!(floats(&file, "neg"), [-1.5, 2.0, 0.0]);
    assert_eq!(floats(&file, "conjugate"), [1.0, -2.0, -3.0, -4.0]);
    assert_eq!(floats(&file, "negative"), [-1.0, -2.0, 3.0, -4.0]);
    // A part of a number is that of the whole one.
    let tensor = file.get("neg").expect("a tensor");
    let mut byte = [0];
    file.read_at(tensor, 7, &mut byte).expect("the sign");
    assert_eq!(byte, [0x40]);
}

/// The streams before archives keep the class of a module beside its source.
#[test]
fn a_class_beside_its_source_is_known() {
    let root = match part() {
        Value::Module(mut conv) => {
            conv.source = true;
            Value::Module(conv)
        }
        other => other,
    };
    let file = folder().open(&root, None).expect("a checkpoint");
    assert_eq!(file.facts().module("").expect("a module").class, CONV);
}
