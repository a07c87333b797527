//! The destination is never half-written: it is absent or old, or complete, whatever happens.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::support::Random;
use crate::support::file::{self, Place, Ran, checkpoint, end, skipped, start};
use crate::support::forge::{File, Held};
use repfuse::fuse::{Options, fuse};
use repfuse::plan;
use repfuse::recipe;
use repfuse::tensor::Checkpoint;

/// A directory with a checkpoint in it, and the bytes that it fuses to.
fn prepared(blocks: usize, channels: usize) -> (Place, Vec<u8>) {
    let place = Place::new();
    checkpoint(blocks, channels).write(&place.path("in.safetensors"));
    let done = place.run("fuse in.safetensors out.safetensors --quiet");
    assert_eq!(done.all(), (Some(0), "", ""));
    let whole = place.read("out.safetensors");
    fs::remove_file(place.path("out.safetensors")).expect("a file");
    (place, whole)
}

/// A block that takes a while to fold: a 3×3 conv behind a 1×1 conv.
fn slow() -> Place {
    let place = Place::new();
    let (mut file, mut random) = (File::default(), Random(3));
    file::tensor(&mut file, "a.first.weight", &[256, 256, 1, 1], &mut random);
    file::tensor(&mut file, "a.then.weight", &[384, 256, 3, 3], &mut random);
    file.write(&place.path("in.safetensors"));
    place.write(
        "own.json",
        file::recipe(
            r#"{"at": "{p}.first.weight", "fuse": {"{p}.conv": {"seq": [{"conv": "{p}.first", "bias": "optional", "groups": 1}, {"conv": "{p}.then", "bias": "optional"}]}}}"#,
        ),
    );
    place
}

const SLOW: &[&str] = &[
    "fuse",
    "in.safetensors",
    "out.safetensors",
    "--recipe",
    "own.json",
];

fn is_scratch(name: &str) -> bool {
    name.starts_with(".out.safetensors.repfuse-") && name.ends_with(".tmp")
}

/// Waits until the scratch file is there, so that work is under way, or has been done already.
fn await_scratch(place: &Place, child: &mut Child) {
    let ended = |child: &mut Child| child.try_wait().expect("a child").is_some();
    while !place.names().iter().any(|name| is_scratch(name)) && !ended(child) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn send(signal: &str, to: u32) {
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{signal} {to}")])
        .status();
    assert!(sent.expect("a shell").success());
}

/// Whether the tests were started with a signal ignored, as a shell starts what it runs in the background with SIGINT: the command
/// inherits that, and keeps it. Only Linux says so.
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|ignored| ignored >> (signal - 1) & 1 == 1)
}

/// A run that a signal reached at work. On a busy machine the run may be done before the signal comes: then again, from `old`.
fn stopped(place: &Place, args: &[&str], signal: &str, old: Option<&str>) -> Ran {
    for _ in 0..100 {
        match old {
            Some(old) => place.write("out.safetensors", old),
            None => drop(fs::remove_file(place.path("out.safetensors"))),
        }
        let mut child = start(place.command(args));
        await_scratch(place, &mut child);
        // The process may have ended; its number is not given anew before it is waited for.
        if child.try_wait().expect("a child").is_none() {
            send(signal, child.id());
        }
        let ran = end(child);
        if ran.status.code() != Some(0) {
            return ran;
        }
    }
    panic!("a hundred runs were done before {signal} came");
}

/// What is left after a run that failed or was stopped: what was there before.
fn untouched(place: &Place, before: &[String]) {
    assert_eq!(place.names(), before);
}

// kill -9

#[test]
fn two_hundred_kills_leave_all_or_nothing() {
    let (place, whole) = prepared(8, 160);
    let old = b"what was there before".to_vec();
    let (mut random, mut finished, mut killed_at_work) = (Random(9), 0, 0);
    let mut longest = Duration::ZERO;
    for round in 0..200 {
        let replaces = round % 2 == 1;
        let _ = fs::remove_file(place.path("out.safetensors"));
        let mut args = vec!["fuse", "in.safetensors", "out.safetensors", "--quiet"];
        if replaces {
            place.write("out.safetensors", &old);
            args.push("--force");
        }
        let mut child = place.command(&args).spawn().expect("the command");
        let begin = Instant::now();
        match round {
            // The first two are not disturbed, and say how long a run takes; two more are killed at once, and two at work.
            0 | 1 => {
                assert!(child.wait().expect("an end").success());
                longest = longest.max(begin.elapsed());
            }
            2 | 3 => child.kill().expect("a kill"),
            4 | 5 => await_scratch(&place, &mut child),
            _ => std::thread::sleep(longest.mul_f64(random.between(0.0, 1.0))),
        }
        let _ = child.kill();
        child.wait().expect("an end");

        let names = place.names();
        let scratch: Vec<_> = names.iter().filter(|name| is_scratch(name)).collect();
        assert!(scratch.len() <= 1, "{names:?}");
        let known = |name: &&String| {
            !is_scratch(name) && !["in.safetensors", "out.safetensors"].contains(&name.as_str())
        };
        assert_eq!(names.iter().find(known), None);
        killed_at_work += scratch.len();
        for name in scratch {
            fs::remove_file(place.path(name)).expect("a file");
        }
        match fs::read(place.path("out.safetensors")) {
            Ok(bytes) if bytes == whole => finished += 1,
            Ok(bytes) => assert!(replaces && bytes == old, "round {round}: half-written"),
            Err(_) => assert!(!replaces, "round {round}: the old file is lost"),
        }
    }
    assert!(
        finished >= 2 && killed_at_work >= 1,
        "{finished} {killed_at_work}"
    );
}

#[test]
fn what_a_killed_run_leaves_is_in_nobodys_way() {
    let (place, whole) = prepared(2, 32);
    place.write(".out.safetensors.repfuse-AbCdEf.tmp", "half");
    let done = place.run("fuse in.safetensors out.safetensors --quiet");
    assert_eq!(done.all(), (Some(0), "", ""));
    assert_eq!(place.read("out.safetensors"), whole);
    assert_eq!(place.read(".out.safetensors.repfuse-AbCdEf.tmp"), b"half");
}

// Signals

#[test]
fn signals_leave_nothing() {
    let place = slow();
    let before = place.names();
    for (signal, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        if is_ignored(number) {
            continue;
        }
        let ran = stopped(&place, SLOW, signal, None);
        assert_eq!(ran.status.signal(), Some(number), "{ran:?}");
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.stderr, "repfuse: interrupted; nothing was written\n");
        untouched(&place, &before);
    }
    // An old file stays.
    let ran = stopped(&place, &[SLOW, &["--force"]].concat(), "TERM", Some("old"));
    assert_eq!(ran.status.signal(), Some(15), "{ran:?}");
    assert_eq!(place.read("out.safetensors"), b"old");
    // The twin: undisturbed, the same command writes the file.
    let ran = place.run("fuse in.safetensors new.safetensors --recipe own.json --quiet");
    assert_eq!(ran.all(), (Some(0), "", ""));
    assert_eq!(
        place.names(),
        [
            "in.safetensors",
            "new.safetensors",
            "out.safetensors",
            "own.json"
        ]
    );
}

/// `nohup` starts a program with SIGHUP ignored, and it has to stay so.
#[cfg(target_os = "linux")]
#[test]
fn an_ignored_signal_stays_ignored() {
    let place = slow();
    let mut child = start(place.shell(
        "trap '' HUP; exec \"$REPFUSE\" fuse in.safetensors out.safetensors --recipe own.json -q",
    ));
    await_scratch(&place, &mut child);
    if child.try_wait().expect("a child").is_none() {
        send("HUP", child.id());
    }
    assert_eq!(end(child).all(), (Some(0), "", ""));
    assert_eq!(
        place.names(),
        ["in.safetensors", "out.safetensors", "own.json"]
    );
}

#[test]
fn verification_can_be_stopped() {
    use std::sync::atomic::AtomicBool;
    static RAISED: AtomicBool = AtomicBool::new(true);
    static QUIET: AtomicBool = AtomicBool::new(false);
    let (place, _) = prepared(1, 8);
    let checkpoint = Checkpoint::open(place.path("in.safetensors")).expect("a checkpoint");
    let plan = plan(&checkpoint);
    let verify = |stop| {
        let options = repfuse::verify::Options {
            stop: Some(stop),
            ..Default::default()
        };
        let form = repfuse::verify::Deployed::InMemory;
        repfuse::verify::verify(&checkpoint, &plan, form, &options)
    };
    let error = verify(&RAISED).expect_err("a raised flag");
    assert_eq!(error.to_string(), "interrupted; nothing was written");
    assert!(verify(&QUIET).expect("a verdict").accepted());
}

fn plan(checkpoint: &Checkpoint) -> plan::Plan {
    let recipes = recipe::builtin().expect("recipes");
    let found = recipe::detect_one(checkpoint.tensors(), &recipes).expect("a family");
    plan::plan(checkpoint.tensors(), found, &plan::Options::default()).expect("a plan")
}

// A full disk

/// The size limit of a file stands in for a disk that fills up while the file is written.
#[test]
fn a_full_disk_leaves_nothing() {
    let (place, _) = prepared(4, 64);
    let before = place.names();
    let line = |limit: &str| {
        format!("ulimit -f {limit}; exec \"$REPFUSE\" fuse in.safetensors out.safetensors --quiet")
    };
    let full = end(start(place.shell(&line("100"))));
    let expected = "repfuse: cannot write `out.safetensors`: File too large (os error 27)\n";
    assert_eq!(full.all(), (Some(2), "", expected));
    untouched(&place, &before);
    let room = end(start(place.shell(&line("100000"))));
    assert_eq!(room.all(), (Some(0), "", ""));
}

/// A file system of one megabyte, where the test may mount one.
#[test]
fn a_full_file_system_leaves_nothing() {
    struct Mounted<'a>(&'a Path);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0).status();
        }
    }
    let (place, _) = prepared(8, 64);
    let small = place.path("small");
    fs::create_dir(&small).expect("a directory");
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&small)
        .stderr(Stdio::null())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        return skipped("a tmpfs cannot be mounted here");
    }
    let _mounted = Mounted(&small);
    fs::write(small.join("out.safetensors"), "old").expect("room");
    let full = place.run("fuse in.safetensors small/out.safetensors --quiet --force");
    let expected =
        "repfuse: cannot write `small/out.safetensors`: No space left on device (os error 28)\n";
    assert_eq!(full.all(), (Some(2), "", expected));
    assert_eq!(
        fs::read(small.join("out.safetensors")).expect("a file"),
        b"old"
    );
    assert_eq!(fs::read_dir(&small).expect("a directory").count(), 1);
    // The twin: a smaller one fits.
    checkpoint(1, 32).write(&place.path("less.safetensors"));
    let fits = place.run("fuse less.safetensors small/out.safetensors --quiet --force");
    assert_eq!(fits.all(), (Some(0), "", ""));
}

// Inputs that go away

#[test]
fn an_input_that_shrinks_meanwhile_is_an_error() {
    let (place, whole) = prepared(4, 64);
    let input = place.path("in.safetensors");
    let attempt = |shrink: bool| {
        let checkpoint = Checkpoint::open(&input).expect("a checkpoint");
        let options = Options {
            threads: Some(1),
            ..Default::default()
        };
        let once = Once::new();
        let progress = |_| {
            once.call_once(|| {
                if shrink {
                    let file = fs::OpenOptions::new().write(true).open(&input);
                    file.and_then(|f| f.set_len(1 << 16))
                        .expect("a shorter file");
                }
            });
            ControlFlow::Continue(())
        };
        let done = fuse(
            &checkpoint,
            &plan(&checkpoint),
            &place.path("out.safetensors"),
            &options,
            &progress,
        );
        done.map(|unfinished| unfinished.finish().expect("a rename"))
    };
    assert!(attempt(false).is_ok());
    assert_eq!(place.read("out.safetensors"), whole);
    fs::remove_file(place.path("out.safetensors")).expect("a file");
    let error = attempt(true).expect_err("half of the input is gone");
    let expected = format!(
        "`{}` has become shorter since it was opened; its tensors are no longer all there",
        input.display()
    );
    assert_eq!(error.to_string(), expected);
    untouched(&place, &["in.safetensors".to_owned()]);
}

#[test]
fn a_failed_verification_leaves_nothing() {
    let place = Place::new();
    let huge = |exponent: i32| {
        let (mut file, mut random) = (File::default(), Random(1));
        file::block(&mut file, "a", 4, &mut random);
        // Each number can be folded, but not added up over a map.
        let large = f64::powi(2.0, exponent).to_le_bytes();
        file.tensors.insert(
            "a.rbr_dense.conv.weight".to_owned(),
            Held {
                dtype: safetensors::Dtype::F64,
                shape: vec![4, 4, 3, 3],
                bytes: large.repeat(144),
            },
        );
        file.write(&place.path("in.safetensors"));
    };
    huge(1022);
    for force in ["", "--force"] {
        if force == "--force" {
            place.write("out.safetensors", "old");
        }
        let before = place.names();
        let ran = place.run(&format!(
            "fuse in.safetensors out.safetensors --verify {force} --bn-eps 1e-5"
        ));
        assert_eq!((ran.code(), &*ran.stdout), (Some(1), ""));
        assert!(
            ran.stderr.starts_with(
                "repfuse: what was written is not equivalent to its input; `out.safetensors` was not kept\n  the only conv differs: `a.rbr_reparam.weight[0]` gives an output or a bound beyond the largest number"
            ),
            "{}",
            ran.stderr
        );
        untouched(&place, &before);
    }
    assert_eq!(place.read("out.safetensors"), b"old");
    huge(10);
    let ran = place.run("fuse in.safetensors out.safetensors --verify --force --quiet");
    assert_eq!(ran.all(), (Some(0), "", ""));
}

// What is there already

#[test]
fn an_existing_file_is_replaced_only_by_force() {
    let (place, whole) = prepared(1, 8);
    place.write("out.safetensors", "old");
    let refused = place.run("fuse in.safetensors out.safetensors");
    let expected =
        "repfuse: `out.safetensors` exists; choose another name or pass --force to replace it\n";
    assert_eq!(refused.all(), (Some(2), "", expected));
    assert_eq!(place.read("out.safetensors"), b"old");
    let forced = place.run("fuse in.safetensors out.safetensors --force --quiet");
    assert_eq!(forced.all(), (Some(0), "", ""));
    assert_eq!(place.read("out.safetensors"), whole);
}

#[test]
fn the_input_itself_is_replaced_only_by_force_and_then_whole() {
    let (place, whole) = prepared(1, 8);
    let input = place.read("in.safetensors");
    symlink("in.safetensors", place.path("soft.safetensors")).expect("a link");
    for out in [
        "in.safetensors",
        "./in.safetensors",
        "soft.safetensors",
        "hard.safetensors",
    ] {
        place.write("in.safetensors", &input);
        let _ = fs::remove_file(place.path("hard.safetensors"));
        fs::hard_link(place.path("in.safetensors"), place.path("hard.safetensors"))
            .expect("a link");
        let before = place.names();
        let refused = place.run(&format!("fuse in.safetensors {out}"));
        let expected = format!(
            "repfuse: `{out}` is the input itself; choose another name or pass --force to replace it\n"
        );
        assert_eq!(refused.all(), (Some(2), "", &*expected));
        assert_eq!(place.read("in.safetensors"), input);
        let forced = place.run(&format!(
            "fuse in.safetensors {out} --force --verify --quiet"
        ));
        assert_eq!(forced.all(), (Some(0), "", ""));
        assert_eq!(place.read(out), whole);
        // The other name of a file that is replaced keeps what it was.
        let other = if out == "hard.safetensors" {
            "in.safetensors"
        } else {
            "hard.safetensors"
        };
        assert_eq!(place.read(other), input);
        untouched(&place, &before);
    }
    assert!(place.path("soft.safetensors").is_symlink());
}

/// As `cp` does: what the link leads to is replaced, and the link stays.
#[test]
fn a_symbolic_link_is_followed() {
    let (place, whole) = prepared(1, 8);
    fs::create_dir(place.path("models")).expect("a directory");
    place.write("models/real.safetensors", "old");
    symlink("models/real.safetensors", place.path("link")).expect("a link");
    symlink("models/lost.safetensors", place.path("lost")).expect("a link");
    symlink("/dev/full", place.path("device")).expect("a link");
    symlink("loop", place.path("loop")).expect("a link");
    let exists = place.run("fuse in.safetensors link");
    assert_eq!(
        exists.stderr,
        "repfuse: `link` exists; choose another name or pass --force to replace it\n"
    );
    for (out, expected) in [
        (
            "lost",
            "`lost` is a symbolic link to a file that is not there; remove it or choose another name",
        ),
        ("device", "`device` is a device; expected a regular file"),
        (
            "loop",
            "cannot follow `loop`: Too many levels of symbolic links (os error 40)",
        ),
    ] {
        let ran = place.run(&format!("fuse in.safetensors {out} --force"));
        assert_eq!(ran.all(), (Some(2), "", &*format!("repfuse: {expected}\n")));
    }
    let forced = place.run("fuse in.safetensors link --force --quiet");
    assert_eq!(forced.all(), (Some(0), "", ""));
    assert!(place.path("link").is_symlink());
    assert_eq!(place.read("models/real.safetensors"), whole);
    assert_eq!(
        fs::read_dir(place.path("models"))
            .expect("a directory")
            .count(),
        1
    );
}

#[test]
fn two_runs_to_one_destination_both_finish() {
    let (place, whole) = prepared(4, 64);
    for _ in 0..5 {
        let _ = fs::remove_file(place.path("out.safetensors"));
        let forced = [
            "fuse",
            "in.safetensors",
            "out.safetensors",
            "--quiet",
            "--force",
        ];
        let children = [0, 1].map(|_| start(place.command(&forced)));
        for child in children {
            assert_eq!(end(child).all(), (Some(0), "", ""));
        }
        assert_eq!(place.read("out.safetensors"), whole);
        untouched(
            &place,
            &["in.safetensors".to_owned(), "out.safetensors".to_owned()],
        );

        // Without --force one of them writes the file, and the other says that it is there.
        fs::remove_file(place.path("out.safetensors")).expect("a file");
        let children = [0, 1].map(|_| start(place.command(&forced[..4])));
        let mut ran = children.map(end);
        ran.sort_by_key(|ran| ran.code());
        assert_eq!(ran[0].all(), (Some(0), "", ""));
        let exists = "repfuse: `out.safetensors` exists; choose another name or pass --force to replace it\n";
        assert_eq!(ran[1].all(), (Some(2), "", exists));
        assert_eq!(place.read("out.safetensors"), whole);
        untouched(
            &place,
            &["in.safetensors".to_owned(), "out.safetensors".to_owned()],
        );
    }
}

// Destinations that are none

#[test]
fn a_destination_that_is_no_file_is_refused_before_anything_is_read() {
    let place = Place::new();
    fs::create_dir(place.path("directory")).expect("a directory");
    place.write("file", "");
    let made = Command::new("mkfifo").arg(place.path("pipe")).status();
    assert!(made.expect("mkfifo").success());
    let _socket = std::os::unix::net::UnixListener::bind(place.path("socket")).expect("a socket");
    let before = place.names();
    for (out, expected) in [
        (
            "directory",
            "`directory` is a directory; expected a regular file",
        ),
        (
            "new/",
            "`new/` is the name of a directory; expected the name of a file",
        ),
        (
            "directory/.",
            "`directory/.` is the name of a directory; expected the name of a file",
        ),
        (
            "..",
            "`..` is the name of a directory; expected the name of a file",
        ),
        ("pipe", "`pipe` is a pipe; expected a regular file"),
        ("socket", "`socket` is a socket; expected a regular file"),
        (
            "/dev/full",
            "`/dev/full` is a device; expected a regular file",
        ),
        (
            "no/out",
            "cannot write to `no`: No such file or directory (os error 2)",
        ),
        (
            "file/out",
            "cannot write `file/out`: Not a directory (os error 20)",
        ),
    ] {
        // There is no input, and nobody has looked for it.
        let ran = place.run(&format!("fuse none.safetensors {out}"));
        assert_eq!(ran.all(), (Some(2), "", &*format!("repfuse: {expected}\n")));
        untouched(&place, &before);
    }
    // Not by force either.
    let ran = place.run("fuse none.safetensors pipe --force");
    assert_eq!(
        ran.stderr,
        "repfuse: `pipe` is a pipe; expected a regular file\n"
    );
    let kind = place.path("pipe").metadata().expect("a pipe").file_type();
    assert!(kind.is_fifo());
    // The twin: with a name that a file can have, the missing input is what is missing.
    let ran = place.run("fuse none.safetensors directory/out");
    let expected =
        "repfuse: cannot open `none.safetensors`: No such file or directory (os error 2)\n";
    assert_eq!(ran.all(), (Some(2), "", expected));
    // A link to a pipe that has no path.
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    let ran = place
        .shell("$REPFUSE fuse in.safetensors /dev/stdout | cat")
        .output()
        .expect("a shell");
    let expected = "repfuse: `/dev/stdout` is a pipe; expected a regular file\n";
    assert_eq!(String::from_utf8_lossy(&ran.stderr), expected);
}

#[test]
fn the_name_of_the_output_is_that_of_a_file_of_its_format() {
    let place = Place::new();
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    for (args, expected) in [
        (
            "fuse in.safetensors x.json",
            "repfuse: `x.json` is the name of a JSON file; a state dict is written as `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`\n",
        ),
        (
            "fuse in.safetensors x.TXT --dry-run",
            "repfuse: `x.TXT` is the name of a text; a state dict is written as `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`\n",
        ),
        (
            "fuse in.safetensors x.json --shard-size 1GB",
            "repfuse: `x.json` is the name of a JSON file; a state dict is written as `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`\n",
        ),
        (
            "fuse in.safetensors -",
            "repfuse: `-` would be the standard output, and only files are written; choose a name (`./-` for a file called `-`)\n",
        ),
        (
            "report in.safetensors -o -",
            "repfuse: `-` would be the standard output, and only files are written; choose a name (`./-` for a file called `-`)\n",
        ),
    ] {
        let ran = place.run(args);
        assert_eq!(ran.all(), (Some(2), "", expected), "{args}");
        assert_eq!(place.names(), ["in.safetensors"]);
    }
    // The twins: endings that promise nothing, and a file that is meant to be called so.
    for name in ["x", "x.weights", "yolo.v8", "./-"] {
        let ran = place.run(&format!("fuse in.safetensors {name} --quiet"));
        assert_eq!(ran.all(), (Some(0), "", ""), "{name}");
        assert!(Checkpoint::open(place.path(name)).is_ok(), "{name}");
    }
}

/// The user that owns nothing; the tests of permissions run as it where they are started by root, whom nothing stops.
const NOBODY: u32 = 65534;

#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    let (place, _) = prepared(1, 8);
    let am_root = place.path("").metadata().expect("a directory").uid() == 0;
    let mode = |name: &str, mode| {
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(mode)).expect("a mode");
    };
    fs::create_dir(place.path("locked")).expect("a directory");
    mode("", 0o755);
    mode("in.safetensors", 0o644);
    let fuse = |out: &str| {
        let mut command = place.command(&["fuse", "in.safetensors", out, "--quiet"]);
        if am_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output()
    };
    mode("locked", 0o777);
    match fuse("locked/first.safetensors") {
        Ok(output) if output.status.success() => {}
        _ => return skipped("another user cannot run the command where it is built"),
    }
    // What cannot be listed can still be written to; only the directory's own sync is impossible then.
    mode("locked", 0o333);
    let ran: file::Ran = fuse("locked/second.safetensors")
        .expect("the command")
        .into();
    assert_eq!(ran.all(), (Some(0), "", ""));
    mode("locked", 0o555);
    let ran: file::Ran = fuse("locked/out.safetensors").expect("the command").into();
    let expected = "repfuse: cannot write to `locked`: Permission denied (os error 13)\n";
    assert_eq!(ran.all(), (Some(2), "", expected));
    mode("locked", 0o777);
    assert_eq!(
        fs::read_dir(place.path("locked"))
            .expect("a directory")
            .count(),
        2
    );
}

#[test]
fn the_mode_is_the_umasks_or_that_of_the_file_before() {
    let (place, whole) = prepared(1, 8);
    let fuse = |umask: &str, force: &str| {
        let line = format!(
            "umask {umask}; exec \"$REPFUSE\" fuse in.safetensors out.safetensors --verify -q {force}"
        );
        assert_eq!(end(start(place.shell(&line))).all(), (Some(0), "", ""));
        assert_eq!(place.read("out.safetensors"), whole);
        place
            .path("out.safetensors")
            .metadata()
            .expect("a file")
            .mode()
            & 0o7777
    };
    for (umask, mode) in [("022", 0o644), ("027", 0o640), ("077", 0o600), ("0", 0o666)] {
        assert_eq!(fuse(umask, ""), mode, "umask {umask}");
        fs::remove_file(place.path("out.safetensors")).expect("a file");
    }
    for mode in [0o600, 0o640, 0o664, 0o444] {
        place.write("out.safetensors", "old");
        fs::set_permissions(
            place.path("out.safetensors"),
            fs::Permissions::from_mode(mode),
        )
        .expect("a mode");
        assert_eq!(fuse("022", "--force"), mode);
        fs::remove_file(place.path("out.safetensors")).expect("a file");
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let (place, _) = prepared(1, 8);
    let before = place.names();
    let ran = place.run("fuse in.safetensors out.safetensors --dry-run --bn-eps 1e-5");
    assert_eq!((ran.code(), &*ran.stderr), (Some(0), ""));
    assert!(
        ran.stdout.starts_with("stage0.0.rbr_reparam  8×8×3×3  = "),
        "{}",
        ran.stdout
    );
    untouched(&place, &before);
}

#[test]
fn names_may_be_long_or_not_utf8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let (place, whole) = prepared(1, 8);
    let long = "é".repeat(127);
    for name in [
        OsStr::new(&long),
        OsStr::from_bytes(b"\xff\xfe.safetensors"),
    ] {
        let args = [
            OsStr::new("fuse"),
            OsStr::new("in.safetensors"),
            name,
            OsStr::new("-q"),
        ];
        let ran = end(start(place.command(&args)));
        if ran.stderr.ends_with("(os error 84)\n") {
            skipped("this file system takes UTF-8 names only");
            continue;
        }
        assert_eq!(ran.all(), (Some(0), "", ""));
        assert_eq!(fs::read(place.path(name)).expect("a file"), whole);
    }
    let too_long = "e".repeat(300);
    let ran = place.run(&format!("fuse in.safetensors {too_long}"));
    let expected =
        format!("repfuse: cannot write `{too_long}`: File name too long (os error 36)\n");
    assert_eq!(ran.all(), (Some(2), "", &*expected));
}
