//! Opening what may be anything: only a regular file has a length to trust and positions to read at.

use std::fs::{File, FileType, Metadata};
use std::path::Path;

use super::error::Error;

/// Opens a regular file for reading. A pipe is refused before it is opened, which would wait for a writer for ever.
///
/// # Errors
/// When it cannot be opened, or is something else.
pub(crate) fn regular(path: &Path) -> Result<(File, Metadata), Error> {
    let io = |source| Error::Io {
        what: "open",
        path: path.to_owned(),
        source,
    };
    expect_regular(path, path.metadata().map_err(io)?.file_type())?;
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    expect_regular(path, metadata.file_type())?;
    Ok((file, metadata))
}

/// Whether something that is there is a regular file.
///
/// # Errors
/// Says what it is otherwise.
pub(super) fn expect_regular(path: &Path, kind: FileType) -> Result<(), Error> {
    match name_of(kind) {
        None => Ok(()),
        Some(found) => Err(Error::NotAFile {
            path: path.to_owned(),
            found,
            expected: "a regular file",
        }),
    }
}

fn name_of(kind: FileType) -> Option<&'static str> {
    if kind.is_file() {
        return None;
    }
    if kind.is_dir() {
        return Some("a directory");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("a pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Some("a device");
        }
    }
    Some("something else")
}

/// Fills `out` with the bytes from position `at` on.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, out: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut out: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}
