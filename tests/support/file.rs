//! Files that fuse and files that lie, and a directory to run the command in.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use super::Random;
use super::command::{repfuse, undisturbed};
use super::forge::{File, Held};

/// The bytes of a safetensors file with any header and any data.
pub fn bytes(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header);
    out.extend_from_slice(data);
    out
}

/// A tensor of random values.
pub fn tensor(file: &mut File, name: &str, shape: &[usize], random: &mut Random) {
    let held = Held::random(random, shape, -1.0, 1.0);
    file.tensors.insert(name.to_owned(), held);
}

/// A file of tensors that are all ones.
pub fn ones(tensors: &[(&str, &[usize])]) -> File {
    let mut file = File::default();
    for (name, shape) in tensors {
        let values = vec![1.0; shape.iter().product()];
        let held = Held::f32(shape, &values);
        file.tensors.insert((*name).to_owned(), held);
    }
    file
}

/// A batch norm of random values.
pub fn norm(file: &mut File, module: &str, channels: usize, random: &mut Random) {
    for end in ["weight", "bias", "running_mean", "running_var"] {
        tensor(file, &format!("{module}.{end}"), &[channels], random);
    }
    file.at(&format!("{module}.running_var"))
        .edit(|var| var.iter_mut().for_each(|x| *x = x.abs() + 0.1));
}

/// A block of RepVGG that keeps its width, without the identity branch.
pub fn block(file: &mut File, name: &str, channels: usize, random: &mut Random) {
    for (branch, k) in [("rbr_dense", 3), ("rbr_1x1", 1)] {
        let shape = [channels, channels, k, k];
        tensor(
            file,
            &format!("{name}.{branch}.conv.weight"),
            &shape,
            random,
        );
        norm(file, &format!("{name}.{branch}.bn"), channels, random);
    }
}

/// A checkpoint of RepVGG blocks and a classifier.
pub fn checkpoint(blocks: usize, channels: usize) -> File {
    let (mut file, mut random) = (File::default(), Random(7));
    for i in 0..blocks {
        block(&mut file, &format!("stage{i}.0"), channels, &mut random);
    }
    tensor(&mut file, "head.weight", &[10, channels], &mut random);
    file
}

/// A recipe of one block, which may stand among any other tensors.
pub fn recipe(block: &str) -> String {
    format!(
        r#"{{"name": "own", "about": "a test", "eps": 1e-5, "beside": ["{{p}}"], "blocks": [{block}]}}"#
    )
}

/// Every file below a directory whose name ends in `.extension`.
pub fn files_below(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files
}

/// A directory of its own to run the command in.
pub struct Place(tempfile::TempDir);

/// What a run of the command left.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Code, stdout and stderr, to compare at once.
    pub fn all(&self) -> (Option<i32>, &str, &str) {
        (self.code(), &self.stdout, &self.stderr)
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ran {
            status: output.status,
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().expect("a directory"))
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).expect("a writable directory");
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a readable file")
    }

    /// The names of everything in the directory, in order.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("a directory");
        let mut names: Vec<String> = entries
            .map(|e| e.expect("an entry").file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// The command, in this directory.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = repfuse();
        command
            .current_dir(self.0.path())
            // Names are looked for in what is printed, and so must not be shortened.
            .env("COLUMNS", "400")
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// A shell's command line in this directory, where `$REPFUSE` is the command.
    pub fn shell(&self, line: &str) -> Command {
        let mut command = undisturbed("sh");
        command
            .current_dir(self.0.path())
            .env("REPFUSE", env!("CARGO_BIN_EXE_repfuse"))
            .args(["-c", line])
            .stdin(Stdio::null());
        command
    }

    /// Runs the command with arguments that are separated by spaces.
    pub fn run(&self, args: &str) -> Ran {
        let args: Vec<&str> = args.split_whitespace().collect();
        self.command(&args).output().expect("the command").into()
    }
}

/// Starts a command whose outputs are read when it has ended.
pub fn start(mut command: Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command")
}

/// Waits for the end of a command.
pub fn end(child: Child) -> Ran {
    child.wait_with_output().expect("the command").into()
}

/// Says on the test's own output why a part of it was left out.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "left out: {why}");
}
