//! What is known of classes, from `known_classes.txt`.

/// What a module of a class computes in evaluation mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A convolution or a matrix product.
    Conv,
    /// A convolution with a padding of its own.
    SameConv,
    /// A batch norm by its running statistics.
    Norm,
    /// A batch norm where it keeps running statistics.
    Tracked,
    /// A batch norm, and behind it what its parts do.
    NormAct,
    /// Its parts in their order.
    Sequence,
    /// Nothing; others use its parts.
    Container,
    /// Nothing.
    Idle,
}

/// The words of the list.
const WORDS: [(&str, Kind); 8] = [
    ("conv", Kind::Conv),
    ("same-conv", Kind::SameConv),
    ("norm", Kind::Norm),
    ("tracked", Kind::Tracked),
    ("norm-act", Kind::NormAct),
    ("sequence", Kind::Sequence),
    ("container", Kind::Container),
    ("idle", Kind::Idle),
];

const LIST: &str = include_str!("known_classes.txt");

/// The kind of a class, if it is known.
pub(super) fn kind(class: &str) -> Option<Kind> {
    let last = class.rsplit('.').next().unwrap_or(class);
    let line = lines().find(|(_, name)| match name.strip_prefix("*.") {
        Some(name) => name == last,
        None => *name == class,
    });
    let (word, _) = line?;
    WORDS
        .iter()
        .find(|(known, _)| *known == word)
        .map(|(_, kind)| *kind)
}

/// The words and the classes of the list.
fn lines() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = LIST.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' '))
}

#[cfg(test)]
mod tests {
    use super::{Kind, LIST, WORDS, kind, lines};

    #[test]
    fn every_line_says_a_kind_and_a_class() {
        let said = LIST
            .lines()
            .filter(|l| !l.is_empty() && !l.starts_with('#'));
        assert_eq!(said.count(), lines().count());
        for (word, class) in lines() {
            assert!(WORDS.iter().any(|(known, _)| *known == word), "{word}");
            assert!(class.contains('.') && !class.contains(' '), "{class}");
        }
    }

    #[test]
    fn classes_are_found_by_name() {
        assert_eq!(kind("torch.nn.modules.conv.Conv2d"), Some(Kind::Conv));
        assert_eq!(kind("models.layers.DropPath"), Some(Kind::Idle));
        assert_eq!(kind("timm.layers.std_conv.StdConv2d"), None);
        assert_eq!(kind("__main__.Conv2d"), None);
    }
}
