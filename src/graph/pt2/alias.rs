//! Which values share memory, and what is changed in place.
//!
//! A program of torch.export keeps the in-place operators of the author's code: `relu_(x)` gives a value of its own and
//! changes `x`. As long as nobody reads `x` afterwards, or a view of it, the two are the same. Where somebody does, what he
//! reads is not what was computed under that name, so nothing around it is folded.

use std::collections::{HashMap, HashSet};

use super::schema::NodeText;

/// What a call reads and computes, by name.
pub(super) struct Step {
    pub(super) reads: Vec<String>,
    pub(super) writes: Vec<String>,
    pub(super) effect: Effect,
}

/// What a call does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Its results are new.
    New,
    /// Its results may lie where its inputs do.
    View,
    /// It changes its first input, and its result lies there.
    InPlace,
    /// It may change whatever it reads.
    Unknown,
    /// It asks whether what it reads is as it was when the network was exported, and gives nothing.
    Check,
}

/// What a call does to memory, by its operator.
pub(super) fn effect(node: &NodeText<'_>) -> Effect {
    // As `x.to(torch.float32)` leaves before it.
    if node.aten() == Some("_assert_tensor_metadata") {
        return Effect::Check;
    }
    let Some(name) = node.aten() else {
        // `torch.ops.higher_order.cond` and the operators of other libraries.
        return match node.target.0.starts_with("_operator.") || node.target.0.starts_with("math.") {
            true => Effect::New,
            false => Effect::Unknown,
        };
    };
    let is_out = |name: &str| {
        let end = name.strip_prefix("out");
        end.is_some_and(|end| end.bytes().all(|b| b.is_ascii_digit()))
    };
    let has_out = node.inputs.iter().any(|input| is_out(&input.name.0));
    // (`to.dtype_layout` ends with these letters, too.)
    if node.overload() == "out" || node.overload().ends_with("_out") || has_out {
        return Effect::Unknown;
    }
    // `detach_` changes what is known of a tensor, and none of its numbers.
    let changes = (name.ends_with('_') && !name.ends_with("__") && name != "detach_")
        || name.starts_with("__i");
    match changes {
        true if name.starts_with("_foreach") => Effect::Unknown,
        true => Effect::InPlace,
        false if is_new(name) => Effect::New,
        false => Effect::View,
    }
}

/// Operators whose results are new, in the order of their names.
const NEW: [&str; 62] = [
    "_adaptive_avg_pool2d",
    "_native_batch_norm_legit_no_training",
    "_softmax",
    "abs",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool2d",
    "add",
    "addmm",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "bmm",
    "cat",
    "clamp",
    "clone",
    "concat",
    "constant_pad_nd",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
    "div",
    "elu",
    "embedding",
    "exp",
    "gelu",
    "group_norm",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "layer_norm",
    "leaky_relu",
    "lift_fresh_copy",
    "linear",
    "matmul",
    "max_pool2d",
    "mean",
    "mish",
    "mm",
    "mul",
    "neg",
    "pow",
    "prelu",
    "relu",
    "relu6",
    "rsqrt",
    "rsub",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "sqrt",
    "stack",
    "sub",
    "tanh",
];

/// Whether the results of an operator are new. All others are taken for views, which is never wrong.
fn is_new(name: &str) -> bool {
    NEW.binary_search(&name).is_ok()
}

/// What in-place operators leave behind.
pub(super) struct Changed {
    /// Placeholders that are changed when the network runs.
    pub(super) stored: HashSet<String>,
    /// Values that somebody reads under a name they had before they were changed, and all that share memory with them.
    pub(super) stale: HashSet<String>,
    /// Values whose memory is changed once they are given: what they hold is there for a while.
    pub(super) later: HashSet<String>,
    /// For each step, whether anybody can tell that it ran.
    pub(super) live: Vec<bool>,
}

/// Values by number, as a forest of those that may share memory.
#[derive(Default)]
struct Shared<'a> {
    numbers: HashMap<&'a str, usize>,
    parents: Vec<usize>,
}

impl<'a> Shared<'a> {
    fn number(&mut self, name: &'a str) -> usize {
        *self.numbers.entry(name).or_insert_with(|| {
            self.parents.push(self.parents.len());
            self.parents.len() - 1
        })
    }

    fn root(&mut self, name: &'a str) -> usize {
        let mut at = self.number(name);
        while self.parents[at] != at {
            self.parents[at] = self.parents[self.parents[at]];
            at = self.parents[at];
        }
        at
    }

    fn join(&mut self, a: &'a str, b: &'a str) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[b] = a;
    }
}

impl Step {
    /// The inputs whose memory the results may share.
    fn sources(&self) -> &[String] {
        match self.effect {
            Effect::New | Effect::Check => &[],
            Effect::InPlace => &self.reads[..self.reads.len().min(1)],
            Effect::View | Effect::Unknown => &self.reads,
        }
    }

    /// The inputs whose memory is changed.
    fn changed(&self) -> &[String] {
        match self.effect {
            Effect::New | Effect::View | Effect::Check => &[],
            Effect::InPlace | Effect::Unknown => self.sources(),
        }
    }
}

/// Looks at every step, in their order. `placeholders` are the inputs of the graph and its weights, `outputs` what it gives.
pub(super) fn changed(
    steps: &[Step],
    placeholders: &HashSet<String>,
    outputs: &[String],
) -> Changed {
    let mut shared = Shared::default();
    for step in steps {
        for source in step.sources() {
            step.writes
                .iter()
                .for_each(|result| shared.join(source, result));
        }
    }
    // Moments are counted from 1: when a name was given, and when the memory of each root was changed.
    let mut given: HashMap<&str, usize> = HashMap::new();
    let mut changes: HashMap<usize, Vec<usize>> = HashMap::new();
    for (i, step) in steps.iter().enumerate() {
        given.extend(step.writes.iter().map(|result| (result.as_str(), i + 1)));
        for name in step.changed() {
            changes.entry(shared.root(name)).or_default().push(i + 1);
        }
    }
    let live = live(steps, placeholders, outputs, &mut shared);
    let stored: HashSet<usize> = placeholders.iter().map(|name| shared.root(name)).collect();
    let mut stale: HashSet<usize> = stored
        .into_iter()
        .filter(|root| changes.contains_key(root))
        .collect();
    let results = std::iter::repeat(steps.len() + 1).zip(outputs);
    let reads = steps
        .iter()
        .enumerate()
        .flat_map(|(i, step)| std::iter::repeat(i + 1).zip(&step.reads));
    for (moment, name) in reads.chain(results) {
        let root = shared.root(name);
        let Some(times) = changes.get(&root) else {
            continue;
        };
        // Was it changed after its name was given and before this moment?
        let before = times.partition_point(|time| *time < moment);
        if before > 0 && times[before - 1] > given.get(name.as_str()).copied().unwrap_or(0) {
            stale.insert(root);
        }
    }
    let names: Vec<&str> = shared.numbers.keys().copied().collect();
    let mut later = HashSet::new();
    for name in &names {
        let last = changes
            .get(&shared.root(name))
            .and_then(|times| times.last());
        if last > Some(given.get(name).unwrap_or(&0)) {
            later.insert((*name).to_owned());
        }
    }
    let stale: HashSet<String> = names
        .into_iter()
        .filter(|name| stale.contains(&shared.root(name)))
        .map(str::to_owned)
        .collect();
    Changed {
        stored: placeholders.intersection(&stale).cloned().collect(),
        stale,
        later,
        live,
    }
}

/// Steps whose results are read, or that change what is.
fn live<'a>(
    steps: &'a [Step],
    placeholders: &'a HashSet<String>,
    outputs: &'a [String],
    shared: &mut Shared<'a>,
) -> Vec<bool> {
    let mut read: HashSet<&str> = outputs.iter().map(String::as_str).collect();
    let all = outputs.iter().chain(placeholders);
    let mut memory: HashSet<usize> = all.map(|name| shared.root(name)).collect();
    let mut live = vec![false; steps.len()];
    for (i, step) in steps.iter().enumerate().rev() {
        live[i] = step.effect == Effect::Unknown
            || (step.writes.is_empty() && step.effect != Effect::Check)
            || step.writes.iter().any(|name| read.contains(name.as_str()))
            || step
                .changed()
                .iter()
                .any(|name| memory.contains(&shared.root(name)));
        if live[i] {
            read.extend(step.reads.iter().map(String::as_str));
            memory.extend(step.reads.iter().map(|name| shared.root(name)));
        }
    }
    live
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Changed, Effect, Step, changed};

    fn step(effect: Effect, reads: &[&str], writes: &[&str]) -> Step {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Step {
            reads: names(reads),
            writes: names(writes),
            effect,
        }
    }

    fn of(steps: &[Step]) -> Changed {
        let placeholders: HashSet<String> = ["x", "w"].map(str::to_owned).into();
        changed(steps, &placeholders, &["out".to_owned()])
    }

    #[test]
    fn what_nobody_reads_again_may_be_changed() {
        let chain = [
            step(Effect::New, &["x", "w"], &["conv"]),
            step(Effect::InPlace, &["conv"], &["relu_"]),
            step(Effect::InPlace, &["relu_", "x"], &["add_"]),
            step(Effect::View, &["add_"], &["out"]),
        ];
        assert!(of(&chain).stale.is_empty());
        assert!(of(&chain).stored.is_empty());
    }

    #[test]
    fn what_nobody_reads_is_dead_with_all_that_leads_to_it() {
        let steps = [
            step(Effect::New, &["x", "w"], &["conv"]),
            step(Effect::InPlace, &["conv"], &["relu_"]),
            step(Effect::New, &["x", "w"], &["other"]),
            step(Effect::View, &["other"], &["view"]),
            step(Effect::InPlace, &["view"], &["mul_"]),
            step(Effect::View, &["x"], &[]),
            step(Effect::New, &["other"], &["out"]),
        ];
        assert_eq!(
            of(&steps).live,
            [false, false, true, true, true, true, true]
        );
    }

    #[test]
    fn an_old_name_read_again_is_stale() {
        let again = [
            step(Effect::New, &["x", "w"], &["conv"]),
            step(Effect::InPlace, &["conv"], &["relu_"]),
            step(Effect::New, &["conv", "relu_"], &["out"]),
        ];
        let stale = of(&again).stale;
        assert!(stale.contains("conv") && stale.contains("relu_") && !stale.contains("out"));
    }

    #[test]
    fn a_view_changes_with_its_base() {
        let view = [
            step(Effect::New, &["x", "w"], &["conv"]),
            step(Effect::View, &["conv"], &["view"]),
            step(Effect::InPlace, &["conv"], &["relu_"]),
            step(Effect::New, &["view", "relu_"], &["out"]),
        ];
        assert!(of(&view).stale.contains("view"));
    }

    #[test]
    fn an_input_or_a_weight_that_is_changed_is_no_constant() {
        let copied = [
            step(Effect::New, &["x"], &["mean"]),
            step(Effect::InPlace, &["w", "mean"], &["copy_"]),
            step(Effect::New, &["copy_", "x"], &["out"]),
        ];
        assert!(of(&copied).stored.contains("w"));
        let by_another_library = [step(Effect::Unknown, &["x", "w"], &["out"])];
        assert_eq!(of(&by_another_library).stored.len(), 2);
    }
}
