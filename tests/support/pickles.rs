//! Files of `torch.save`, built value by value without PyTorch.

use std::io::{Cursor, Write as _};
use std::path::Path;

/// A value of a pickle.
#[derive(Clone, Debug)]
pub enum Value {
    None,
    Bool(bool),
    Int(u8),
    Float(f64),
    Text(&'static str),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(String, Value)>),
    Tensor(Tensor),
    /// A call of a function: its module, its name and its arguments.
    Call(&'static str, &'static str, Vec<Value>),
    /// A class or a function: its module and its name.
    Global(&'static str, &'static str),
    /// An object of a class with attributes and no more, as TorchScript keeps modules.
    Object(String, Vec<(String, Value)>),
    Module(Module),
}

/// A tensor of 32-bit floats, row by row in a storage of its own.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<u8>,
    pub values: Vec<f32>,
    /// What stands behind the other arguments, as `{"neg": true}`.
    pub metadata: Vec<(String, Value)>,
    /// The class of its storage.
    pub storage: &'static str,
}

/// A pickled module.
#[derive(Clone, Debug, Default)]
pub struct Module {
    pub class: String,
    pub parameters: Vec<(String, Value)>,
    pub buffers: Vec<(String, Value)>,
    pub modules: Vec<(String, Value)>,
    pub attributes: Vec<(String, Value)>,
    /// Whether its class stands beside its source, as the streams before archives have it.
    pub source: bool,
}

pub fn dict<const N: usize>(items: [(&str, Value); N]) -> Value {
    Value::Dict(items.map(|(k, v)| (k.to_owned(), v)).into())
}

pub fn tensor(shape: &[u8], values: &[f32]) -> Value {
    Value::Tensor(Tensor {
        shape: shape.to_vec(),
        values: values.to_vec(),
        metadata: Vec::new(),
        storage: "FloatStorage",
    })
}

/// A tensor of as many numbers as its shape says, from 1 on by halves.
pub fn counted(shape: &[u8]) -> Value {
    let count: usize = shape.iter().map(|n| usize::from(*n)).product();
    let values: Vec<f32> = (0..count).map(|i| 1.0 + 0.5 * i as f32).collect();
    tensor(shape, &values)
}

/// A tensor with metadata of PyTorch's.
pub fn marked(shape: &[u8], values: &[f32], key: &str) -> Value {
    match tensor(shape, values) {
        Value::Tensor(tensor) => Value::Tensor(Tensor {
            metadata: vec![(key.to_owned(), Value::Bool(true))],
            ..tensor
        }),
        other => other,
    }
}

/// A module with parts.
pub fn module(class: &str, modules: Vec<(&str, Value)>) -> Value {
    Value::Module(Module {
        class: class.to_owned(),
        modules: modules
            .into_iter()
            .map(|(name, part)| (name.to_owned(), part))
            .collect(),
        ..Module::default()
    })
}

/// A `torch.nn.Conv2d` without a bias, or a class that is one by its attributes.
pub fn conv(class: &str, shape: [u8; 4]) -> Value {
    let [_, _, height, width] = shape;
    let pair = |a, b| Value::Tuple(vec![Value::Int(a), Value::Int(b)]);
    let attributes = [
        ("kernel_size", pair(height, width)),
        ("stride", pair(1, 1)),
        ("padding", pair(height / 2, width / 2)),
        ("dilation", pair(1, 1)),
        ("transposed", Value::Bool(false)),
        ("groups", Value::Int(1)),
        ("padding_mode", Value::Text("zeros")),
    ];
    Value::Module(Module {
        class: class.to_owned(),
        parameters: vec![
            ("weight".to_owned(), counted(&shape)),
            ("bias".to_owned(), Value::None),
        ],
        attributes: attributes.map(|(k, v)| (k.to_owned(), v)).into(),
        ..Module::default()
    })
}

/// A `torch.nn.BatchNorm2d`, or a class that has its tensors.
pub fn norm(class: &str, channels: u8, modules: Vec<(&str, Value)>) -> Value {
    let vector = |name: &str| (name.to_owned(), counted(&[channels]));
    Value::Module(Module {
        class: class.to_owned(),
        parameters: ["weight", "bias"].map(vector).into(),
        buffers: ["running_mean", "running_var"].map(vector).into(),
        modules: modules
            .into_iter()
            .map(|(name, part)| (name.to_owned(), part))
            .collect(),
        attributes: vec![
            ("eps".to_owned(), Value::Float(1e-5)),
            ("track_running_stats".to_owned(), Value::Bool(true)),
        ],
        ..Module::default()
    })
}

/// An object of a class, with these attributes.
pub fn object<const N: usize>(class: &str, attributes: [(&str, Value); N]) -> Value {
    let attributes = attributes.map(|(k, v)| (k.to_owned(), v));
    Value::Object(class.to_owned(), attributes.into())
}

/// A module with one more attribute.
pub fn with(module: Value, name: &str, value: Value) -> Value {
    match module {
        Value::Module(mut module) => {
            module.attributes.retain(|(k, _)| k != name);
            module.attributes.push((name.to_owned(), value));
            Value::Module(module)
        }
        other => other,
    }
}

/// A module without an attribute.
pub fn without(module: Value, name: &str) -> Value {
    match module {
        Value::Module(mut module) => {
            module.attributes.retain(|(k, _)| k != name);
            Value::Module(module)
        }
        other => other,
    }
}

/// An archive as `torch.save` writes it.
pub fn archive(root: &Value) -> Vec<u8> {
    archive_beside(root, &[])
}

/// An archive that has these entries, too.
pub fn archive_beside(root: &Value, others: &[(&str, &str)]) -> Vec<u8> {
    let mut pickler = Pickler {
        out: b"\x80\x02".to_vec(),
        storages: Vec::new(),
    };
    pickler.value(root);
    pickler.out.push(b'.');
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), stored)
            .expect("an entry");
        zip.write_all(bytes).expect("its bytes");
    };
    entry("data.pkl", &pickler.out);
    entry("version", b"3\n");
    for (i, bytes) in pickler.storages.iter().enumerate() {
        entry(&format!("data/{i}"), bytes);
    }
    for (name, text) in others {
        entry(name, text.as_bytes());
    }
    zip.finish().expect("an archive").into_inner()
}

/// Writes an archive.
pub fn save(path: &Path, root: &Value) {
    std::fs::write(path, archive(root)).expect("a writable directory");
}

struct Pickler {
    out: Vec<u8>,
    storages: Vec<Vec<u8>>,
}

impl Pickler {
    fn text(&mut self, text: &str) {
        self.out.push(b'X');
        self.out.extend((text.len() as u32).to_le_bytes());
        self.out.extend(text.as_bytes());
    }

    fn global(&mut self, module: &str, name: &str) {
        self.out.extend(format!("c{module}\n{name}\n").as_bytes());
    }

    fn tuple(&mut self, values: &[Value]) {
        self.out.push(b'(');
        values.iter().for_each(|value| self.value(value));
        self.out.push(b't');
    }

    fn items(&mut self, items: &[(String, Value)]) {
        self.out.push(b'(');
        for (key, value) in items {
            self.text(key);
            self.value(value);
        }
        self.out.push(b'u');
    }

    fn ordered(&mut self, items: &[(String, Value)]) {
        self.global("collections", "OrderedDict");
        self.out.extend(b")R");
        self.items(items);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::None => self.out.push(b'N'),
            Value::Bool(flag) => self.out.push(if *flag { 0x88 } else { 0x89 }),
            Value::Int(n) => self.out.extend([b'K', *n]),
            Value::Float(x) => {
                self.out.push(b'G');
                self.out.extend(x.to_be_bytes());
            }
            Value::Text(text) => self.text(text),
            Value::Tuple(values) => self.tuple(values),
            Value::List(values) => {
                self.out.extend(b"](");
                values.iter().for_each(|value| self.value(value));
                self.out.push(b'e');
            }
            Value::Dict(items) => {
                self.out.push(b'}');
                self.items(items);
            }
            Value::Tensor(tensor) => self.tensor(tensor),
            Value::Call(module, name, arguments) => {
                self.global(module, name);
                self.tuple(arguments);
                self.out.push(b'R');
            }
            Value::Global(module, name) => self.global(module, name),
            Value::Object(class, attributes) => {
                let (package, class) = class.rsplit_once('.').expect("a dotted class");
                self.global(package, class);
                self.out.extend(b")\x81}");
                self.items(attributes);
                self.out.push(b'b');
            }
            Value::Module(module) => self.module(module),
        }
    }

    fn tensor(&mut self, tensor: &Tensor) {
        let Tensor {
            shape,
            values,
            metadata,
            storage,
        } = tensor;
        let key = self.storages.len().to_string();
        self.storages
            .push(values.iter().flat_map(|x| x.to_le_bytes()).collect());
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.out.extend(b"((");
        self.text("storage");
        self.global("torch", storage);
        self.text(&key);
        self.text("cpu");
        self.out.extend(b"K\x00tQK\x00");
        let strides = (0..shape.len()).map(|i| shape[i + 1..].iter().product());
        let ints = |values: &mut dyn Iterator<Item = u8>| -> Vec<Value> {
            values.map(Value::Int).collect()
        };
        self.tuple(&ints(&mut shape.iter().copied()));
        self.tuple(&ints(&mut strides.into_iter()));
        self.out.push(0x89);
        self.ordered(&[]);
        if !metadata.is_empty() {
            self.value(&Value::Dict(metadata.clone()));
        }
        self.out.extend(b"tR");
    }

    fn module(&mut self, module: &Module) {
        let (package, class) = module.class.rsplit_once('.').expect("a dotted class");
        if module.source {
            self.out.push(b'(');
            self.text("module");
            self.global(package, class);
            self.text("net.py");
            self.text("class Net: ...");
            self.out.extend(b"tQ");
        } else {
            self.global(package, class);
        }
        self.out.extend(b")\x81}(");
        self.text("training");
        self.out.push(0x89);
        for (name, items) in [
            ("_parameters", &module.parameters),
            ("_buffers", &module.buffers),
            ("_modules", &module.modules),
        ] {
            self.text(name);
            self.ordered(items);
        }
        for (name, value) in &module.attributes {
            self.text(name);
            self.value(value);
        }
        self.out.extend(b"ub");
    }
}
