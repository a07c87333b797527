//! The consistency measures against what PyTorch computed (see `fixtures/generate_torch.py`), and where PyTorch's own
//! formula loses its digits, against the expansion of the divergence.

use ndarray::{Array2, Axis, array};
use repfuse::network::divergence::{
    bidirectional_kl, cross_entropy, dropout, dropout_kl, dropout_mask, kl_divergence, log_softmax,
    r_drop_loss,
};
use repfuse::verify::random::SplitMix64;
use safetensors::SafeTensors;

static FIXTURE: &[u8] = include_bytes!("../../fixtures/torch_consistency.safetensors");

struct Pair<'a> {
    file: &'a SafeTensors<'a>,
    name: &'a str,
}

impl Pair<'_> {
    fn bytes(&self, key: &str) -> (Vec<usize>, Vec<[u8; 8]>) {
        let tensor = self.file.tensor(&format!("{}: {key}", self.name)).unwrap();
        let values = tensor
            .data()
            .chunks(8)
            .map(|bytes| bytes.try_into().unwrap())
            .collect();
        (tensor.shape().to_vec(), values)
    }

    fn matrix(&self, key: &str) -> Array2<f64> {
        let (shape, values) = self.bytes(key);
        let values = values.into_iter().map(f64::from_le_bytes).collect();
        Array2::from_shape_vec((shape[0], shape[1]), values).unwrap()
    }

    fn labels(&self) -> Vec<usize> {
        let (_, values) = self.bytes("labels");
        values
            .into_iter()
            .map(|bytes| i64::from_le_bytes(bytes).try_into().unwrap())
            .collect()
    }

    /// Compares with the number PyTorch gave, relative to `scale` times that number.
    fn check(&self, key: &str, found: f64, tolerance: f64) {
        let (_, values) = self.bytes(key);
        let expected = f64::from_le_bytes(values[0]);
        let error = (found - expected).abs();
        assert!(
            error <= tolerance * expected.abs(),
            "{}: {key}: {found:e}, expected {expected:e}",
            self.name
        );
    }
}

#[test]
fn agrees_with_pytorch() {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    // PyTorch's sum of terms of both signs is itself off by 1e-16 of its largest term, which for close distributions is
    // a larger part of their divergence.
    for (name, tolerance) in [
        ("ordinary", 1e-13),
        ("close", 1e-10),
        ("large", 1e-13),
        ("two classes", 1e-12),
        ("one class", 1e-12),
    ] {
        let pair = Pair { file: &file, name };
        let (a, b, labels) = (
            pair.matrix("logits1"),
            pair.matrix("logits2"),
            pair.labels(),
        );

        let expected = pair.matrix("log_softmax1");
        let found = log_softmax(a.view()).unwrap();
        assert!(
            found
                .iter()
                .zip(&expected)
                .all(|(x, y)| (x - y).abs() <= 1e-15 * (1.0 + y.abs())),
            "{name}"
        );
        pair.check(
            "kl12",
            kl_divergence(a.view(), b.view()).unwrap(),
            tolerance,
        );
        pair.check(
            "kl21",
            kl_divergence(b.view(), a.view()).unwrap(),
            tolerance,
        );
        pair.check(
            "bidirectional",
            bidirectional_kl(a.view(), b.view()).unwrap(),
            tolerance,
        );
        pair.check(
            "cross_entropy1",
            cross_entropy(a.view(), &labels).unwrap(),
            1e-14,
        );
        pair.check(
            "cross_entropy2",
            cross_entropy(b.view(), &labels).unwrap(),
            1e-14,
        );
        for alpha in [0.0, 0.5, 5.0] {
            let found = r_drop_loss(a.view(), b.view(), &labels, alpha).unwrap();
            pair.check(&format!("r_drop alpha={alpha}"), found, 1e-13);
        }
    }
}

/// For `q = softmax(x + ε·v)` the divergence is `½ ε² Var_p(v) + O(ε³)` in either direction.
#[test]
fn keeps_its_digits_for_distributions_that_differ_by_rounding() {
    let x = array![[0.25, -1.5, 2.0, 0.5]];
    let v = array![[1.0, -2.0, 0.5, 3.0]];
    let p = log_softmax(x.view()).unwrap().mapv(f64::exp);
    let mean = (&p * &v).sum();
    let variance = (&p * (&v - mean).mapv(|d| d * d)).sum();
    for power in [-12, -20, -26] {
        let epsilon = 2.0_f64.powi(power);
        let y = &x + &v * epsilon;
        let expected = epsilon * epsilon * variance / 2.0;
        for found in [
            kl_divergence(x.view(), y.view()).unwrap(),
            kl_divergence(y.view(), x.view()).unwrap(),
            bidirectional_kl(x.view(), y.view()).unwrap(),
        ] {
            assert!(
                (found / expected - 1.0).abs() < 4.0 * epsilon.max(1e-8),
                "2^{power}: {found:e}, {expected:e}"
            );
        }
    }
}

#[test]
fn equal_logits_have_no_divergence_and_shifted_ones_next_to_none() {
    let x = array![[0.1, 700.0, -1e5], [3.0, 3.0, 3.0]];
    assert_eq!(bidirectional_kl(x.view(), x.view()), Ok(0.0));
    assert_eq!(kl_divergence(x.view(), x.view()), Ok(0.0));
    let shifted = &x + 0.7;
    assert!((0.0..1e-24).contains(&bidirectional_kl(x.view(), shifted.view()).unwrap()));
}

#[test]
fn distributions_without_overlap_have_a_finite_divergence() {
    let (x, y) = (array![[1e4, 0.0]], array![[0.0, 1e4]]);
    assert_eq!(kl_divergence(x.view(), y.view()), Ok(1e4));
    assert_eq!(bidirectional_kl(x.view(), y.view()), Ok(1e4));
}

#[test]
fn bidirectional_is_the_mean_of_both_directions_and_symmetric() {
    let mut random = SplitMix64::new(5);
    let mut logits = || Array2::from_shape_simple_fn((7, 9), || random.next_unit() * 10.0);
    let (x, y) = (logits(), logits());
    let both = bidirectional_kl(x.view(), y.view()).unwrap();
    let mean = f64::midpoint(
        kl_divergence(x.view(), y.view()).unwrap(),
        kl_divergence(y.view(), x.view()).unwrap(),
    );
    assert!((both / mean - 1.0).abs() < 1e-14);
    let swapped = bidirectional_kl(y.view(), x.view()).unwrap();
    assert!((both / swapped - 1.0).abs() < 1e-14);
}

/// The first numbers of the reference implementation for the seed 1234567.
#[test]
fn the_random_stream_is_splitmix64() {
    let mut random = SplitMix64::new(1_234_567);
    let found: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
    assert_eq!(
        found,
        [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423
        ]
    );
    assert!((0..1000).all(|_| (0.0..1.0).contains(&random.next_unit())));
}

#[test]
fn dropout_keeps_the_expected_value() {
    let mut random = SplitMix64::new(1);
    for probability in [0.0, 0.1, 0.5, 0.9] {
        let mask = dropout_mask((500, 400), probability, &mut random).unwrap();
        let kept = 1.0 / (1.0 - probability);
        assert!(
            mask.iter().all(|&value| value == 0.0 || value == kept),
            "{probability}"
        );
        // Five standard deviations of the mean of 200,000 values.
        let deviation = (probability / (1.0 - probability) / 200_000.0_f64).sqrt();
        assert!(
            (mask.mean().unwrap() - 1.0).abs() <= 5.0 * deviation,
            "{probability}"
        );
    }
    assert_eq!(
        dropout_mask((2, 3), 1.0, &mut random),
        Ok(Array2::zeros((2, 3)))
    );
}

#[test]
fn dropout_depends_on_the_seed_alone() {
    let x = Array2::from_shape_fn((3, 50), |(i, j)| {
        f64::from(u8::try_from(i * 50 + j).unwrap()) + 1.0
    });
    let run = |seed| dropout(x.view(), 0.3, &mut SplitMix64::new(seed)).unwrap();
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    // What is not dropped is scaled, and a second mask of the same stream is another one.
    assert!(
        run(1)
            .iter()
            .zip(&x)
            .all(|(&y, &x)| y == 0.0 || y == x * (1.0 / 0.7))
    );
    let mut random = SplitMix64::new(1);
    assert_ne!(
        dropout(x.view(), 0.3, &mut random),
        dropout(x.view(), 0.3, &mut random)
    );
}

/// The divergence of two sub-models is that of the logits computed by hand with the two masks of the same stream.
#[test]
fn sub_models_of_a_head_differ_by_their_masks_alone() {
    let features = array![[1.0, -2.0, 0.5, 4.0], [0.0, 1.5, -1.0, 2.0]];
    let weight = array![
        [0.5, 1.0, -1.0, 0.25],
        [1.0, 0.0, 2.0, -0.5],
        [-0.25, 0.5, 1.0, 1.0]
    ];
    let bias = array![0.1, -0.2, 0.3];
    let run = |probability| {
        dropout_kl(
            features.view(),
            weight.view(),
            bias.view(),
            probability,
            &mut SplitMix64::new(3),
        )
        .unwrap()
    };
    assert_eq!(run(0.0), 0.0);

    let mut random = SplitMix64::new(3);
    let mut logits = || {
        let masked = dropout_mask((2, 4), 0.5, &mut random).unwrap() * &features;
        let mut logits = Array2::zeros((2, 3));
        for ((sample, class), value) in logits.indexed_iter_mut() {
            *value = masked
                .index_axis(Axis(0), sample)
                .dot(&weight.index_axis(Axis(0), class))
                + bias[class];
        }
        logits
    };
    let (first, second) = (logits(), logits());
    assert_ne!(first, second);
    let expected = bidirectional_kl(first.view(), second.view()).unwrap();
    assert!((run(0.5) / expected - 1.0).abs() < 1e-13);
}

#[test]
fn errors_say_what_was_found_and_what_was_expected() {
    let x = array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]];
    let v = x.view();
    let mut random = SplitMix64::new(0);
    let check = |found: Result<f64, repfuse::network::divergence::ConsistencyError>,
                 expected: &str| {
        assert_eq!(found.unwrap_err().to_string(), expected);
    };
    check(
        bidirectional_kl(v, v.t()),
        "logits of shape [3, 2] cannot be compared with logits of shape [2, 3]; the shapes must be equal",
    );
    check(
        cross_entropy(Array2::zeros((0, 2)).view(), &[]),
        "the logits have shape [0, 2]; at least one sample and one class are needed",
    );
    for (bad, name) in [
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
        (f64::NEG_INFINITY, "-inf"),
    ] {
        let mut y = x.clone();
        y[[2, 1]] = bad;
        let expected = format!("the logit of sample 2, class 1 is {name}; logits must be finite");
        check(kl_divergence(v, y.view()), &expected);
        check(bidirectional_kl(y.view(), v), &expected);
        check(r_drop_loss(v, y.view(), &[0, 0, 0], 1.0), &expected);
    }
    check(
        cross_entropy(v, &[0, 1]),
        "found 2 labels for 3 samples; each sample needs one",
    );
    check(
        r_drop_loss(v, v, &[0, 2, 1], 1.0),
        "the label of sample 1 is 2; the classes are numbered from 0 to 1",
    );
    check(
        r_drop_loss(v, v, &[0, 0, 0], f64::NAN),
        "`alpha` is NaN; it must be finite",
    );
    check(
        r_drop_loss(v, v, &[0, 0, 0], f64::INFINITY),
        "`alpha` is inf; it must be finite",
    );
    for probability in [-0.1, 1.1, f64::NAN] {
        check(
            dropout(v, probability, &mut random).map(|_| 0.0),
            &format!("the dropout probability is {probability}; it must be between 0 and 1"),
        );
    }
    check(
        dropout_kl(
            v,
            array![[1.0, 2.0, 3.0]].view(),
            array![0.0].view(),
            0.5,
            &mut random,
        ),
        "features of shape [3, 2], a weight of shape [1, 3] and a bias of 1 do not fit; \
         expected [batch, features], [classes, features] and classes",
    );
}
