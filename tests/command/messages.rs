//! Error messages about shapes, blocks and files, word for word, and beside each the same thing without the mistake.

use crate::support::file::{Place, bytes, checkpoint, ones, recipe};
use crate::support::forge::{File, Held};
use crate::support::{Array, InMemory};
use repfuse::algebra::expr::{Bn, Channels, Conv, Expr, Factor, Vector};
use repfuse::algebra::extent::{Margins, POINT};
use repfuse::algebra::forward::{Input, Maps, Reading, Spikes, forward};
use repfuse::algebra::shape::resolve;
use repfuse::plan::{self, Options, Plan};
use repfuse::recipe;
use repfuse::tensor::Reader;
use repfuse::tensor::header::{self, Entry, Header};
use repfuse::tensor::write::Layout;
use repfuse::tensor::{Checkpoint, Destinations, Dtype, Output, Writer};
use repfuse::verify::{self, BlockVerdict};

// Shapes

type Tree = Expr<Array>;

fn array(label: &'static str, shape: &[usize]) -> Array {
    Array {
        label,
        shape: shape.to_vec(),
        data: Vec::new(),
    }
}

fn conv(label: &'static str, shape: &[usize]) -> Conv<Array> {
    Conv {
        weight: array(label, shape),
        bias: None,
        dilation: [1; 3],
        groups: None,
        transposed: false,
        flipped: false,
        shared: false,
    }
}

fn grouped_conv(label: &'static str, shape: &[usize], groups: usize) -> Tree {
    Expr::Conv(Conv {
        groups: Some(groups),
        ..conv(label, shape)
    })
}

fn plain_conv(label: &'static str, shape: &[usize]) -> Tree {
    Expr::Conv(conv(label, shape))
}

fn norm(channels: usize) -> Tree {
    let vector = |label| array(label, &[channels]);
    Expr::Bn(Bn {
        mean: vector("mean"),
        var: vector("var"),
        affine: None,
        eps: 1e-5,
    })
}

fn sum(xs: impl Into<Vec<Tree>>) -> Tree {
    Expr::Sum(xs.into())
}

fn seq(xs: impl Into<Vec<Tree>>) -> Tree {
    Expr::Seq(xs.into())
}

#[test]
fn shapes_that_do_not_fit() {
    let c = || plain_conv("c", &[4, 4, 3, 3]);
    let grouped = |groups| grouped_conv("c", &[4, 2, 3, 3], groups);
    let biased = |len| {
        Expr::Conv(Conv {
            bias: Some(array("b", &[len])),
            ..conv("c", &[4, 4, 3, 3])
        })
    };
    let transposed = || {
        Expr::Conv(Conv {
            transposed: true,
            ..conv("t", &[4, 6, 2, 2])
        })
    };
    let transposed_groups = |groups| {
        Expr::Conv(Conv {
            transposed: true,
            groups: Some(groups),
            ..conv("t", &[4, 6, 2, 2])
        })
    };
    let dilated = |dilation| {
        Expr::Conv(Conv {
            dilation: [1, dilation, 1],
            ..conv("c", &[4, 4, 3, 3])
        })
    };
    let cropped = |before| {
        let after = [0; 3];
        Expr::Crop(Margins { before, after })
    };
    let selected = |of, picked: &[usize]| {
        let picked = picked.to_vec();
        Expr::Select(Channels { of, picked })
    };
    let doubled = || sum([Expr::Identity, Expr::Identity]);
    let separable = || {
        seq([
            plain_conv("dw", &[48, 1, 3, 3]),
            plain_conv("pw", &[4, 24, 1, 1]),
        ])
    };
    let nested = |groups| {
        seq([
            Expr::Conv(Conv {
                groups,
                ..conv("n1", &[9, 1])
            }),
            grouped_conv("n2", &[3, 3], 3),
            plain_conv("n3", &[3, 1]),
        ])
    };
    let cases = [
        (
            plain_conv("c", &[4]),
            "`c` has shape [4]; expected a conv weight with 2 to 5 dimensions and no zero",
            plain_conv("c", &[4, 4]),
        ),
        (
            plain_conv("c", &[4, 0, 3, 3]),
            "`c` has shape [4, 0, 3, 3]; expected a conv weight with 2 to 5 dimensions and no zero",
            c(),
        ),
        (
            biased(5),
            "`b` has 5 values; expected 4, one per channel",
            biased(4),
        ),
        (
            seq([c(), norm(3)]),
            "`mean` has 3 values; expected 4, one per channel",
            seq([c(), norm(4)]),
        ),
        (
            seq([
                c(),
                Expr::Scale(Factor::Tensor(Vector::of(array("s", &[3])))),
            ]),
            "`s` has 3 values; expected 4, one per channel",
            seq([
                c(),
                Expr::Scale(Factor::Tensor(Vector::of(array("s", &[1])))),
            ]),
        ),
        (
            seq([norm(6), c()]),
            "`c` has shape [4, 4, 3, 3]: 4 input channels per group do not divide the 6 channels of `var`",
            seq([norm(4), c()]),
        ),
        (
            seq([
                norm(4),
                plain_conv("c", &[6, 4, 3, 3]),
                plain_conv("d", &[2, 5, 1, 1]),
            ]),
            "`d` has shape [2, 5, 1, 1]: 5 input channels per group do not divide the 6 channels it is applied to",
            seq([
                norm(4),
                plain_conv("c", &[6, 4, 3, 3]),
                plain_conv("d", &[2, 6, 1, 1]),
            ]),
        ),
        (
            seq([norm(12), c()]),
            "`c` has shape [4, 4, 3, 3]: its 4 output channels do not divide into 3 groups",
            seq([norm(8), c()]),
        ),
        (
            transposed_groups(3),
            "`t` has shape [4, 6, 2, 2]: its 4 input channels do not divide into 3 groups",
            transposed_groups(2),
        ),
        (
            sum([
                transposed(),
                Expr::Conv(Conv {
                    transposed: true,
                    ..conv("u", &[2, 6, 2, 2])
                }),
            ]),
            "`u` has shape [2, 6, 2, 2]: a transposed conv of 2 input channels, applied to 4",
            sum([transposed(), transposed()]),
        ),
        (
            Expr::Conv(Conv {
                transposed: true,
                bias: Some(array("b", &[5])),
                ..conv("t", &[4, 6, 2, 2])
            }),
            "`b` has 5 values; expected 6, one per channel",
            Expr::Conv(Conv {
                transposed: true,
                bias: Some(array("b", &[12])),
                ..conv("t", &[4, 6, 2, 2])
            }),
        ),
        (
            seq([norm(4), grouped(4)]),
            "`c` has shape [4, 2, 3, 3], so 2 groups; the recipe declares 4",
            seq([norm(4), grouped(2)]),
        ),
        (
            sum([c(), plain_conv("d", &[5, 4, 3, 3])]),
            "`c` [4, 4, 3, 3] gives 4 channels and `d` [5, 4, 3, 3] gives 5; branches that are added need the same number",
            sum([c(), plain_conv("d", &[4, 4, 3, 3])]),
        ),
        (
            sum([c(), plain_conv("d", &[4, 2, 3, 3])]),
            "`c` [4, 4, 3, 3] has 4 input channels per group and `d` [4, 2, 3, 3] has 2; branches that are added need the same \
             number",
            sum([c(), grouped_beside("d")]),
        ),
        (
            sum([c(), plain_conv("d", &[4, 4, 2, 2])]),
            "`c` [4, 4, 3, 3] covers [3, 3] taps and `d` [4, 4, 2, 2] covers [2, 2]: they have no common centre; each axis needs \
             both odd or both even",
            sum([c(), plain_conv("d", &[4, 4, 1, 1])]),
        ),
        (
            sum([c(), Expr::AvgPool([1, 2, 2])]),
            "`c` [4, 4, 3, 3] covers [3, 3] taps and the average pooling covers [2, 2]: they have no common centre; each axis needs \
             both odd or both even",
            sum([c(), Expr::AvgPool([1, 3, 3])]),
        ),
        (
            sum([c(), cropped([0, 0, 1])]),
            "`c` [4, 4, 3, 3] covers [3, 3] taps and the cropped input covers [1, 2]: they have no common centre; each axis needs both \
             odd or both even",
            sum([c(), cropped([0, 0, 2])]),
        ),
        (
            sum([plain_conv("c", &[4, 4, 2, 2]), Expr::Identity]),
            "`c` [4, 4, 2, 2] covers [2, 2] taps and the identity covers [1, 1]: they have no common centre; each axis needs both odd \
             or both even",
            sum([c(), Expr::Identity]),
        ),
        (
            sum([plain_conv("c", &[4, 2, 3, 3]), Expr::Identity]),
            "`c` has shape [4, 2, 3, 3]: an identity needs as many output as input channels, and this conv gives 4 from 2",
            sum([c(), Expr::Identity]),
        ),
        (
            seq([
                plain_conv("dw", &[4, 1, 3, 3]),
                plain_conv("pw", &[2, 4, 1, 1]),
            ]),
            "`dw` has shape [4, 1, 3, 3], and nothing in the block says how many groups it has; declare it with `\"groups\"` in the \
             recipe",
            seq([
                grouped_conv("dw", &[4, 1, 3, 3], 4),
                plain_conv("pw", &[2, 4, 1, 1]),
            ]),
        ),
        (
            // Over 3 channels or over 6: the same shapes, and the depthwise kernels apply to other channels.
            sum([plain_conv("c", &[4, 3, 1, 1]), separable()]),
            "`c` has shape [4, 3, 1, 1], and nothing in the block says how many groups it has; declare it with `\"groups\"` in the \
             recipe",
            sum([grouped_conv("c", &[4, 3, 1, 1], 2), separable()]),
        ),
        (
            // Over 2 channels or over 4: the narrower branch lies elsewhere in the whole.
            sum([
                seq([
                    plain_conv("n1", &[4, 1, 1, 1]),
                    grouped_conv("n2", &[12, 1, 1, 1], 4),
                ]),
                plain_conv("n4", &[12, 2, 1, 1]),
            ]),
            "`n1` has shape [4, 1, 1, 1], and nothing in the block says how many groups it has; declare it with `\"groups\"` in the \
             recipe",
            sum([
                seq([
                    grouped_conv("n1", &[4, 1, 1, 1], 4),
                    grouped_conv("n2", &[12, 1, 1, 1], 4),
                ]),
                plain_conv("n4", &[12, 2, 1, 1]),
            ]),
        ),
        (
            // Over 3 channels or over 9: as many steps, of other parts.
            sum([nested(None), plain_conv("n4", &[3, 3])]),
            "`n1` has shape [9, 1], and nothing in the block says how many groups it has; declare it with `\"groups\"` in the recipe",
            sum([nested(Some(9)), plain_conv("n4", &[3, 3])]),
        ),
        (
            norm(4),
            "a block needs at least one conv; this one has none",
            seq([norm(4), c()]),
        ),
        (
            // 12 values are two groups of 6, and 9 are no groups.
            seq([transposed(), norm(9)]),
            "`mean` has 9 values; expected 6, one per channel",
            seq([transposed(), norm(12)]),
        ),
        (
            seq([transposed(), c()]),
            "`t` is the weight of a transposed conv, which can only be followed by batch norms, scales and shifts",
            seq([transposed(), norm(6)]),
        ),
        (
            sum([c(), seq([])]),
            "an empty sequence or sum, or no channels",
            sum([c(), seq([Expr::Identity])]),
        ),
        (
            sum([c(), Expr::AvgPool([1, 0, 3])]),
            "an average pooling over a window of [1, 0, 3]; expected at least 1 along each axis",
            sum([c(), Expr::AvgPool([1, 1, 3])]),
        ),
        (
            dilated(0),
            "`c` has dilation [1, 0, 1]; expected at least 1 along each axis",
            dilated(1),
        ),
        (
            seq([norm(4), c(), selected(5, &[0])]),
            "channels [0] of 5 are selected from 4",
            seq([norm(4), c(), selected(4, &[0])]),
        ),
        (
            seq([norm(4), c(), selected(4, &[1, 4])]),
            "channels [1, 4] of 4 are selected from 4",
            seq([norm(4), c(), selected(4, &[1, 3])]),
        ),
        (
            seq([norm(4), c(), sum([selected(4, &[1]), selected(4, &[2, 3])])]),
            "the selection of channels gives 1 channels and the selection of channels gives 2; branches that are added need the \
             same number",
            seq([norm(4), c(), sum([selected(4, &[1]), selected(4, &[2])])]),
        ),
        (
            seq(vec![c(); 65]),
            "65 convs stand one behind another; at most 64 are folded into one",
            seq([vec![norm(4)], vec![plain_conv("c", &[4, 4, 1, 1]); 64]].concat()),
        ),
        (
            dilated(usize::MAX),
            "its dilations and means cover more than this machine can address",
            dilated(2),
        ),
        (
            seq([c(), Expr::AvgPool([1, 63, 63])]),
            "one kernel for it would be [4, 4, 65, 65], far more than the 144 numbers of its tensors; a dilation or a mean is too wide",
            seq([c(), Expr::AvgPool([1, 62, 62])]),
        ),
        (
            seq([vec![c()], vec![doubled(); 11]].concat()),
            "its sums multiply out to 2048 products; at most 1059 are folded",
            seq([vec![c()], vec![doubled(); 10]].concat()),
        ),
    ];
    for (tree, expected, twin) in cases {
        let error = resolve(tree).expect_err(expected);
        assert_eq!(error.to_string(), expected);
        if let Err(error) = resolve(twin) {
            panic!("beside {expected:?}: {error}");
        }
    }
}

#[test]
fn inputs_that_do_not_fit_a_tree() {
    let tree = resolve(grouped_conv("c", &[6, 2, 3, 3], 2)).expect("shapes that fit");
    let run = |input, rows, want| {
        let maps = forward(
            tree.root(),
            &input,
            rows,
            want,
            Reading::Value,
            &mut InMemory,
        );
        maps.expect_err("a misfit").to_string()
    };
    let maps = |channels| Input::Dense(Maps::zeros(channels, 1, [1, 3, 3]));
    assert_eq!(
        run(maps(3), 0..6, POINT),
        "maps of 3 channels and size [1, 3, 3] do not fit; expected 4 channels and at least [1, 3, 3]"
    );
    assert_eq!(
        run(maps(4), 0..7, POINT),
        "output channels 0..7 in a window of [1, 1, 1] are wanted; there are 6"
    );
    let spikes = Spikes {
        per_group: 3,
        channels: 0..3,
        amplitude: 1.0,
    };
    assert_eq!(
        run(Input::Spikes(spikes), 0..6, [1, 3, 3]),
        "impulses on channels 0..3 of 3 do not fit; expected groups of 2 or a multiple"
    );
}

/// A conv that is narrower than those beside it, as the recipe declares.
fn grouped_beside(label: &'static str) -> Tree {
    grouped_conv(label, &[4, 2, 3, 3], 2)
}

// Recipes against a file

fn planned(file: &File, text: &str) -> Result<Plan, recipe::Error> {
    let place = Place::new();
    file.write(&place.path("in.safetensors"));
    let checkpoint = Checkpoint::open(place.path("in.safetensors")).expect("a checkpoint");
    let recipe = recipe::parse(text, "own.json")?;
    plan::plan(checkpoint.tensors(), &recipe, &Options::default())
}

/// A recipe that starts at `c.weight` and fuses an expression to `out`.
fn fused(expression: &str) -> String {
    recipe(&format!(
        r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.out": {expression}}}}}"#
    ))
}

#[test]
fn blocks_that_are_not_whole() {
    let all = [
        ("a.c.weight", &[4, 4, 3, 3][..]),
        ("a.c.bias", &[4]),
        ("a.n.weight", &[4]),
        ("a.n.bias", &[4]),
        ("a.n.running_mean", &[4]),
        ("a.n.running_var", &[4]),
        ("a.s", &[4]),
        ("a.d2.weight", &[4, 4, 3, 3]),
        ("a.v", &[5]),
    ];
    let without = |gone: &[&str]| {
        ones(
            &all.iter()
                .copied()
                .filter(|(name, _)| !gone.contains(name))
                .collect::<Vec<_>>(),
        )
    };
    let c = r#"{"conv": "{p}.c", "bias": "optional"}"#;
    let bn = format!(r#"{{"seq": [{c}, {{"bn": "{{p}}.n"}}]}}"#);
    let n = [
        "a.n.weight",
        "a.n.bias",
        "a.n.running_mean",
        "a.n.running_var",
    ];
    // An expression, what is taken away, and what is said of it.
    for (expression, gone, expected) in [
        (bn.as_str(), &n[..], "the batch norm `a.n` is missing"),
        (
            &bn,
            &n[2..3],
            "`a.n` has 3 of the 4 batch-norm tensors; `running_mean` is missing",
        ),
        (
            &bn,
            &[n[0], n[2]],
            "`a.n` has 2 of the 4 batch-norm tensors; `weight`, `running_mean` are missing",
        ),
        (
            &bn,
            &n[..1],
            "`a.n` has 3 of the 4 batch-norm tensors; `weight` is missing",
        ),
        (
            &bn,
            &n[2..],
            "the norm `a.n` keeps no running statistics (GroupNorm, InstanceNorm or track_running_stats=False): it cannot be folded",
        ),
        (
            r#"{"seq": [{"conv": "{p}.c", "bias": "optional"}, {"scale": "{p}.s"}]}"#,
            &["a.s"],
            "`a.s` is missing",
        ),
        (
            r#"{"seq": [{"conv": "{p}.c", "bias": true}]}"#,
            &["a.c.bias"],
            "`a.c.bias` is missing",
        ),
        (
            r#"{"sum": [{"optional": {"conv": "{p}.d2", "bias": "optional"}}]}"#,
            &["a.d2.weight"],
            "none of its branches is there: `a.d2.weight` is missing",
        ),
        (
            r#"{"seq": [{"optional": {"conv": "{p}.d2", "bias": "optional"}}]}"#,
            &["a.d2.weight"],
            "none of its steps is there: `a.d2.weight` is missing",
        ),
        (
            r#"{"optional": {"conv": "{p}.d2", "bias": "optional"}}"#,
            &["a.d2.weight"],
            "none of its branches is there: `a.d2.weight` is missing",
        ),
        (
            r#"{"sum": [{"optional": {"conv": "{p}.d2", "bias": false}}, {"bn": "{p}.n"}]}"#,
            &["a.d2.weight"],
            "no conv of it is in the file; `a.d2.weight` would be one",
        ),
        (
            r#"{"sum": [{"conv": "{p}.c", "bias": "optional"}, {"mean": "{p}.d2.weight"}]}"#,
            &["a.d2.weight"],
            "`a.d2.weight` is missing, whose kernel an average pooling is as large as",
        ),
    ] {
        let error = planned(&without(gone), &fused(expression)).expect_err(expected);
        assert_eq!(error.to_string(), format!("block `a`: {expected}"));
        if let Err(error) = planned(&without(&[]), &fused(expression)) {
            panic!("beside {expected:?}: {error}");
        }
    }
    // A norm of its statistics alone is `affine=False`.
    assert!(planned(&without(&n[..2]), &fused(&bn)).is_ok());
    // An expression that does not fit the tensors, and one that does.
    for (expression, expected, twin) in [
        (
            r#"{"sum": [{"conv": "{p}.c", "bias": "optional"}, {"mean": "{p}.s"}]}"#,
            "`a.s` has no kernel that an average pooling could be as large as",
            r#"{"sum": [{"conv": "{p}.c", "bias": "optional"}, {"mean": "{p}.c.weight"}]}"#,
        ),
        (
            r#"{"conv": "{p}.c", "bias": "optional", "dilation": 512}"#,
            "`a.c.weight` [4, 4, 3, 3] at dilation [512, 512] covers more than 1024 taps",
            r#"{"conv": "{p}.c", "bias": "optional", "dilation": 5}"#,
        ),
        (
            r#"{"conv": "{p}.c", "bias": "optional", "axes": "ohw"}"#,
            "`a.c.weight` has shape [4, 4, 3, 3]; expected the axes `ohw`",
            r#"{"conv": "{p}.c", "bias": "optional", "axes": "oihw"}"#,
        ),
    ] {
        let error = planned(&without(&[]), &fused(expression)).expect_err(expected);
        assert_eq!(error.to_string(), format!("block `a`: {expected}"));
        assert!(planned(&without(&[]), &fused(twin)).is_ok(), "{twin}");
    }
    // A conv that is to have no bias.
    let without_bias = fused(c).replacen(r#""fuse""#, r#""bias": false, "fuse""#, 1);
    let error = planned(&without(&[]), &without_bias).expect_err("a bias");
    assert_eq!(
        error.to_string(),
        "block `a`: `a.c.bias` adds a constant, and the recipe says that the block has no `bias`"
    );
    assert!(planned(&without(&["a.c.bias"]), &without_bias).is_ok());
    // A dilation that stands in a name.
    let by_name = recipe(
        r#"{"at": "{p}.d{i}.weight", "fuse": {"{p}.out": {"conv": "{p}.d{i}", "bias": "optional", "dilation": "{i}"}}}"#,
    );
    let named = |name: &str| planned(&ones(&[(name, &[4, 4, 3, 3])]), &by_name);
    let error = named("a.d0.weight").expect_err("no distance");
    assert_eq!(
        error.to_string(),
        "block `a`: `0` is not a dilation; expected a number from 1 to 1024"
    );
    assert!(named("a.d2.weight").is_ok());
    // Shapes keep their own words as a cause.
    let error = planned(
        &without(&[]),
        &fused(r#"{"seq": [{"conv": "{p}.c", "bias": "optional"}, {"scale": "{p}.v"}]}"#),
    );
    let error = error.expect_err("five values");
    assert_eq!(error.to_string(), "block `a`: shapes do not fit");
    let cause = std::error::Error::source(&error).expect("a cause");
    assert_eq!(
        cause.to_string(),
        "`a.v` has 5 values; expected 4, one per channel"
    );
}

#[test]
fn tensors_that_have_no_single_fate() {
    let two = [
        ("a.c.weight", &[4, 4, 3, 3][..]),
        ("a.d.weight", &[4, 4, 1, 1]),
        ("a.i", &[4]),
    ];
    let mut tensors = ones(&two);
    tensors.tensors.insert(
        "a.i".to_owned(),
        Held {
            dtype: safetensors::Dtype::I32,
            shape: vec![4],
            bytes: vec![0; 16],
        },
    );
    let c = r#""fuse": {"{p}.out": {"conv": "{p}.c", "bias": "optional"}}"#;
    let d = r#""fuse": {"{p}.more": {"conv": "{p}.d", "bias": "optional"}}"#;
    let both = r#""fuse": {"{p}.out": {"sum": [{"conv": "{p}.c", "bias": "optional"}, {"conv": "{p}.d", "bias": "optional"}]}}"#;
    let at = |name: &str, rest: &str| format!(r#"{{"at": "{{p}}.{name}.weight", {rest}}}"#);
    for (blocks, expected, twin) in [
        (
            format!("{}, {}", at("d", d), at("c", both)),
            "block `a.out`: `a.d.weight` is a part of block `a` too; a tensor can be fused once",
            format!("{}, {}", at("d", d), at("c", c)),
        ),
        (
            format!("{}, {}", at("d", &d.replace("more", "out")), at("c", c)),
            "two tensors would be written as `a.out.weight`: a fused tensor of block `a` and a fused tensor of block `a.out`",
            format!("{}, {}", at("d", d), at("c", c)),
        ),
        (
            at(
                "c",
                &format!(r#"{c}, "rename": {{"{{p}}.d": "{{p}}.out"}}"#),
            ),
            "two tensors would be written as `a.out.weight`: a copy of `a.d.weight` and a fused tensor of block `a`",
            at(
                "c",
                &format!(r#"{c}, "rename": {{"{{p}}.d": "{{p}}.new"}}"#),
            ),
        ),
        (
            at(
                "c",
                &format!(r#"{c}, "rename": {{"{{p}}.d.weight": "__metadata__"}}"#),
            ),
            "`a.d.weight` would be renamed to `__metadata__`, which is no name of a tensor in the format",
            at(
                "c",
                &format!(r#"{c}, "rename": {{"{{p}}.d.weight": "metadata"}}"#),
            ),
        ),
        (
            at(
                "c",
                &format!(
                    r#"{c}, "set": {{"{{p}}.d.weight": 0}}, "rename": {{"{{p}}.i": "{{p}}.d.weight"}}"#
                ),
            ),
            "two tensors would be written as `a.d.weight`: a copy of `a.i` and a tensor that the recipe sets",
            at("c", &format!(r#"{c}, "set": {{"{{p}}.d.weight": 0}}"#)),
        ),
        (
            at("c", &format!(r#"{c}, "set": {{"{{p}}.i": 0}}"#)),
            "block `a`: `a.i` is I32; only a floating-point tensor can be set to 0",
            at("c", &format!(r#"{c}, "set": {{"{{p}}.d.weight": 0}}"#)),
        ),
        (
            at("c", &format!(r#"{c}, "set": {{"{{p}}.d.weight": -1e39}}"#)),
            "block `a`: `a.d.weight` is f32, which cannot hold the -1e39 it is set to",
            at("c", &format!(r#"{c}, "set": {{"{{p}}.d.weight": -1e38}}"#)),
        ),
        (
            at(
                "c",
                r#""fuse": {"{p}.out": {"seq": [{"conv": "{p}.c", "bias": "optional"}, {"scale": "{p}.i"}]}}"#,
            ),
            "block `a`: `a.i` has dtype I32, which no arithmetic is defined for; expected F64, F32, F16 or BF16",
            at("c", c),
        ),
    ] {
        let error = planned(&tensors, &recipe(&blocks)).expect_err(expected);
        assert_eq!(error.to_string(), expected);
        if let Err(error) = planned(&tensors, &recipe(&twin)) {
            panic!("beside {expected:?}: {error}");
        }
    }
    // A tensor with a name that only blocks of the family have.
    let owning = recipe(&at("c", c)).replacen(r#""eps""#, r#""owns": ["c"], "eps""#, 1);
    let orphan = planned(&ones(&[two[0], ("b.c.bias", &[4])]), &owning).expect_err("an orphan");
    assert_eq!(
        orphan.to_string(),
        "`b.c.bias` belongs to a block of recipe `own` that is not whole, `b`: `b.c.weight` is missing"
    );
    // A norm of which nobody says the eps: no text gives such a recipe.
    let with_norm =
        recipe(r#"{"at": "{p}.c", "fuse": {"{p}.c": {"conv": "{p}.c", "bn": "{p}.n"}}}"#);
    let mut parsed = recipe::parse(&with_norm, "own").expect("a recipe");
    let four = ["weight", "bias", "running_mean", "running_var"].map(|end| format!("a.n.{end}"));
    let mut tensors: Vec<(&str, &[usize])> = vec![("a.c.weight", &[4, 4, 1, 1])];
    tensors.extend(four.iter().map(|name| (name.as_str(), &[4][..])));
    let place = Place::new();
    ones(&tensors).write(&place.path("x"));
    let file = Checkpoint::open(place.path("x")).expect("a file");
    let plan = |parsed: &recipe::Recipe| plan::plan(file.tensors(), parsed, &Options::default());
    assert!(plan(&parsed).is_ok());
    parsed.eps = None;
    assert_eq!(
        plan(&parsed).expect_err("no eps").to_string(),
        "block `a`: no eps is known of the batch norm `a.n`; the recipe has to state one"
    );
    assert!(planned(&ones(&[two[0], ("b.d.bias", &[4])]), &owning).is_ok());
}

/// What follows where no recipe knows a block.
const WAYS_ON: &str = "\n  a recipe of your own: `repfuse recipes learn MODEL.pt2`; see docs/recipes.md\n  \
    no recipe at all: `repfuse fuse MODEL.onnx OUT.onnx`, or the same of a .pt2\n  \
    by the name of a model: `repfuse recipes --for MODEL`, then `--recipe NAME`";

#[test]
fn files_that_no_recipe_fits() {
    let place = Place::new();
    let whole = checkpoint(1, 4);
    whole.write(&place.path("in.safetensors"));
    let run = |args: &str, code: i32, expected: &str| {
        let ran = place.run(args);
        assert_eq!(
            ran.all(),
            (Some(code), "", &*format!("repfuse: {expected}\n")),
            "{args}"
        );
    };
    ones(&[("a.b", &[1])]).write(&place.path("other.safetensors"));
    run(
        "fuse other.safetensors x",
        1,
        &format!("no block of a known family is in this file{WAYS_ON}"),
    );
    run(
        "fuse other.safetensors x --recipe repvgg",
        1,
        "no block of recipe `repvgg` is in this file",
    );
    let mut half = whole.clone();
    half.tensors.remove("stage0.0.rbr_dense.conv.weight");
    half.write(&place.path("half.safetensors"));
    run(
        "fuse half.safetensors x",
        1,
        &format!(
            "no block of a known family is in this file\n  `stage0.0` looks like `repvgg` but `stage0.0.rbr_dense.conv.weight` is missing{WAYS_ON}"
        ),
    );
    assert_eq!(place.run("fuse in.safetensors x -q").code(), Some(0));
    run(
        "fuse x y --recipe repvgg",
        1,
        "nothing to fuse: the file is already in deploy form, for `stage0.0.rbr_reparam.weight` is in it",
    );
    run(
        "fuse in.safetensors y --only nothing",
        1,
        "none of the 1 blocks is selected; --only and --skip select them, and `repfuse inspect` shows their names",
    );
    run(
        "fuse in.safetensors y --recipe repvg",
        2,
        "there is no recipe `repvg`; did you mean `repvgg`? `repfuse recipes` lists them, and a path ending in `.json` names your own",
    );
    run(
        "fuse in.safetensors y --recipe something-else",
        2,
        "there is no recipe `something-else`; `repfuse recipes` lists them, and a path ending in `.json` names your own",
    );
    run(
        "fuse in.safetensors y --recipe ./mine",
        2,
        "cannot read the recipe `./mine`: No such file or directory (os error 2)",
    );
}

#[test]
fn files_that_several_recipes_fit() {
    let place = Place::new();
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    let checkpoint = Checkpoint::open(place.path("in.safetensors")).expect("a checkpoint");
    let block = r#"{"at": "{p}.rbr_dense.conv.weight", "fuse": {"{p}.out": {"conv": "{p}.rbr_dense.conv", "bias": "optional"}}}"#;
    let one = recipe::parse(&recipe(block), "one.json").expect("a recipe");
    let mut other = one.clone();
    other.name = "other".to_owned();
    let recipes = [one, other];
    let error = recipe::detect_one(checkpoint.tensors(), &recipes).expect_err("two");
    assert_eq!(
        error.to_string(),
        "the recipes `own` and `other` fit equally well"
    );
    assert_eq!(
        recipe::detect_one(checkpoint.tensors(), &recipes[..1])
            .expect("one")
            .name,
        "own"
    );

    // A recipe that asks for evidence that is not there.
    let tensors = [
        ("model.0.conv.weight", &[4, 3, 3, 3][..]),
        ("model.0.bn.weight", &[4]),
        ("model.0.bn.bias", &[4]),
        ("model.0.bn.running_mean", &[4]),
        ("model.0.bn.running_var", &[4]),
        ("model.1.cv1.conv.weight", &[4, 4, 1, 1]),
        ("model.2.linear.weight", &[4, 4]),
    ];
    ones(&tensors[..5]).write(&place.path("little.safetensors"));
    let ran = place.run("fuse little.safetensors x");
    let hint = "\n  `model.0.bn.bias` looks like `ultralytics-cls` but nothing is named `{p}.model.{i}.conv.conv.weight`\n";
    assert!(ran.stderr.contains(hint), "{}", ran.stderr);
    ones(&tensors).write(&place.path("enough.safetensors"));
    assert_eq!(
        place.run("fuse enough.safetensors x -q").all(),
        (Some(0), "", "")
    );
}

// Files

#[test]
fn element_types_without_arithmetic() {
    let place = Place::new();
    let header = r#"{"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    place.write("x", bytes(header, &[0, 0, 0, 0, 0, 0, 0x80, 0x3f]));
    let file = Checkpoint::open(place.path("x")).expect("a checkpoint");
    let read = |name: &str| {
        use repfuse::algebra::Values;
        Reader::new(&file, 16).vector(file.get(name).expect("a tensor"), 0, 1)
    };
    assert_eq!(
        read("a").expect_err("integers").to_string(),
        "`a` has dtype I32, which no arithmetic is defined for; expected F64, F32, F16 or BF16"
    );
    assert_eq!(read("b").expect("a number"), [1.0]);
}

/// What is copied may be renamed, and so make a header longer than it was.
#[test]
fn headers_that_nobody_would_read() {
    let place = Place::new();
    let attempt = |long: usize| {
        let output = Output {
            name: "a".to_owned(),
            dtype: Dtype::from_name("U8"),
            shape: vec![0],
            byte_len: 0,
        };
        let layout = Layout::new(&[&output], vec![("k".to_owned(), "v".repeat(long))]);
        let destination = Destinations::file(&place.path("x")).expect("a place");
        Writer::create(destination, &layout).and_then(|writer| writer.finish(false))
    };
    let error = attempt(100_000_000).expect_err("a long header");
    let expected = format!(
        "the header of `{}` would have 100000080 bytes; the format allows 100000000",
        place.path("x").display()
    );
    assert_eq!(error.to_string(), expected);
    assert!(place.names().is_empty());
    attempt(1000).expect("a short header");
    assert_eq!(place.names(), ["x"]);
}

/// What is written is what is read: headers round-trip.
#[test]
fn headers_are_read_as_they_were_written() {
    let entry = |name: &str, dtype: &str, shape: &[usize], start, end| Entry {
        name: name.to_owned(),
        dtype: Dtype::from_name(dtype),
        shape: shape.to_vec(),
        start,
        end,
    };
    let header = Header {
        entries: vec![
            entry("a\u{1b}\"\\\n", "F64", &[1], 0, 8),
            entry("", "mine", &[7, 7], 8, 9),
            entry("ü", "BOOL", &[0, 3], 9, 9),
        ],
        metadata: vec![
            ("k\u{0}".to_owned(), "v\u{9b}".to_owned()),
            ("a".to_owned(), String::new()),
        ],
    };
    let written = header::serialize(&header);
    assert_eq!(written.len() % 8, 0);
    assert_eq!(header::parse(&written[8..], 9), Ok(header));
}

/// No read of a tensor goes into the next one.
#[test]
fn reads_end_with_their_tensor() {
    let place = Place::new();
    ones(&[("a", &[2]), ("b", &[2])]).write(&place.path("in.safetensors"));
    let file = Checkpoint::open(place.path("in.safetensors")).expect("a checkpoint");
    let mut bytes = [0; 8];
    let a = file.get("a").expect("a tensor");
    file.read_at(a, 0, &mut bytes).expect("its bytes");
    let error = file.read_at(a, 4, &mut bytes).expect_err("half of `b`");
    let cause = std::error::Error::source(&error).expect("a cause");
    assert_eq!(cause.to_string(), "`a` ends before that");
}

// Verdicts

#[test]
fn why_a_conv_does_not_pass() {
    let mut verdict = BlockVerdict {
        name: "a".to_owned(),
        module: "a.out".to_owned(),
        expression: "3×3".to_owned(),
        ratio: 2.5,
        absolute: 0.5,
        relative: 0.5,
        at: Some(verify::Place {
            tensor: "a.out.weight".to_owned(),
            index: vec![0, 1, 2, 0],
            found: 0.7411,
            expected: Some(0.7401),
            whole_channel: false,
        }),
        impulses: [4, 4],
        types: None,
        failure: None,
        accepted: false,
    };
    let said = "`a.out.weight[0,1,2,0]` is 0.7411, expected 0.7401";
    assert_eq!(verdict.why_not().as_deref(), Some(said));
    for (found, expected, said) in [
        (f64::NAN, None, "`a.out.weight[0,1,2,0]` is not a number"),
        (f64::INFINITY, None, "`a.out.weight[0,1,2,0]` is infinite"),
        (
            1.0,
            Some(1.5),
            "`a.out.weight[0,1,2,0]` gives an output or a bound beyond the largest number",
        ),
    ] {
        verdict.ratio = f64::NAN;
        let at = verdict.at.as_mut().expect("a place");
        (at.found, at.expected) = (found, expected);
        assert_eq!(verdict.why_not().as_deref(), Some(said));
    }
    let at = verdict.at.as_mut().expect("a place");
    verdict.ratio = 2.0;
    (at.found, at.expected) = (1.5, Some(1.25));
    (at.index, at.whole_channel) = (vec![7], true);
    let said = "output channel `a.out.weight[7]` gives 1.5 for a random map, expected 1.25";
    assert_eq!(verdict.why_not().as_deref(), Some(said));
    verdict.at = None;
    assert_eq!(verdict.why_not().as_deref(), Some("nothing was compared"));
    verdict.failure = Some("`a.out.weight` is missing".to_owned());
    assert_eq!(verdict.why_not(), verdict.failure);
    verdict.accepted = true;
    assert_eq!(verdict.why_not(), None);
}
