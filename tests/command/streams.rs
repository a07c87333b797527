//! Exit codes, streams and broken pipes: the command behaves as Unix tools do.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::support::command::undisturbed;
use crate::support::file::{Place, checkpoint, end, skipped, start};
use crate::support::forge::File;
use serde_json::Value;

fn prepared(blocks: usize) -> Place {
    let place = Place::new();
    checkpoint(blocks, 4).write(&place.path("in.safetensors"));
    let done = place.run("fuse in.safetensors out.safetensors --quiet");
    assert_eq!(done.all(), (Some(0), "", ""));
    place
}

/// 0: yes. 1: it ran, and the answer is no. 2: it could not run.
#[test]
fn exit_codes() {
    let place = prepared(1);
    let mut spoilt = File::read(&place.path("out.safetensors"));
    spoilt
        .at("stage0.0.rbr_reparam.weight")
        .edit(|w| w[0] += 1.0);
    spoilt.write(&place.path("spoilt.safetensors"));
    place.write("broken.safetensors", "no header");
    for (args, code) in [
        ("fuse in.safetensors new.safetensors", 0),
        ("fuse in.safetensors newer.safetensors --dry-run", 0),
        ("fuse out.safetensors newer.safetensors", 1),
        ("fuse out.safetensors newer.safetensors --recipe repvgg", 1),
        ("fuse in.safetensors newer.safetensors --only none", 1),
        ("fuse in.safetensors new.safetensors", 2),
        ("fuse broken.safetensors newer.safetensors", 2),
        ("fuse none.safetensors newer.safetensors", 2),
        ("fuse in.safetensors", 2),
        ("verify in.safetensors", 0),
        ("verify in.safetensors out.safetensors", 0),
        ("verify in.safetensors spoilt.safetensors", 1),
        ("verify in.safetensors spoilt.safetensors --json", 1),
        ("verify in.safetensors spoilt.safetensors --quiet", 1),
        ("verify out.safetensors", 1),
        ("verify in.safetensors broken.safetensors", 2),
        ("inspect in.safetensors", 0),
        ("inspect out.safetensors", 0),
        ("inspect broken.safetensors", 2),
        ("recipes", 0),
        ("recipes repvgg", 0),
        ("recipes none", 2),
        ("recipes check none.json", 2),
        ("--help", 0),
        ("fuse --help", 0),
        ("--version", 0),
        ("", 2),
        ("melt", 2),
        ("fuse --melt", 2),
    ] {
        let ran = place.run(args);
        assert_eq!(ran.code(), Some(code), "{args}: {ran:?}");
        // What was asked for goes to stdout, and what stands in the way to stderr.
        let (asked, other) = if code == 2 {
            (&ran.stderr, &ran.stdout)
        } else {
            (&ran.stdout, &ran.stderr)
        };
        let an_error = code == 1 && !args.contains("spoilt");
        assert_eq!(
            asked.is_empty(),
            an_error || args.contains("--quiet"),
            "{args}: {ran:?}"
        );
        // A warning is no error.
        let warned = other.starts_with("repfuse: warning: ");
        assert_eq!(other.is_empty() || warned, !an_error, "{args}: {ran:?}");
    }
}

/// Results go to stdout as far as somebody reads them.
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let place = prepared(400);
    for line in [
        "inspect in.safetensors",
        "inspect in.safetensors --json",
        "fuse in.safetensors new.safetensors --dry-run --bn-eps 1e-5",
        "verify in.safetensors out.safetensors --bn-eps 1e-5",
        "recipes --json",
        "recipes repvgg",
        "--help",
    ] {
        // The shell says how the first of the two ended.
        let piped = end(start(place.shell(&format!(
            "{{ \"$REPFUSE\" {line} 2>errors; echo $? >code; }} | head -n 1 >first"
        ))));
        assert_eq!(piped.all(), (Some(0), "", ""));
        let [first, code, errors] = ["first", "code", "errors"]
            .map(|name| String::from_utf8(place.read(name)).expect("UTF-8"));
        assert_eq!(
            (first.lines().count(), &*code, &*errors),
            (1, "0\n", ""),
            "{line}"
        );
        // Nobody reads at all.
        let mut child = start(place.command(&line.split(' ').collect::<Vec<_>>()));
        drop(child.stdout.take());
        let ran = end(child);
        assert_eq!(ran.all(), (Some(0), "", ""), "{line}");
    }
    // The answer stays what it is.
    let mut spoilt = File::read(&place.path("out.safetensors"));
    spoilt
        .at("stage7.0.rbr_reparam.weight")
        .edit(|w| w[0] += 1.0);
    spoilt.write(&place.path("spoilt.safetensors"));
    let mut child = start(place.command(&[
        "verify",
        "in.safetensors",
        "spoilt.safetensors",
        "--bn-eps=1e-5",
    ]));
    drop(child.stdout.take());
    assert_eq!(end(child).all(), (Some(1), "", ""));
    // And a file that has been written is there.
    let mut child =
        start(place.command(&["fuse", "in.safetensors", "new.safetensors", "--bn-eps=1e-5"]));
    drop(child.stdout.take());
    assert_eq!(end(child).all(), (Some(0), "", ""));
    assert_eq!(place.read("new.safetensors"), place.read("out.safetensors"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_an_error() {
    let place = prepared(1);
    for line in [
        "inspect in.safetensors",
        "verify in.safetensors --json",
        "recipes",
        "--help",
        "--version",
    ] {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("a full device");
        let mut command = place.command(&line.split(' ').collect::<Vec<_>>());
        let output = command.stdout(full).output().expect("the command");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        let expected =
            "repfuse: cannot write to the standard output: No space left on device (os error 28)\n";
        assert_eq!(
            (output.status.code(), &*said),
            (Some(2), expected),
            "{line}"
        );
    }
}

/// With nobody at stderr either, errors are silent, and no crash.
#[test]
fn closed_streams_are_no_crash() {
    let place = prepared(1);
    for (line, code) in [
        ("inspect in.safetensors", 0),
        ("inspect none.safetensors", 2),
        ("melt", 2),
    ] {
        let ran = end(start(
            place.shell(&format!("exec \"$REPFUSE\" {line} <&- >&- 2>&-")),
        ));
        assert_eq!(ran.all(), (Some(code), "", ""), "{line}");
        assert_eq!(ran.status.signal(), None);
    }
}

#[test]
fn quiet_prints_nothing_but_errors() {
    let place = prepared(1);
    for args in [
        "fuse in.safetensors a.safetensors --quiet",
        "fuse in.safetensors b.safetensors -q --verify",
        "verify in.safetensors -q",
    ] {
        assert_eq!(place.run(args).all(), (Some(0), "", ""), "{args}");
    }
    // The twin: without it, there is something to read.
    let ran = place.run("fuse in.safetensors c.safetensors --bn-eps 1e-5");
    assert!(
        ran.stdout.starts_with("fused 1 block in ") && ran.stderr.is_empty(),
        "{ran:?}"
    );
    let ran = place.run("fuse in.safetensors a.safetensors --quiet");
    let exists =
        "repfuse: `a.safetensors` exists; choose another name or pass --force to replace it\n";
    assert_eq!(ran.all(), (Some(2), "", exists));
    // JSON that is asked for is a result.
    let ran = place.run("fuse in.safetensors d.safetensors --quiet --json");
    let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["blocks_fused"], 1);
}

/// Without a terminal there is nothing but text, whatever the environment says.
#[test]
fn no_control_codes_without_a_terminal() {
    let place = prepared(3);
    for args in [
        "--help",
        "fuse --help",
        "melt",
        "fuse in.safetensors new.safetensors --force",
        "fuse in.safetensors new.safetensors",
        "verify in.safetensors out.safetensors",
        "inspect in.safetensors",
        "recipes",
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let output = place
            .command(&args)
            .env("TERM", "xterm-256color")
            .output()
            .expect("the command");
        let all = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(all).expect("UTF-8");
        assert!(!text.is_empty());
        assert_eq!(
            text.chars().find(|c| c.is_control() && *c != '\n'),
            None,
            "{args:?}: {text:?}"
        );
    }
}

/// What a command sends to a terminal of 80 columns, as `script` records it; none where there is no `script`.
fn on_a_terminal(place: &Place, environment: &[(&str, &str)], line: &str) -> Option<String> {
    let mut script = undisturbed("script");
    script
        .current_dir(place.path(""))
        .env("TERM", "xterm-256color")
        .envs(environment.iter().copied())
        .args(["-q", "-e", "-c"])
        .arg(format!("{} {line}", env!("CARGO_BIN_EXE_repfuse")))
        .arg("/dev/null")
        .stdin(Stdio::null());
    let output = script.output().ok()?;
    Some(String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn a_terminal_gets_colours_unless_it_wants_none() {
    let place = prepared(1);
    let Some(coloured) = on_a_terminal(&place, &[], "melt") else {
        return skipped("there is no `script` to make a terminal with");
    };
    if !coloured.contains("unrecognized subcommand") {
        return skipped("this `script` takes other arguments");
    }
    assert!(coloured.contains("\u{1b}["), "{coloured:?}");
    for environment in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let bare = on_a_terminal(&place, &[environment], "melt").expect("a terminal");
        assert!(bare.contains("unrecognized subcommand"), "{bare:?}");
        assert!(!bare.contains('\u{1b}'), "{environment:?}: {bare:?}");
    }
}

#[test]
fn a_terminal_gets_a_bar_that_is_taken_away_again() {
    let place = Place::new();
    checkpoint(4, 256).write(&place.path("in.safetensors"));
    let fuse = |environment: &[(&str, &str)], more: &str| {
        let line = format!("fuse in.safetensors out.safetensors --force {more}");
        on_a_terminal(&place, environment, &line)
    };
    let Some(shown) = fuse(&[], "") else {
        return skipped("there is no `script` to make a terminal with");
    };
    if !shown.contains("fused 4 blocks in ") {
        return skipped("this `script` takes other arguments");
    }
    // Drawn and cleared: the last thing before the summary takes the line away.
    let summary = shown.find("fused 4 blocks").expect("a summary");
    assert!(
        shown[..summary].contains('█') && shown[..summary].contains("\u{1b}[2K"),
        "{shown:?}"
    );
    assert!(!shown[summary..].contains('\u{1b}'), "{shown:?}");
    assert_eq!(fuse(&[], "--quiet").expect("a terminal"), "");
    for (environment, more) in [(&[("TERM", "dumb")][..], ""), (&[], "--json")] {
        let shown = fuse(environment, more).expect("a terminal");
        assert!(
            !shown.contains('█') && !shown.contains('\u{1b}'),
            "{shown:?}"
        );
    }
    // It has no colours to leave out.
    let shown = fuse(&[("NO_COLOR", "1")], "").expect("a terminal");
    assert!(
        !shown.contains("\u{1b}[3") && !shown.contains("\u{1b}[1m"),
        "{shown:?}"
    );
}
