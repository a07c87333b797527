//! How far two output distributions of one network are apart, as R-Drop measures it.
//!
//! R-Drop (Liang et al., NeurIPS 2021, <https://arxiv.org/abs/2106.14448>) passes each sample through two dropout
//! sub-models and adds to the cross-entropy of both the *bidirectional* KL divergence of what they predict:
//!
//! ```text
//! L = −ln P₁(y|x) − ln P₂(y|x) + α · ½ (KL(P₁‖P₂) + KL(P₂‖P₁))
//! ```
//!
//! Everything here is the mean over the batch, in nats, and takes logits of shape \[batch, classes\]. The authors' code
//! (<https://github.com/dropreg/R-Drop>) reduces otherwise from task to task: it sums the divergence over the batch, and
//! for images leaves out the ½. Here the paper's formula holds for each sample.
//!
//! Two forms of one network differ by rounding only, and then `Σ p·(ln p − ln q)` loses all its digits: its terms of
//! both signs cancel to a sum of second order. So the divergences are summed in forms that have no negative terms, with `d = ln p − ln q`:
//!
//! ```text
//! KL(P‖Q)                  = Σ p·d + (q − p)       since Σ (q − p) = 0
//! ½ (KL(P‖Q) + KL(Q‖P))    = ½ Σ (p − q)·d
//! ```

use ndarray::{Array2, ArrayView1, ArrayView2, Zip};

use crate::verify::random::SplitMix64;

/// Distributions that cannot be compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsistencyError {
    /// There is no sample, or no class to predict.
    #[error("the logits have shape {shape:?}; at least one sample and one class are needed")]
    Empty {
        /// \[batch, classes\].
        shape: [usize; 2],
    },
    /// The two sides are not logits of the same samples and classes.
    #[error(
        "logits of shape {first:?} cannot be compared with logits of shape {second:?}; the shapes must be equal"
    )]
    Shapes {
        /// The first side's shape.
        first: [usize; 2],
        /// The second side's shape.
        second: [usize; 2],
    },
    /// A logit is NaN or infinite.
    #[error("the logit of sample {sample}, class {class} is {value}; logits must be finite")]
    NotFinite {
        /// The row.
        sample: usize,
        /// The column.
        class: usize,
        /// What stands there.
        value: f64,
    },
    /// There is not one label per sample.
    #[error("found {found} labels for {expected} samples; each sample needs one")]
    Labels {
        /// The number of labels.
        found: usize,
        /// The number of samples.
        expected: usize,
    },
    /// A label names a class that does not exist.
    #[error("the label of sample {sample} is {label}; the classes are numbered from 0 to {}", classes - 1)]
    Label {
        /// The row.
        sample: usize,
        /// Its label.
        label: usize,
        /// The number of classes.
        classes: usize,
    },
    /// The weight of the divergence is NaN or infinite.
    #[error("`alpha` is {alpha}; it must be finite")]
    Alpha {
        /// What was given.
        alpha: f64,
    },
    /// The probability of dropping a feature is not a probability.
    #[error("the dropout probability is {probability}; it must be between 0 and 1")]
    Probability {
        /// What was given.
        probability: f64,
    },
    /// The parts of a classifier head do not fit together.
    #[error(
        "features of shape {features:?}, a weight of shape {weight:?} and a bias of {bias} do not fit; \
         expected [batch, features], [classes, features] and classes"
    )]
    Head {
        /// The features' shape.
        features: [usize; 2],
        /// The weight's shape.
        weight: [usize; 2],
        /// The bias's length.
        bias: usize,
    },
}

/// The logarithm of the softmax of each row: `x − max − ln Σ exp(x − max)`.
///
/// The largest exponent is 0, so nothing overflows, and the sum is at least 1.
///
/// # Errors
///
/// [`ConsistencyError::Empty`] and [`ConsistencyError::NotFinite`].
pub fn log_softmax(logits: ArrayView2<'_, f64>) -> Result<Array2<f64>, ConsistencyError> {
    if logits.is_empty() {
        return Err(ConsistencyError::Empty {
            shape: shape(logits),
        });
    }
    if let Some(((sample, class), &value)) = logits.indexed_iter().find(|(_, x)| !x.is_finite()) {
        return Err(ConsistencyError::NotFinite {
            sample,
            class,
            value,
        });
    }
    let mut result = logits.to_owned();
    for mut row in result.rows_mut() {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
        row.mapv_inplace(|x| (x - max) - log_sum);
    }
    Ok(result)
}

/// `KL(P‖Q) = Σ p·ln(p/q)` of the softmax of `p_logits` and `q_logits`, the mean over the batch.
///
/// It is `torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)`: PyTorch's first argument is
/// the second distribution.
///
/// # Errors
///
/// [`ConsistencyError::Shapes`], [`ConsistencyError::Empty`] and [`ConsistencyError::NotFinite`].
pub fn kl_divergence(
    p_logits: ArrayView2<'_, f64>,
    q_logits: ArrayView2<'_, f64>,
) -> Result<f64, ConsistencyError> {
    mean_over_classes(p_logits, q_logits, |log_p, log_q| {
        let (p, d) = (log_p.exp(), log_p - log_q);
        // Where the logarithms agree to their last digits, rounding could leave a trace below zero.
        (p * d - difference(log_p, log_q)).max(0.0)
    })
}

/// `½ (KL(P₁‖P₂) + KL(P₂‖P₁))` of the softmax of both logits, the mean over the batch: R-Drop's measure of how far two
/// passes of one network are apart. It is never negative, and exactly 0 for
/// equal logits.
///
/// # Errors
///
/// [`ConsistencyError::Shapes`], [`ConsistencyError::Empty`] and [`ConsistencyError::NotFinite`].
pub fn bidirectional_kl(
    logits1: ArrayView2<'_, f64>,
    logits2: ArrayView2<'_, f64>,
) -> Result<f64, ConsistencyError> {
    mean_over_classes(logits1, logits2, |log_p, log_q| {
        difference(log_p, log_q) * (log_p - log_q) / 2.0
    })
}

/// The cross-entropy `−ln P(label)`, the mean over the batch: `torch.nn.functional.cross_entropy`.
///
/// # Errors
///
/// [`ConsistencyError::Labels`], [`ConsistencyError::Label`], [`ConsistencyError::Empty`] and
/// [`ConsistencyError::NotFinite`].
pub fn cross_entropy(
    logits: ArrayView2<'_, f64>,
    labels: &[usize],
) -> Result<f64, ConsistencyError> {
    let (samples, classes) = logits.dim();
    if labels.len() != samples {
        return Err(ConsistencyError::Labels {
            found: labels.len(),
            expected: samples,
        });
    }
    let log_p = log_softmax(logits)?;
    let mut sum = 0.0;
    for (sample, (row, &label)) in log_p.rows().into_iter().zip(labels).enumerate() {
        sum -= row.get(label).ok_or(ConsistencyError::Label {
            sample,
            label,
            classes,
        })?;
    }
    Ok(sum / count(samples))
}

/// R-Drop's training loss: the cross-entropy of both passes plus `alpha` times their bidirectional KL divergence, the
/// mean over the batch (equation 4 of the paper).
///
/// # Errors
///
/// Every [`ConsistencyError`] but those of dropout.
pub fn r_drop_loss(
    logits1: ArrayView2<'_, f64>,
    logits2: ArrayView2<'_, f64>,
    labels: &[usize],
    alpha: f64,
) -> Result<f64, ConsistencyError> {
    if !alpha.is_finite() {
        return Err(ConsistencyError::Alpha { alpha });
    }
    let divergence = bidirectional_kl(logits1, logits2)?;
    Ok(cross_entropy(logits1, labels)? + cross_entropy(logits2, labels)? + alpha * divergence)
}

/// A dropout mask as `torch.nn.Dropout` applies it in training: each value is 0 with the given probability, and
/// `1 / (1 − probability)` otherwise, so that the expected value of what it multiplies stays the same.
///
/// # Errors
///
/// [`ConsistencyError::Probability`] unless `0 ≤ probability ≤ 1`.
pub fn dropout_mask(
    shape: (usize, usize),
    probability: f64,
    random: &mut SplitMix64,
) -> Result<Array2<f64>, ConsistencyError> {
    if !(0.0..=1.0).contains(&probability) {
        return Err(ConsistencyError::Probability { probability });
    }
    // With probability 1 every number drawn is below it, so the infinite scale is never used.
    let scale = 1.0 / (1.0 - probability);
    Ok(Array2::from_shape_simple_fn(shape, || {
        if random.next_unit() < probability {
            0.0
        } else {
            scale
        }
    }))
}

/// `features` with a new [`dropout_mask`] applied.
///
/// # Errors
///
/// [`ConsistencyError::Probability`] unless `0 ≤ probability ≤ 1`.
pub fn dropout(
    features: ArrayView2<'_, f64>,
    probability: f64,
    random: &mut SplitMix64,
) -> Result<Array2<f64>, ConsistencyError> {
    Ok(dropout_mask(features.dim(), probability, random)? * features)
}

/// The bidirectional KL divergence of two dropout sub-models of a linear classifier head: what dropout itself leaves
/// between two passes, and so a yardstick for what a change of the network's form leaves.
///
/// `features` has the shape \[batch, features\], `weight` \[classes, features\], `bias` \[classes\]. Each sub-model is
/// `weight · dropout(features) + bias` with a mask of its own.
///
/// # Errors
///
/// [`ConsistencyError::Head`], [`ConsistencyError::Probability`], [`ConsistencyError::Empty`] and
/// [`ConsistencyError::NotFinite`].
pub fn dropout_kl(
    features: ArrayView2<'_, f64>,
    weight: ArrayView2<'_, f64>,
    bias: ArrayView1<'_, f64>,
    probability: f64,
    random: &mut SplitMix64,
) -> Result<f64, ConsistencyError> {
    if features.ncols() != weight.ncols() || weight.nrows() != bias.len() {
        return Err(ConsistencyError::Head {
            features: shape(features),
            weight: shape(weight),
            bias: bias.len(),
        });
    }
    let mut sub_model = || Ok(dropout(features, probability, random)?.dot(&weight.t()) + bias);
    let (logits1, logits2) = (sub_model()?, sub_model()?);
    bidirectional_kl(logits1.view(), logits2.view())
}

/// `p − q` from their logarithms. Where they are close, the difference of the rounded exponentials would have few
/// correct digits; where they are far apart, the exponential of the distance could overflow.
fn difference(log_p: f64, log_q: f64) -> f64 {
    let d = log_p - log_q;
    if d.abs() < 1.0 {
        -log_p.exp() * (-d).exp_m1()
    } else {
        log_p.exp() - log_q.exp()
    }
}

/// Sums a function of `ln p` and `ln q` over the classes, and takes the mean over the batch.
fn mean_over_classes(
    p_logits: ArrayView2<'_, f64>,
    q_logits: ArrayView2<'_, f64>,
    term: impl Fn(f64, f64) -> f64,
) -> Result<f64, ConsistencyError> {
    if p_logits.dim() != q_logits.dim() {
        return Err(ConsistencyError::Shapes {
            first: shape(p_logits),
            second: shape(q_logits),
        });
    }
    let (log_p, log_q) = (log_softmax(p_logits)?, log_softmax(q_logits)?);
    let sum = Zip::from(&log_p)
        .and(&log_q)
        .fold(0.0, |sum, &log_p, &log_q| sum + term(log_p, log_q));
    Ok(sum / count(p_logits.nrows()))
}

fn shape(array: ArrayView2<'_, f64>) -> [usize; 2] {
    [array.nrows(), array.ncols()]
}

#[expect(clippy::cast_precision_loss, reason = "no batch has 2⁵³ samples")]
fn count(samples: usize) -> f64 {
    samples as f64
}
