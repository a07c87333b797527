//! Signals that ask to stop: the work ends at its next step, and the scratch file goes with it.
//!
//! A signal is asked for only while there is something to clean up; before that it ends the program as it ends any other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Whether a signal has come.
pub(super) static STOP: AtomicBool = AtomicBool::new(false);

/// Its number.
static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// From here on, signals that would end the program raise [`STOP`] instead.
///
/// # Errors
/// When the system refuses.
pub(super) fn watch() -> std::io::Result<()> {
    for signal in asked_for() {
        flag::register_usize(signal, &NUMBER, signal as usize)?;
        flag::register(signal, &STOP)?;
    }
    #[cfg(unix)]
    {
        // A file that grows beyond `ulimit -f` is then an error of the write, and no death by a signal.
        static IGNORED: AtomicBool = AtomicBool::new(false);
        flag::register(signal_hook::consts::SIGXFSZ, &IGNORED)?;
    }
    Ok(())
}

/// Whether the work is to end.
pub(super) fn stopped() -> bool {
    STOP.load(Relaxed)
}

/// Ends the program by the signal that has come, so that a shell's loop ends with it. Returns only if there was none.
pub(super) fn end() {
    let _ = low_level::emulate_default_handler(NUMBER.load(Relaxed) as i32);
}

/// The signals that end a program when a user wants it to: Ctrl-C, `kill`, and the terminal closing.
fn asked_for() -> Vec<i32> {
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    signals.push(signal_hook::consts::SIGHUP);
    match ignored() {
        Some(ignored) => signals.retain(|signal| ignored >> (signal - 1) & 1 == 0),
        // Elsewhere the system does not say, and `nohup` must keep its word.
        None => signals.truncate(2),
    }
    signals
}

/// What the program was started to ignore, as by `nohup`, a bit for each signal; only Linux says so.
fn ignored() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}
