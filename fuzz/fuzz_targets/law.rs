//! The whole way on a checkpoint made to fit a random expression: fold = forward on whatever is accepted.
//!
//! `fuse` writes a file; the safetensors crate reads it; `verify` must accept it, and everything that no block takes must be
//! there byte for byte. What `fuse` refuses must be a number, and it must leave no file.
#![no_main]

use std::fmt;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use repfuse::algebra::Extent;
use repfuse::recipe;
use repfuse::plan::{self, Options};
use repfuse::tensor::{Checkpoint, Float};
use repfuse::verify::{self, Deployed};
use repfuse::fuse::{self, diagnose};
use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView, serialize};
use serde_json::{Value, json};

static PLACE: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory"));

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A recipe of one block and a file it fits.
struct Case {
    recipe: String,
    tensors: Vec<Tensor>,
    store: Option<Float>,
    threads: usize,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = self.tensors.iter().map(|t| (&t.name, t.dtype, &t.shape));
        let tensors: Vec<_> = tensors.collect();
        write!(f, "{} {tensors:?} {:?}", self.recipe, self.store)
    }
}

/// Builds a tree whose shapes fit by construction, and the tensors at its leaves.
struct Grow<'u, 'a> {
    u: &'u mut Unstructured<'a>,
    tensors: Vec<Tensor>,
    dtypes: Vec<Dtype>,
}

fn divisors(n: usize) -> Vec<usize> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

impl Grow<'_, '_> {
    fn pick<T: Copy>(&mut self, from: &[T]) -> Result<T> {
        self.u.choose(from).copied()
    }

    fn below(&mut self, n: usize) -> Result<usize> {
        self.u.int_in_range(0..=n.max(1) - 1)
    }

    /// A number: a tame one mostly, else one at the edges of what types hold.
    fn number(&mut self, variance: bool) -> Result<f64> {
        let kind: u8 = self.u.arbitrary()?;
        let fraction = f64::from(i16::arbitrary(self.u)?) / 16384.0;
        Ok(match kind {
            0..=199 if variance => fraction.abs() + 0.01,
            0..=199 => fraction,
            200..=209 => 0.0,
            210..=214 => -0.0,
            215..=224 => fraction * 1e-7,
            225..=229 => fraction * 1e-40,
            230..=239 => fraction * 1e4,
            240..=249 => fraction * 1e30,
            250 => 1e38,
            251 => f64::NAN,
            252 => f64::INFINITY,
            _ => -fraction.abs(),
        })
    }

    fn tensor(&mut self, name: String, shape: &[usize], variance: bool) -> Result<()> {
        let dtypes = self.dtypes.clone();
        let dtype = self.pick(&dtypes)?;
        let float = repfuse::tensor::Dtype::Known(dtype)
            .float()
            .expect("a float");
        let count: usize = shape.iter().product();
        // A handful of numbers, repeated with changes: an input need not be long to fill a weight.
        let some = self.u.int_in_range(1..=count.clamp(1, 8))?;
        let numbers = (0..some).map(|_| self.number(variance));
        let numbers: Vec<f64> = numbers.collect::<Result<_>>()?;
        let values: Vec<f64> = (0..count)
            .map(|i| numbers[i % some] * (1.0 + (i % 11) as f64 / 16.0))
            .collect();
        let mut bytes = vec![0; count * float.size()];
        float.encode(&values, &mut bytes);
        self.tensors.push(Tensor {
            name,
            dtype,
            shape: shape.to_vec(),
            bytes,
        });
        Ok(())
    }

    fn name(&self) -> String {
        format!("t{}", self.tensors.len())
    }

    fn conv(&mut self, inputs: usize, outputs: usize, extent: Extent) -> Result<Value> {
        let groups: Vec<usize> = divisors(inputs);
        let groups: Vec<usize> = groups.into_iter().filter(|g| outputs % g == 0).collect();
        let groups = self.pick(&groups)?;
        let (mut kernel, mut dilation) = (extent, [1; 3]);
        for axis in 0..3 {
            if extent[axis] > 1 {
                let steps = self.pick(&divisors(extent[axis] - 1))?;
                (kernel[axis], dilation[axis]) = ((extent[axis] - 1) / steps + 1, steps);
            }
        }
        let name = self.name();
        // As a Linear layer, a Conv1d, a Conv2d or a Conv3d, whichever can be so large.
        let needed = kernel.iter().take_while(|n| **n == 1).count();
        let axes = &kernel[self.below(needed + 1)?..];
        let shape: Vec<usize> = [outputs, inputs / groups].iter().chain(axes).copied().collect();
        self.tensor(format!("b.{name}.weight"), &shape, false)?;
        if self.u.arbitrary()? {
            self.tensor(format!("b.{name}.bias"), &[outputs], false)?;
        }
        let flipped: bool = self.u.arbitrary()?;
        Ok(json!({"conv": format!("{{p}}.{name}"), "dilation": dilation, "groups": groups, "flipped": flipped}))
    }

    fn diagonal(&mut self, channels: usize) -> Result<Value> {
        let name = self.name();
        Ok(match self.below(6)? {
            0 => json!({"scale": f64::from(i16::arbitrary(self.u)?) / 4096.0}),
            1 => {
                self.tensor(format!("b.{name}"), &[channels, 1, 1], false)?;
                json!({"scale": format!("{{p}}.{name}")})
            }
            2 => {
                self.tensor(format!("b.{name}"), &[channels], false)?;
                json!({"shift": format!("{{p}}.{name}")})
            }
            3 => json!("identity"),
            _ => {
                for end in ["weight", "bias", "running_mean", "running_var"] {
                    let variance = end == "running_var";
                    self.tensor(format!("b.{name}.{end}"), &[channels], variance)?;
                }
                json!({"bn": format!("{{p}}.{name}")})
            }
        })
    }

    /// A tree of exactly this extent on each axis.
    fn tree(
        &mut self,
        inputs: usize,
        outputs: usize,
        extent: Extent,
        depth: usize,
    ) -> Result<Value> {
        match self.below(if depth == 0 { 2 } else { 6 })? {
            0 => self.conv(inputs, outputs, extent),
            1 if inputs == outputs => {
                let (before, after) = (self.diagonal(inputs)?, self.diagonal(inputs)?);
                Ok(json!({"seq": [before, {"mean": extent}, after]}))
            }
            1 => {
                let conv = self.conv(inputs, outputs, extent)?;
                Ok(json!({"seq": [conv, self.diagonal(outputs)?]}))
            }
            2 | 3 => {
                let middle = self.pick(&[1, 2, 4, 6])?;
                let mut first = extent;
                for n in &mut first {
                    *n = 1 + self.below(*n)?;
                }
                let second = [0, 1, 2].map(|axis| extent[axis] + 1 - first[axis]);
                let mut steps = Vec::new();
                if self.u.arbitrary()? {
                    steps.push(self.diagonal(inputs)?);
                }
                steps.push(self.tree(inputs, middle, first, depth - 1)?);
                steps.push(self.diagonal(middle)?);
                steps.push(self.tree(middle, outputs, second, depth - 1)?);
                Ok(json!({"seq": steps}))
            }
            _ => {
                let mut branches = vec![self.tree(inputs, outputs, extent, depth - 1)?];
                for _ in 0..self.below(3)? {
                    let mut smaller = extent;
                    for n in &mut smaller {
                        *n -= 2 * self.below(n.div_ceil(2))?;
                    }
                    branches.push(self.tree(inputs, outputs, smaller, depth - 1)?);
                }
                if inputs == outputs && extent.iter().all(|n| n % 2 == 1) {
                    branches.push(self.diagonal(inputs)?);
                }
                Ok(json!({"sum": branches}))
            }
        }
    }
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Case> {
        let all = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64];
        let dtypes = match u.int_in_range(0..=5)? {
            i @ 0..=3 => vec![all[i]],
            _ => all.to_vec(),
        };
        let mut grow = Grow {
            u,
            tensors: Vec::new(),
            dtypes,
        };
        let (inputs, outputs) = (grow.pick(&[1, 2, 4, 6])?, grow.pick(&[1, 2, 4, 6])?);
        let extent = [
            grow.pick(&[1, 1, 1, 2, 3])?,
            grow.pick(&[1, 2, 3, 5])?,
            grow.pick(&[1, 3, 4])?,
        ];
        let depth = grow.below(4)?;
        let tree = grow.tree(inputs, outputs, extent, depth)?;
        // A tensor that no block takes, with or without numbers in it.
        for i in 0..grow.below(3)? {
            grow.tensor(format!("other.{i}"), &[3, i], false)?;
        }
        let types = [
            None,
            None,
            Some(Float::F16),
            Some(Float::Bf16),
            Some(Float::F32),
        ];
        let store = grow.pick(&types)?;
        let threads = 1 + grow.below(2)?;
        let tensors = grow.tensors;
        let of_block = tensors.iter().find(|t| t.name.starts_with("b."));
        let first = of_block.map_or("b.none", |t| &t.name);
        let recipe = json!({
            "name": "fuzz", "about": "a block", "eps": 1e-5,
            "blocks": [{"at": first.replacen('b', "{p}", 1), "fuse": {"{p}.out": tree}}],
        });
        Ok(Case {
            recipe: recipe.to_string(),
            tensors,
            store,
            threads,
        })
    }
}

fuzz_target!(|case: Case| {
    let [input, output] = ["in.safetensors", "out.safetensors"].map(|name| PLACE.path().join(name));
    let views = case.tensors.iter().map(|t| {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("bytes that fit");
        (t.name.clone(), view)
    });
    std::fs::write(&input, serialize(views, None).expect("a file")).expect("room");
    let _ = std::fs::remove_file(&output);

    let checkpoint = Checkpoint::open(&input).expect("a file that the safetensors crate wrote");
    let recipe = recipe::parse(&case.recipe, "fuzz.json");
    let recipe = recipe.unwrap_or_else(|e| panic!("{e}: {case:?}"));
    let options = Options {
        dtype: case.store,
        ..Default::default()
    };
    // A tree without a conv is refused, as is one whose input width nothing tells.
    let Ok(plan) = plan::plan(checkpoint.tensors(), &recipe, &options) else {
        return;
    };
    if diagnose::check_norms(&checkpoint, &plan).is_err() {
        return;
    }
    let options = fuse::Options {
        threads: Some(case.threads),
        ..Default::default()
    };
    let go_on = |_| ControlFlow::Continue(());
    let unfinished = match fuse::fuse(&checkpoint, &plan, &output, &options, &go_on) {
        Ok(unfinished) => unfinished,
        Err(
            diagnose::Error::NotFinite { .. }
            | diagnose::Error::Overflow { .. }
            | diagnose::Error::Unbounded { .. },
        ) => {
            let left = std::fs::read_dir(PLACE.path()).expect("a directory");
            assert_eq!(left.count(), 1);
            return;
        }
        Err(error) => panic!("{error}: {case:?}"),
    };
    unfinished.finish().expect("a rename");

    let bytes = std::fs::read(&output).expect("a file");
    let read = SafeTensors::deserialize(&bytes).expect("a file that the safetensors crate reads");
    assert_eq!(read.len(), plan.outputs().len());
    for planned in plan.outputs() {
        let found = read.tensor(&planned.output.name).expect("a planned tensor");
        assert_eq!(found.shape(), planned.output.shape);
        if let plan::Source::Copy(tensor) = &planned.what {
            let mut copied = vec![0; tensor.byte_len() as usize];
            checkpoint.read_at(tensor, 0, &mut copied).expect("bytes");
            assert_eq!(found.data(), copied);
        }
    }
    let written = Checkpoint::open(&output).expect("what was written");
    let form = Deployed::File(&written);
    let verdict = verify::verify(&checkpoint, &plan, form, &verify::Options::default());
    let verdict = verdict.expect("a verdict");
    let (failures, blocks) = (&verdict.failures, &verdict.blocks);
    assert!(verdict.accepted(), "{failures:?} {blocks:?}: {case:?}");
});
