//! Products of constants that are summed over axes: what `einsum` says with letters.

use ndarray::{Array3, ArrayD, Axis, IxDyn};

use super::model::Dim;

/// No product takes more multiply-adds than this. (A kernel of 512×512×3×3 put together over 512 channels takes 1.2 · 10⁹.) What a
/// file may ask for in all follows from how many numbers its constants may have.
pub(super) const MOST_STEPS: usize = 1 << 33;

/// Which axes of some operands are the same, and which are left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Equation {
    /// For each operand a letter for each axis.
    operands: Vec<Vec<char>>,
    /// The letters of the result.
    result: Vec<char>,
}

impl Equation {
    /// What a text as `oihw,o->oihw` says. None where it has an ellipsis, or an operand has a letter twice.
    pub fn parse(text: &str) -> Option<Equation> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (operands, result) = match text.split_once("->") {
            Some((operands, result)) => (operands, Some(result)),
            None => (&*text, None),
        };
        let letters = |text: &str| -> Option<Vec<char>> {
            let fits = text.chars().all(|c| c.is_ascii_alphabetic());
            let letters: Vec<char> = text.chars().collect();
            let once = |c: &char| letters.iter().filter(|other| *other == c).count() == 1;
            (fits && letters.iter().all(once)).then_some(letters)
        };
        let operands: Vec<Vec<char>> = operands.split(',').map(letters).collect::<Option<_>>()?;
        let everywhere = || operands.iter().flatten();
        let result = match result {
            Some(result) => letters(result)?,
            // What only one operand has, in the order of the alphabet.
            None => {
                let alone = |c: &&char| everywhere().filter(|other| other == c).count() == 1;
                let mut result: Vec<char> = everywhere().filter(alone).copied().collect();
                result.sort_unstable();
                result
            }
        };
        let known = result.iter().all(|c| everywhere().any(|other| other == c));
        known.then_some(Equation { operands, result })
    }

    /// The axis of the operand of this number along which each row is multiplied with the other one, a matrix, and whether that has its
    /// inputs first. No answer where it is another product.
    pub fn along(&self, number: usize) -> Option<(usize, bool)> {
        let [a, b] = &self.operands[..] else {
            return None;
        };
        let (rows, matrix) = if number == 0 { (a, b) } else { (b, a) };
        let mut differ = (0..rows.len()).filter(|i| self.result.get(*i) != Some(&rows[*i]));
        let (axis, None) = (differ.next()?, differ.next()) else {
            return None;
        };
        let (from, to) = (rows[axis], *self.result.get(axis)?);
        let fits = self.result.len() == rows.len() && !rows.contains(&to);
        match matrix[..] {
            [a, b] if fits && (a, b) == (to, from) => Some((axis, false)),
            [a, b] if fits && (a, b) == (from, to) => Some((axis, true)),
            _ => None,
        }
    }

    /// How many axes the operand of this number has.
    pub fn rank(&self, number: usize) -> Option<usize> {
        self.operands.get(number).map(Vec::len)
    }

    /// The shape of the result of operands of these shapes.
    pub fn shape(&self, operands: &[Vec<Dim>]) -> Option<Vec<Dim>> {
        let fits = |(shape, letters): (&Vec<Dim>, &Vec<char>)| shape.len() == letters.len();
        let all = operands.iter().zip(&self.operands);
        if operands.len() != self.operands.len() || !all.clone().all(fits) {
            return None;
        }
        let dims = all.flat_map(|(shape, letters)| letters.iter().zip(shape));
        // One of a single element is repeated.
        let of = |c: &char| {
            let mut own = dims.clone().filter(|(letter, _)| *letter == c);
            let wide = own.clone().find(|(_, dim)| **dim != Dim::Known(1));
            wide.or_else(|| own.next()).map(|(_, dim)| dim.clone())
        };
        self.result.iter().map(of).collect()
    }

    /// The product of matrices, with other axes before these, of which the last ones of both are the same. A vector is a row before a
    /// matrix, and a column behind one.
    pub fn of_product(first: usize, second: usize) -> Option<Equation> {
        let before = |rank: usize| {
            let letters: Vec<char> = ('a'..='j').rev().take(rank.saturating_sub(2)).collect();
            letters.into_iter().rev().collect::<Vec<char>>()
        };
        let with = |rank: usize, own: &[char]| [&before(rank)[..], own].concat();
        let (row, column): (&[char], &[char]) = (
            if first > 1 { &['x'] } else { &[] },
            if second > 1 { &['z'] } else { &[] },
        );
        let fits = (1..=12).contains(&first) && (1..=12).contains(&second);
        fits.then(|| Equation {
            operands: vec![
                with(first, &[row, &['y']].concat()),
                with(second, &[&['y'], column].concat()),
            ],
            result: with(first.max(second), &[row, column].concat()),
        })
    }
}

/// Numbers with a letter for each axis.
struct Lettered {
    numbers: ArrayD<f64>,
    letters: Vec<char>,
}

impl Lettered {
    fn len(&self, letter: char) -> usize {
        let axis = self.letters.iter().position(|c| *c == letter);
        axis.map_or(1, |axis| self.numbers.shape()[axis])
    }

    /// With its axes in this order, in memory too.
    fn ordered(self, letters: &[char]) -> Option<ArrayD<f64>> {
        let place = |c: &char| self.letters.iter().position(|own| own == c);
        let order = letters.iter().map(place).collect::<Option<Vec<_>>>()?;
        (order.len() == self.letters.len()).then_some(())?;
        let turned = self.numbers.permuted_axes(&order[..]);
        Some(turned.as_standard_layout().into_owned())
    }

    /// Summed over the axes whose letters are not wanted.
    fn summed(mut self, wanted: impl Fn(char) -> bool) -> Lettered {
        for axis in (0..self.letters.len()).rev() {
            if !wanted(self.letters[axis]) {
                self.numbers = self.numbers.sum_axis(Axis(axis));
                self.letters.remove(axis);
            }
        }
        self
    }
}

/// What an equation makes of operands; none where they do not fit it, or a step has more numbers than `within` allows.
pub(super) fn contracted(
    equation: &Equation,
    operands: &[&ArrayD<f64>],
    within: &dyn Fn(&[usize]) -> bool,
) -> Option<ArrayD<f64>> {
    if operands.len() != equation.operands.len() {
        return None;
    }
    let mut rest = operands.iter().zip(&equation.operands);
    let mut lettered = || {
        let (numbers, letters) = rest.next()?;
        let (numbers, letters) = ((*numbers).clone(), letters.clone());
        (numbers.ndim() == letters.len()).then_some(Lettered { numbers, letters })
    };
    let mut at = lettered()?;
    for i in 1..operands.len() {
        let later = &equation.operands[i + 1..];
        let wanted =
            |c: char| equation.result.contains(&c) || later.iter().flatten().any(|l| *l == c);
        at = two(at, lettered()?, &wanted, within)?;
    }
    at.summed(|c| equation.result.contains(&c))
        .ordered(&equation.result)
}

/// The product of two, summed over the letters that nobody wants.
fn two(
    a: Lettered,
    b: Lettered,
    wanted: &dyn Fn(char) -> bool,
    within: &dyn Fn(&[usize]) -> bool,
) -> Option<Lettered> {
    let (of_a, of_b) = (a.letters.clone(), b.letters.clone());
    let a = a.summed(|c| wanted(c) || of_b.contains(&c));
    let b = b.summed(|c| wanted(c) || of_a.contains(&c));
    let shared = |c: &&char| b.letters.contains(c);
    let (both, left): (Vec<char>, Vec<char>) = {
        let (both, left): (Vec<&char>, Vec<&char>) = a.letters.iter().partition(shared);
        (
            both.into_iter().copied().collect(),
            left.into_iter().copied().collect(),
        )
    };
    let right: Vec<char> = b
        .letters
        .iter()
        .filter(|c| !a.letters.contains(c))
        .copied()
        .collect();
    if both.iter().any(|c| a.len(*c) != b.len(*c)) {
        return None;
    }
    let (batch, summed): (Vec<char>, Vec<char>) = both.iter().partition(|c| wanted(**c));
    let size = |letters: &[char], of: &Lettered| {
        letters
            .iter()
            .try_fold(1usize, |n, c| n.checked_mul(of.len(*c)))
    };
    let (batches, sums) = (size(&batch, &a)?, size(&summed, &a)?);
    let (rows, columns) = (size(&left, &a)?, size(&right, &b)?);
    let steps = [batches, sums, rows, columns]
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))?;
    let shape: Vec<usize> = [(&batch, &a), (&left, &a), (&right, &b)]
        .iter()
        .flat_map(|(letters, of)| letters.iter().map(|c| of.len(*c)))
        .collect();
    if steps > MOST_STEPS || !within(&shape) {
        return None;
    }
    let a = a.ordered(&[&batch[..], &left, &summed].concat())?;
    let b = b.ordered(&[&batch[..], &summed, &right].concat())?;
    let a = a.into_shape_with_order((batches, rows, sums)).ok()?;
    let b = b.into_shape_with_order((batches, sums, columns)).ok()?;
    let mut out = Array3::<f64>::zeros((batches, rows, columns));
    for i in 0..batches {
        let product = a.index_axis(Axis(0), i).dot(&b.index_axis(Axis(0), i));
        out.index_axis_mut(Axis(0), i).assign(&product);
    }
    Some(Lettered {
        numbers: out.into_shape_with_order(IxDyn(&shape)).ok()?,
        letters: [batch, left, right].concat(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Equation, contracted};
    use ndarray::{ArrayD, IxDyn};

    fn counted(shape: &[usize]) -> ArrayD<f64> {
        let mut n = 0.0;
        ArrayD::from_shape_simple_fn(IxDyn(shape), || {
            n += 1.0;
            n * 0.5 - 3.0
        })
    }

    fn of(text: &str, operands: &[&ArrayD<f64>]) -> Option<ArrayD<f64>> {
        contracted(&Equation::parse(text)?, operands, &|_| true)
    }

    #[test]
    fn kernels_are_put_together_as_their_letters_say() {
        let (first, second) = (counted(&[2, 3]), counted(&[4, 2, 3, 3]));
        let made = of("ti,othw->oihw", &[&first, &second]).expect("it fits");
        assert_eq!(made.shape(), [4, 3, 3, 3]);
        for (at, number) in made.indexed_iter() {
            let sum: f64 = (0..2)
                .map(|t| first[[t, at[1]]] * second[[at[0], t, at[2], at[3]]])
                .sum();
            assert!((number - sum).abs() < 1e-12);
        }
        let (plane, scale) = (counted(&[3, 3]), counted(&[4]));
        let made = of("oihw, hw, o -> oihw", &[&second, &plane, &scale]).expect("it fits");
        for (at, number) in made.indexed_iter() {
            let expected = second[at.clone()] * plane[[at[2], at[3]]] * scale[[at[0]]];
            assert!((number - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn letters_that_are_left_out_are_summed_over() {
        let table = counted(&[2, 3]);
        assert_eq!(
            of("ij->j", &[&table]).expect("it fits"),
            table.sum_axis(ndarray::Axis(0))
        );
        assert_eq!(of("ba", &[&table]).expect("it fits").shape(), [3, 2]);
        let product = of("ij,kj->", &[&table, &table]).expect("it fits");
        let sums = table.sum_axis(ndarray::Axis(0));
        assert!((product.sum() - (&sums * &sums).sum()).abs() < 1e-12);
    }

    #[test]
    fn matrices_are_multiplied_one_by_one() {
        let (a, b) = (counted(&[2, 3, 4]), counted(&[2, 4, 5]));
        let equation = Equation::of_product(3, 3).expect("a product");
        let made = contracted(&equation, &[&a, &b], &|_| true).expect("it fits");
        assert_eq!(made.shape(), [2, 3, 5]);
        let sum: f64 = (0..4).map(|i| a[[1, 2, i]] * b[[1, i, 3]]).sum();
        assert!((made[[1, 2, 3]] - sum).abs() < 1e-12);
    }

    #[test]
    fn vectors_and_stacks_are_multiplied_as_matrices() {
        let (stack, matrix) = (counted(&[2, 3, 4]), counted(&[4, 5]));
        let (row, column) = (counted(&[3]), counted(&[4]));
        let product = |a: &ArrayD<f64>, b: &ArrayD<f64>| {
            contracted(&Equation::of_product(a.ndim(), b.ndim())?, &[a, b], &|_| {
                true
            })
        };
        let shape = |a, b| product(a, b).map(|made| made.shape().to_vec());
        assert_eq!(shape(&stack, &matrix), Some(vec![2, 3, 5]));
        assert_eq!(shape(&row, &stack), Some(vec![2, 4]));
        assert_eq!(shape(&stack, &column), Some(vec![2, 3]));
        assert_eq!(shape(&column, &matrix), Some(vec![5]));
        assert_eq!(shape(&row, &matrix), None);
        let dot = product(&column, &column).expect("it fits");
        assert_eq!(dot.shape(), [0usize; 0]);
        assert!((dot.sum() - column.iter().map(|x| x * x).sum::<f64>()).abs() < 1e-12);
        assert!(Equation::of_product(0, 2).is_none());
    }

    #[test]
    fn what_does_not_fit_or_is_too_much_is_none() {
        let (table, other) = (counted(&[2, 3]), counted(&[2, 2]));
        for text in ["ij,jk->ik", "ii->i", "...i->i", "ij->k", "ijk->i", "ij->ij"] {
            assert!(of(text, &[&table, &other]).is_none(), "{text}");
        }
        let equation = Equation::parse("ij,kl->ijkl").expect("an equation");
        assert!(contracted(&equation, &[&table, &other], &|shape| shape.len() < 4).is_none());
    }
}
