//! The command against a plain copy of the same file, in turn, whole processes: the ratio of their times, throughput, memory.
//!
//! `cargo bench --bench fuse -- [--megabytes N] [--rounds N] [--dir DIR] [--sync] [FILE]`
//!
//! Without FILE, a RepVGG of twelve wide blocks is made for it; and one of a megabyte, for what starting up takes.

#![expect(clippy::print_stdout, reason = "a program whose output is its purpose")]

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Map, Value, json};

#[derive(Parser)]
struct Options {
    /// The file to fuse; one that repfuse can detect.
    file: Option<PathBuf>,
    /// How large a file to make.
    #[arg(long, default_value_t = 500)]
    megabytes: u64,
    /// How often to copy and to fuse.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Where; by default in memory, for on a disk it is the disk that is measured.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Sync the copy as well. (`fuse` always does, which is nothing in memory and much on a disk.)
    #[arg(long)]
    sync: bool,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

const BLOCKS: u64 = 12;

fn main() -> Result<()> {
    let options = Options::parse();
    let dir = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None if Path::new("/dev/shm").is_dir() => tempfile::tempdir_in("/dev/shm"),
        None => tempfile::tempdir(),
    }?;
    let small = dir.path().join("small.safetensors");
    make(&small, 1)?;
    let file = match &options.file {
        Some(file) => file.clone(),
        None => {
            let file = dir.path().join("train.safetensors");
            make(&file, options.megabytes)?;
            file
        }
    };
    let bytes = fs::metadata(&file)?.len();
    let cores = std::thread::available_parallelism()?;
    println!(
        "{:.1} MB, in {}, {cores} cores",
        megabytes(bytes),
        dir.path().display()
    );

    let (copy, deploy) = (dir.path().join("copy"), dir.path().join("deploy"));
    let mut rounds = Vec::new();
    for round in 0..=options.rounds {
        let copied = timed(|| {
            run(Command::new("cp").args([&file, &copy]))?;
            if options.sync {
                File::open(&copy)?.sync_all()?;
            }
            Ok(())
        })?;
        fs::remove_file(&copy)?;
        let fused = timed(|| run(repfuse("fuse").args([&file, &deploy])))?;
        // The first round warms up; what the last one wrote is kept to be verified.
        if round > 0 {
            rounds.push((copied, fused));
        }
        if round < options.rounds {
            fs::remove_file(&deploy)?;
        }
    }
    let peak = peak_megabytes();

    println!("{:12} {:>8} {:>8} {:>8}", "", "median", "least", "most");
    let row = |name: &str, unit: &str, values: Vec<f64>| {
        let [middle, least, most] = spread(values);
        println!("{name:12} {middle:8.3} {least:8.3} {most:8.3} {unit}");
    };
    let of = |f: fn(&(f64, f64)) -> f64| rounds.iter().map(f).collect::<Vec<_>>();
    row("cp", "s", of(|(copied, _)| *copied));
    row("fuse", "s", of(|(_, fused)| *fused));
    row("fuse / cp", "", of(|(copied, fused)| fused / copied));
    let speed = |(_, fused): &(f64, f64)| megabytes(bytes) / 1000.0 / fused;
    row("read", "GB/s", rounds.iter().map(speed).collect());
    let held = |peak: Option<f64>| {
        if let Some(peak) = peak {
            println!(
                "{:12} {peak:8.1}                   MB at the most",
                "memory"
            );
        }
    };
    held(peak);
    let verified = timed(|| run(repfuse("verify").args([&file, &deploy])))?;
    println!("{:12} {verified:8.3}                   s", "verify");
    held(peak_megabytes());
    fs::remove_file(&deploy)?;

    let times = |command: &str, file: &Path, out: Option<&Path>| -> Result<()> {
        let mut times = Vec::new();
        for _ in 0..3 * options.rounds {
            times.push(1000.0 * timed(|| run(repfuse(command).arg(file).args(out)))?);
            out.map(fs::remove_file).transpose()?;
        }
        let size = megabytes(fs::metadata(file)?.len());
        println!("{command} of {size:.1} MB");
        row("", "ms", times);
        Ok(())
    };
    times("inspect", &file, None)?;
    times("inspect", &small, None)?;
    times("fuse", &small, Some(&deploy))
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn repfuse(command: &str) -> Command {
    let mut process = Command::new(env!("CARGO_BIN_EXE_repfuse"));
    process.arg(command).stdout(Stdio::null());
    process.stderr(Stdio::null());
    process
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{:?} does not start", command.get_program()))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn timed(f: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    f()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Median, least and most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    ]
}

/// The most memory that any process started so far was given, which is the largest of `cp`, `fuse` and this one when it started them.
fn peak_megabytes() -> Option<f64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?;
        // Linux counts in kibibytes, macOS in bytes.
        let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
        Some(usage.max_rss() as f64 * f64::from(unit) / 1e6)
    }
    #[cfg(not(unix))]
    None
}

/// Writes a RepVGG with its original names: twelve blocks, each as wide as fills the file.
fn make(path: &Path, size: u64) -> Result<()> {
    // A block has ten weights and twelve vectors per channel, of four bytes each.
    let width = ((size * 1_000_000 / BLOCKS / 40) as f64).sqrt() as u64 / 8 * 8;
    let mut header = Map::new();
    let mut end = 0;
    let mut tensor = |name: String, shape: &[u64]| {
        let start = end;
        end += 4 * shape.iter().product::<u64>();
        header.insert(
            name,
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}),
        );
    };
    for block in 0..BLOCKS {
        let name = |rest: &str| format!("stage1.{block}.{rest}");
        for (branch, k) in [("rbr_dense", 3), ("rbr_1x1", 1)] {
            tensor(
                name(&format!("{branch}.conv.weight")),
                &[width, width, k, k],
            );
        }
        for norm in ["rbr_dense.bn", "rbr_1x1.bn", "rbr_identity"] {
            for end in ["weight", "bias", "running_mean", "running_var"] {
                tensor(name(&format!("{norm}.{end}")), &[width]);
            }
        }
    }
    let mut header = serde_json::to_vec(&Value::Object(header))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    // All of them are positive, so that they can be variances; their number is odd, so that no two channels are alike.
    let values: Vec<u8> = (0..99_991u32)
        .flat_map(|i| (0.5 + (i * 7919 % 99_991) as f32 / 99_991.0).to_le_bytes())
        .collect();
    let mut left = end as usize;
    while left > 0 {
        let part = left.min(values.len());
        out.write_all(&values[..part])?;
        left -= part;
    }
    io::Write::flush(&mut out)?;
    Ok(())
}
