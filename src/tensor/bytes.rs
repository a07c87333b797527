//! A part of a file, read from front to back.

use std::fs::File;
use std::io;

use super::open::read_exact_at;

/// What is read at once.
const BUFFER: u64 = 1 << 16;

/// A range of a file and a place in it. Whatever the file claims, no more is allocated than the range still holds.
#[derive(Debug)]
pub(crate) struct Bytes<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    buffered_at: u64,
}

impl<'a> Bytes<'a> {
    /// The bytes from `at` up to `end`, which lies in the file.
    pub(crate) fn new(file: &'a File, at: u64, end: u64) -> Bytes<'a> {
        Bytes {
            file,
            at,
            end: end.max(at),
            buffer: Vec::new(),
            buffered_at: at,
        }
    }

    /// The position in the file.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes follow.
    pub(crate) fn left(&self) -> u64 {
        self.end - self.at
    }

    /// Goes over `n` bytes.
    pub(crate) fn skip(&mut self, n: u64) -> Result<(), String> {
        self.expect(n)?;
        self.at += n;
        Ok(())
    }

    /// The next `n` bytes.
    pub(crate) fn take(&mut self, n: u64) -> Result<Vec<u8>, String> {
        self.expect(n)?;
        let mut out = vec![0; n as usize];
        self.fill(&mut out)?;
        Ok(out)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> Result<u8, String> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The next bytes up to a line feed, without it; at most `most`.
    pub(crate) fn line(&mut self, most: usize) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(out),
                _ if out.len() == most => {
                    return Err(format!("a line of it has more than {most} bytes"));
                }
                byte => out.push(byte),
            }
        }
    }

    fn expect(&self, n: u64) -> Result<(), String> {
        match n <= self.left() {
            true => Ok(()),
            false => Err(format!(
                "it ends where {n} more bytes are expected, after {}",
                self.left()
            )),
        }
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), String> {
        self.expect(out.len() as u64)?;
        let held = self.buffered_at + self.buffer.len() as u64;
        if self.at < self.buffered_at || self.at + out.len() as u64 > held {
            if out.len() as u64 >= BUFFER {
                self.read(out, self.at)?;
                self.at += out.len() as u64;
                return Ok(());
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(self.left().min(BUFFER) as usize, 0);
            self.read(&mut buffer, self.at)?;
            (self.buffer, self.buffered_at) = (buffer, self.at);
        }
        let from = (self.at - self.buffered_at) as usize;
        out.copy_from_slice(&self.buffer[from..from + out.len()]);
        self.at += out.len() as u64;
        Ok(())
    }

    fn read(&self, out: &mut [u8], at: u64) -> Result<(), String> {
        read_exact_at(self.file, out, at).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => "it has become shorter".to_owned(),
            _ => e.to_string(),
        })
    }
}
