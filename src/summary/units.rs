//! Numbers in the units people use.

/// `12.3 MB`; a megabyte is 10⁶ bytes.
pub fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB"])
}

/// `12.3 M`.
pub fn count(n: u64) -> String {
    scaled(n, &["", "k", "M", "G", "T"])
}

fn scaled(n: u64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match unit {
        0 => 0,
        _ if value < 9.995 => 2,
        _ if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", units[unit])
        .trim_end()
        .to_owned()
}

/// `1e-5`, `3e-3`: a small number as it is written in a recipe.
pub fn small(x: f64) -> String {
    format!("{x:e}")
}

/// How large a relative change is: `8.2 %`, or `1.5e-6` where a percentage would be all zeros.
pub fn share(x: f64) -> String {
    if x >= 0.001 {
        format!("{:.1} %", 100.0 * x)
    } else {
        format!("{x:.1e}")
    }
}

/// `−23 %`, `+4 %`, `±0 %`: how `after` compares with `before`.
pub fn change(before: u64, after: u64) -> String {
    if before == 0 {
        return String::new();
    }
    let percent = (100.0 * (after as f64 / before as f64 - 1.0)).round();
    match percent {
        p if p < 0.0 => format!("−{:.0} %", -p),
        p if p > 0.0 => format!("+{p:.0} %"),
        _ if after < before => "−<1 %".to_owned(),
        _ if after > before => "+<1 %".to_owned(),
        _ => "±0 %".to_owned(),
    }
}

pub use crate::verify::shown::{natural_order, ratio};

/// A weight's size to three digits: `0.205`, `3.1e-5`.
pub fn magnitude(x: f64) -> String {
    match x {
        0.0 => "0".to_owned(),
        x if (0.000_995..999.5).contains(&x) => {
            let digits = 2 - x.log10().floor() as i32;
            format!("{x:.*}", digits.clamp(0, 6) as usize)
        }
        x => format!("{x:.1e}"),
    }
}

/// `64×64×3×3`.
pub fn shape(shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    dims.join("×")
}

/// `1 block`, `3 blocks`.
pub fn plural(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        let shown: Vec<String> = [0, 999, 1000, 9_994, 12_345, 999_499, 999_500, 8_310_000]
            .map(count)
            .into();
        assert_eq!(
            shown,
            [
                "0", "999", "1.00 k", "9.99 k", "12.3 k", "999 k", "1.00 M", "8.31 M"
            ]
        );
        assert_eq!(bytes(492_786_904), "493 MB");
    }

    #[test]
    fn changes_have_a_sign() {
        assert_eq!(change(100, 77), "−23 %");
        assert_eq!(change(100, 104), "+4 %");
        assert_eq!(change(7, 7), "±0 %");
        assert_eq!(change(10_000, 9_999), "−<1 %");
        assert_eq!(change(0, 3), "");
    }

    #[test]
    fn magnitudes_have_three_digits() {
        let shown = [0.0, 0.205_3, 0.012_34, 1.5, 3.14e-5, 123.4, 5432.1].map(magnitude);
        assert_eq!(
            shown,
            ["0", "0.205", "0.0123", "1.50", "3.1e-5", "123", "5.4e3"]
        );
    }

    #[test]
    fn numbers_in_names_count() {
        let mut names = [
            "stage10.0",
            "stage2.10",
            "head",
            "stage2.9.a",
            "stage2.9",
            "a.b",
        ];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(
            names,
            [
                "a.b",
                "head",
                "stage2.9",
                "stage2.9.a",
                "stage2.10",
                "stage10.0"
            ]
        );
    }
}
