//! A small network on disk and the command run on it, for tests of whole outputs.

use std::path::PathBuf;
use std::process::Output;

use tempfile::TempDir;

use super::Random;
use super::command::repfuse;
use super::forge::{File, Held};

/// A directory of its own with `train.safetensors` in it.
pub struct Tiny {
    directory: TempDir,
    pub file: File,
    random: Random,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    pub status: i32,
}

impl Tiny {
    /// A stem, a run of three equal blocks, a strided one and a classifier, with three channels at first.
    pub fn network() -> Tiny {
        let mut tiny = Tiny::empty();
        tiny.block("stage0", [3, 4]);
        for i in 0..3 {
            tiny.block(&format!("stage1.{i}"), [4, 4]);
        }
        tiny.block("stage2.0", [4, 8]);
        tiny.tensor("linear.weight", &[5, 8], -1.0, 1.0);
        tiny.tensor("linear.bias", &[5], -1.0, 1.0);
        tiny.write();
        tiny
    }

    pub fn empty() -> Tiny {
        Tiny {
            directory: tempfile::tempdir().expect("a directory"),
            file: File::default(),
            random: Random(7),
        }
    }

    /// 3×3 and 1×1, each with its batch norm, and a batch norm alone where the width stays.
    pub fn block(&mut self, name: &str, [inputs, out]: [usize; 2]) {
        self.tensor(
            &format!("{name}.rbr_dense.conv.weight"),
            &[out, inputs, 3, 3],
            -0.5,
            0.5,
        );
        self.norm(&format!("{name}.rbr_dense.bn"), out);
        self.tensor(
            &format!("{name}.rbr_1x1.conv.weight"),
            &[out, inputs, 1, 1],
            -0.5,
            0.5,
        );
        self.norm(&format!("{name}.rbr_1x1.bn"), out);
        if inputs == out {
            self.norm(&format!("{name}.rbr_identity"), out);
        }
    }

    pub fn tensor(&mut self, name: &str, shape: &[usize], low: f64, high: f64) {
        let held = Held::random(&mut self.random, shape, low, high);
        self.file.tensors.insert(name.to_owned(), held);
    }

    pub fn put(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.file
            .tensors
            .insert(name.to_owned(), Held::f32(shape, values));
    }

    pub fn norm(&mut self, module: &str, channels: usize) {
        for end in ["weight", "bias", "running_mean"] {
            self.tensor(&format!("{module}.{end}"), &[channels], 0.2, 1.0);
        }
        self.tensor(&format!("{module}.running_var"), &[channels], 0.01, 2.0);
    }

    /// Writes `train.safetensors`.
    pub fn write(&self) {
        self.file.write(&self.path("train.safetensors"));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs the command in the directory, without colour and 80 columns wide.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }

    pub fn run_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Ran {
        let mut command = repfuse();
        command.current_dir(self.directory.path()).args(args);
        command.envs(environment.iter().copied());
        let Output {
            stdout,
            stderr,
            status,
        } = command.output().expect("the command runs");
        Ran {
            stdout: String::from_utf8(stdout).expect("text"),
            stderr: String::from_utf8(stderr).expect("text"),
            status: status.code().expect("an exit status"),
        }
    }

    /// Fuses the file to `out.safetensors` and verifies it.
    pub fn fuse(&self, more: &[&str]) -> Ran {
        let args = [
            "fuse",
            "train.safetensors",
            "out.safetensors",
            "--force",
            "--verify",
        ];
        self.run(&[&args, more].concat())
    }

    /// Runs the command, which must succeed, and gives what it printed.
    pub fn prints(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        let open = "repfuse: warning: the names alone do not tell the eps";
        let settled = ran.stderr.is_empty() || ran.stderr.starts_with(open);
        assert!(ran.status == 0 && settled, "{args:?}: {}", ran.stderr);
        ran.stdout
    }
}
