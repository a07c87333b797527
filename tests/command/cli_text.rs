//! What people read: whole outputs, tables that fit, help, completions and man pages.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::tiny::Tiny;

#[test]
fn inspect_prints_runs_of_equal_blocks_in_a_line() {
    let tiny = Tiny::network();
    assert_eq!(
        tiny.prints(&["inspect", "train.safetensors", "--input-size", "32"]),
        "\
block           becomes  from                    params
stage0          4×3×3×3  bn(3×3) + bn(1×1)          136  →  112
stage1.0–2  3×  4×4×3×3  bn(3×3) + bn(1×1) + bn     184  →  148
stage2.0        8×4×3×3  bn(3×3) + bn(1×1)          352  →  296

  form        training
  recipe      repvgg, bn eps 1e-5: 5 blocks to fuse
              some projects use these names with 1e-3; repfuse cannot tell such
              a file apart
  tensors     64, 1.08 k parameters, 10.4 kB
  macs        174 k → 157 k in the blocks at 32×32
  elements    1.21 k F32
"
    );
    let all = tiny.prints(&["inspect", "train.safetensors", "--all"]);
    for name in ["stage1.0", "stage1.1", "stage1.2"] {
        assert!(
            all.lines()
                .any(|line| line.starts_with(&format!("{name}  "))),
            "{all}"
        );
    }
}

#[test]
fn kernels_are_drawn_in_shades() {
    let mut tiny = Tiny::empty();
    tiny.put(
        "b.conv_2d.weight",
        &[1, 1, 3, 3],
        &[0., -1., 1., 1., 4., 1., 1., 1., -4.],
    );
    tiny.put("b.conv_2d.bias", &[1], &[0.5]);
    tiny.put("b.conv_2d_pointwise.weight", &[1, 1, 1, 1], &[3.0]);
    tiny.put("b.conv_2d_pointwise.bias", &[1], &[0.25]);
    tiny.write();
    assert_eq!(
        tiny.prints(&["inspect", "train.safetensors", "--kernels"]),
        "\
b  largest mean |w| 8.00
     ▒▒▒▒    · · ·     · · ·       ▒▒▒▒
   ▒▒▓▓▒▒  + · ▓▓·   + · ▒▒·   → ▒▒██▒▒
   ▒▒▒▒▓▓    · · ·     · · ·     ▒▒▒▒▓▓
   3×3+b     1×1+b     x         3×3

"
    );
    // Too narrow for four maps side by side.
    let narrow = tiny.run_with(
        &["inspect", "train.safetensors", "--kernels", "b"],
        &[("COLUMNS", "38")],
    );
    assert_eq!(
        narrow.stdout,
        "\
b  largest mean |w| 8.00
     ▒▒▒▒    · · ·     · · ·
   ▒▒▓▓▒▒  + · ▓▓·   + · ▒▒·
   ▒▒▒▒▓▓    · · ·     · · ·
   3×3+b     1×1+b     x
     ▒▒▒▒
 → ▒▒██▒▒
   ▒▒▒▒▓▓
   3×3

"
    );
}

#[test]
fn verify_prints_a_line_for_each_conv_and_a_sentence() {
    let tiny = Tiny::network();
    assert_eq!(
        tiny.prints(&["verify", "train.safetensors"]),
        "\
\x20   conv                        ratio   worst  expression
ok  stage0.rbr_reparam           0.84  2.7e-8  bn(3×3) + bn(1×1)
ok  stage1.0–2.rbr_reparam  3×   0.95  5.7e-8  bn(3×3) + bn(1×1) + bn
ok  stage2.0.rbr_reparam         0.92  4.7e-8  bn(3×3) + bn(1×1)

equivalent: 5 convs, worst error 0.95 × the rounding bound, 2 tensors copied
  recipe      repvgg
  bn eps      1e-5 from recipe repvgg; 1e-3 would change a scale by up to 0.4 %
  ratio       the error over the rounding bound; above 1 it fails
  worst       the largest error of an output for inputs up to 1
"
    );
    // With --all, a line for each conv.
    let all = tiny.prints(&["verify", "train.safetensors", "--all"]);
    assert_eq!(all.matches("\nok ").count(), 5, "{all}");
    assert!(
        all.contains("\nok  stage1.1.rbr_reparam   0.95  5.4e-8  bn(3×3) + bn(1×1) + bn\n"),
        "{all}"
    );
}

#[test]
fn fuse_prints_what_became_less() {
    let tiny = Tiny::network();
    let printed = tiny.prints(&[
        "fuse",
        "train.safetensors",
        "deploy.safetensors",
        "--verify",
    ]);
    let (head, rest) = printed.split_once('\n').expect("lines");
    assert!(
        head.starts_with("fused 5 blocks in ") && head.ends_with(" s, verified"),
        "{head}"
    );
    assert_eq!(
        rest,
        "\
\x20 tensors          64  →       12
  parameters   1.08 k  →      897
  bytes       10.4 kB  →  4.68 kB
  recipe      repvgg
  bn eps      1e-5 from recipe repvgg; 1e-3 would change a scale by up to 0.4 %
  load        model = MODEL; [m.switch_to_deploy() for m in list(model.modules()) if hasattr(m, \"switch_to_deploy\")]; model.load_state_dict(safetensors.torch.load_file(\"deploy.safetensors\"))
"
    );
    assert_eq!(
        tiny.prints(&[
            "fuse",
            "train.safetensors",
            "deploy.safetensors",
            "--dry-run",
            "--force"
        ])
        .lines()
        .next(),
        Some("stage0.rbr_reparam          4×3×3×3  =  bn(3×3) + bn(1×1)")
    );
}

fn fixtures() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for family in std::fs::read_dir(root).expect("fixtures") {
        let family = family.expect("an entry").path();
        if family.is_dir() {
            let files = std::fs::read_dir(family).expect("a directory");
            found.extend(files.map(|file| file.expect("an entry").path()));
        }
    }
    found.retain(|path| path.to_string_lossy().ends_with(".train.safetensors"));
    assert!(found.len() > 20);
    found
}

/// Every family's names, whatever their length, and long ones made up for it.
#[test]
fn lines_fit_eighty_columns() {
    let mut tiny = Tiny::empty();
    let deep =
        "model.backbone.image_encoder.trunk.stages.3.blocks.17.token_mixer.reparam_large_kernel";
    tiny.block(deep, [4, 4]);
    tiny.write();
    let mut files = fixtures();
    files.push(tiny.path("train.safetensors"));
    for file in files {
        let path = file.to_str().expect("text");
        for command in [["inspect", path], ["verify", path]] {
            let ran = tiny.run_with(&command, &[("COLUMNS", "80")]);
            for line in ran.stdout.lines() {
                assert!(line.chars().count() <= 80, "{command:?}: {line}");
            }
        }
    }
    // Where no terminal cuts lines, names are whole; so they are with --all.
    let whole = tiny.prints(&["verify", "train.safetensors"]);
    assert!(whole.contains(deep), "{whole}");
    let all = tiny.run_with(
        &["inspect", "train.safetensors", "--all"],
        &[("COLUMNS", "80")],
    );
    assert!(all.stdout.contains(deep), "{}", all.stdout);
    let narrow = tiny.run_with(&["verify", "train.safetensors"], &[("COLUMNS", "80")]);
    assert!(
        narrow.stdout.contains("model.backbone.") && narrow.stdout.contains('…'),
        "{}",
        narrow.stdout
    );
}

#[test]
fn colour_is_for_terminals_and_for_those_who_ask() {
    let tiny = Tiny::network();
    let args = ["verify", "train.safetensors"];
    assert!(!tiny.prints(&args).contains('\u{1b}'));
    let forced = tiny.run_with(&args, &[("CLICOLOR_FORCE", "1")]);
    assert!(
        forced
            .stdout
            .contains("\u{1b}[1m\u{1b}[32mequivalent\u{1b}[0m"),
        "{:?}",
        forced.stdout
    );
    let refused = tiny.run_with(&args, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]);
    assert!(!refused.stdout.contains('\u{1b}'));
    // What is drawn does not depend on colour: without it there are shades.
    let drawn = ["inspect", "train.safetensors", "--kernels", "stage0"];
    let forced = tiny.run_with(&drawn, &[("CLICOLOR_FORCE", "1")]);
    assert!(forced.stdout.contains("\u{1b}[38;5;"));
    // JSON has none in any case.
    let json = tiny.run_with(
        &["verify", "train.safetensors", "--json"],
        &[("CLICOLOR_FORCE", "1")],
    );
    assert!(!json.stdout.contains('\u{1b}'));
}

#[test]
fn help_is_short_and_longer() {
    let tiny = Tiny::empty();
    for command in [
        "fuse",
        "verify",
        "inspect",
        "report",
        "recipes",
        "schema",
        "completions",
        "man",
    ] {
        let short = tiny.prints(&[command, "-h"]);
        let long = tiny.prints(&[command, "--help"]);
        assert!(!short.contains("Examples:"), "{command}");
        assert!(
            long.contains(&format!("Examples:\n  repfuse {command}")),
            "{command}: {long}"
        );
        assert!(short.lines().count() < long.lines().count(), "{command}");
        assert!(long.lines().count() < 64, "{command}: {long}");
        assert_eq!(long, tiny.prints(&["help", command]), "{command}");
    }
    assert!(tiny.prints(&["verify", "--help"]).contains("--exhaustive"));
    assert!(!tiny.prints(&["verify", "-h"]).contains("--exhaustive"));
    // Hidden from the short help only.
    let network = Tiny::network();
    network.prints(&[
        "verify",
        "train.safetensors",
        "--exhaustive",
        "--seed",
        "3",
        "--quiet",
    ]);
}

#[test]
fn slips_are_answered_with_what_was_probably_meant() {
    let tiny = Tiny::network();
    let asked = |args: &[&str]| tiny.run(args).stderr;
    assert_eq!(
        asked(&["inspect", "train.safetensors", "--recipe", "repvg"]),
        "repfuse: there is no recipe `repvg`; did you mean `repvgg`? `repfuse recipes` lists them, and a path ending in `.json` names your own\n"
    );
    assert_eq!(
        asked(&["inspect", "train.safetensors", "--kernels", "stage3"]),
        "repfuse: there is no block `stage3`; did you mean `stage0`?\n"
    );
    assert_eq!(
        asked(&["man", "verfy"]),
        "repfuse: there is no command `verfy`; did you mean `verify`?\n"
    );
    assert!(asked(&["fuse", "--verfy"]).contains("a similar argument exists: '--verify'"));
    assert!(asked(&["inspekt"]).contains("a similar subcommand exists: 'inspect'"));
}

#[test]
fn shells_complete_every_command() {
    let tiny = Tiny::empty();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = tiny.prints(&["completions", shell]);
        for word in ["fuse", "verify", "inspect", "report", "recipes", "bn-eps"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
    // Bash is nearly everywhere; where it is, it reads its own.
    std::fs::write(
        tiny.path("complete.bash"),
        tiny.prints(&["completions", "bash"]),
    )
    .expect("a file");
    if let Ok(read) = Command::new("bash")
        .arg("-n")
        .arg(tiny.path("complete.bash"))
        .output()
    {
        assert!(
            read.status.success(),
            "{}",
            String::from_utf8_lossy(&read.stderr)
        );
    }
}

#[test]
fn man_pages_have_the_options_and_the_examples() {
    let tiny = Tiny::empty();
    let page = tiny.prints(&["man"]);
    assert!(page.contains(".TH repfuse 1"), "{page}");
    let page = tiny.prints(&["man", "fuse"]);
    assert!(page.contains(".TH repfuse-fuse 1"), "{page}");
    // Roff writes a hyphen that is not a dash with a backslash.
    assert!(page.contains("\\-\\-threads"), "{page}");
    assert!(
        page.contains("repfuse fuse train.safetensors deploy.safetensors"),
        "{page}"
    );
}
