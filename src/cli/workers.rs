//! The threads that blocks are shared out to.

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// Runs `f` on one thread per core, or on this one alone where the system allows no more.
///
/// # Errors
/// When it does not even allow that.
pub(super) fn with_workers<T: Send>(f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let alone = |_| -> Result<ThreadPool, ThreadPoolBuildError> {
        let one = ThreadPoolBuilder::new().num_threads(1);
        one.use_current_thread().build()
    };
    let pool = ThreadPoolBuilder::new().num_threads(cores).build();
    Ok(pool.or_else(alone)?.install(f))
}
