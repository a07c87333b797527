//! The wire format of protocol buffers, read at positions of a file: a payload that nobody asks for is stepped over.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use prost::encoding::{WireType, decode_key, decode_varint};

use super::error::Error;
use crate::tensor::open::read_exact_at;

/// A file that is read here and there, through a window.
#[derive(Debug)]
pub(super) struct Wire<'a> {
    file: &'a File,
    path: PathBuf,
    len: u64,
    window: Vec<u8>,
    /// Where in the file the window begins.
    start: u64,
}

/// One field of a message.
#[derive(Clone, Debug)]
pub(super) struct Field {
    /// Its number.
    pub number: u32,
    /// What it holds.
    pub payload: Payload,
    /// Where it is in the file, its key included.
    pub whole: Range<u64>,
}

/// What a field holds.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// A number that takes as many bytes as it needs.
    Varint(u64),
    /// Eight bytes.
    Fixed64,
    /// Four bytes.
    Fixed32(u32),
    /// A string, a message, or numbers side by side: where they are in the file.
    Bytes(Range<u64>),
}

/// What is read at once.
const WINDOW: usize = 1 << 16;

/// A key and a length take ten bytes each at most.
const LONGEST: u64 = 20;

/// Names and other strings may be this long.
const LONGEST_TEXT: u64 = 1 << 16;

impl<'a> Wire<'a> {
    pub fn new(file: &'a File, path: &Path, len: u64) -> Wire<'a> {
        Wire {
            file,
            path: path.to_owned(),
            len,
            window: Vec::new(),
            start: 0,
        }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// An error about this file.
    pub fn wrong(&self, reason: String) -> Error {
        Error::Format {
            path: self.path.clone(),
            reason,
        }
    }

    /// The fields of the message that lies at `range`.
    ///
    /// # Errors
    /// When a field is cut short, reaches beyond the message, or is of a kind that no ONNX file has.
    pub fn fields(
        &mut self,
        range: Range<u64>,
        mut each: impl FnMut(&mut Self, Field) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            let field = self.field(at, range.end)?;
            at = field.whole.end;
            each(self, field)?;
        }
        Ok(())
    }

    /// The field that lies at a range.
    pub fn field_at(&mut self, whole: Range<u64>) -> Result<Field, Error> {
        self.field(whole.start, whole.end)
    }

    /// All fields of a field that is a message.
    pub fn fields_of(&mut self, whole: Range<u64>) -> Result<Vec<Field>, Error> {
        let field = self.field_at(whole)?;
        let mut fields = Vec::new();
        let range = self.range(&field)?;
        self.fields(range, |_, field| {
            fields.push(field);
            Ok(())
        })?;
        Ok(fields)
    }

    fn field(&mut self, start: u64, end: u64) -> Result<Field, Error> {
        let mut head = self.window_at(start..end.min(start + LONGEST))?;
        let before = head.len();
        let wrong = |what: &str| format!("the field at byte {start} {what}");
        let beyond = "reaches beyond the message that it is in";
        let Ok((number, wire)) = decode_key(&mut head) else {
            let reason = wrong("has no key that a protocol buffer can have");
            return Err(self.wrong(reason));
        };
        let value = match wire {
            WireType::Varint | WireType::LengthDelimited => decode_varint(&mut head).ok(),
            WireType::SixtyFourBit => head.first_chunk().map(|b| u64::from_le_bytes(*b)),
            WireType::ThirtyTwoBit => head.first_chunk().map(|b| u32::from_le_bytes(*b).into()),
            WireType::StartGroup | WireType::EndGroup => {
                let reason = wrong("begins or ends a group, which no ONNX file has");
                return Err(self.wrong(reason));
            }
        };
        let Some(value) = value else {
            return Err(self.wrong(wrong(beyond)));
        };
        let at = start + (before - head.len()) as u64;
        let (payload, stop) = match wire {
            WireType::Varint => (Payload::Varint(value), Some(at)),
            WireType::SixtyFourBit => (Payload::Fixed64, at.checked_add(8)),
            WireType::ThirtyTwoBit => (Payload::Fixed32(value as u32), at.checked_add(4)),
            _ => {
                let stop = at.checked_add(value);
                (Payload::Bytes(at..stop.unwrap_or(at)), stop)
            }
        };
        match stop {
            Some(stop) if stop <= end => Ok(Field {
                number,
                payload,
                whole: start..stop,
            }),
            _ => Err(self.wrong(wrong(beyond))),
        }
    }

    /// The bytes at a range that is no longer than the window.
    fn window_at(&mut self, range: Range<u64>) -> Result<&[u8], Error> {
        let held = self.start..self.start + self.window.len() as u64;
        if range.start < held.start || range.end > held.end {
            let len = (self.len - range.start).min(WINDOW as u64);
            self.window.resize(len as usize, 0);
            self.start = range.start;
            let read = read_exact_at(self.file, &mut self.window, range.start);
            read.map_err(|source| {
                self.window.clear();
                Error::unreadable(&self.path, source)
            })?;
        }
        let at = (range.start - self.start) as usize;
        Ok(&self.window[at..at + (range.end - range.start) as usize])
    }

    /// The bytes at a range.
    pub fn bytes(&mut self, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let len = range.end - range.start;
        if len <= WINDOW as u64 {
            return self.window_at(range).map(<[u8]>::to_vec);
        }
        let mut bytes = vec![0; len as usize];
        read_exact_at(self.file, &mut bytes, range.start)
            .map_err(|source| Error::unreadable(&self.path, source))?;
        Ok(bytes)
    }

    /// A field that is a string.
    pub fn text(&mut self, field: &Field) -> Result<String, Error> {
        let range = self.range(field)?;
        let len = range.end - range.start;
        let at = range.start;
        if len > LONGEST_TEXT {
            return Err(self.wrong(format!(
                "the name at byte {at} has {len} bytes; at most {LONGEST_TEXT} are read"
            )));
        }
        let bytes = self.window_at(range)?.to_vec();
        String::from_utf8(bytes)
            .map_err(|_| self.wrong(format!("the name at byte {at} is no UTF-8")))
    }

    /// Where the payload of a field lies.
    pub fn range(&self, field: &Field) -> Result<Range<u64>, Error> {
        match &field.payload {
            Payload::Bytes(range) => Ok(range.clone()),
            _ => Err(self.wrong(format!(
                "the field at byte {} is a number; expected a string or a message",
                field.whole.start
            ))),
        }
    }

    /// A field that is a whole number.
    pub fn number(&self, field: &Field) -> Result<i64, Error> {
        match field.payload {
            Payload::Varint(value) => Ok(value as i64),
            _ => Err(self.wrong(format!(
                "the field at byte {} is no whole number",
                field.whole.start
            ))),
        }
    }

    /// Numbers of four bytes that a repeated field adds to `numbers`, side by side or one alone; no more than `most` in all.
    pub fn floats(
        &mut self,
        field: &Field,
        most: usize,
        numbers: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let start = field.whole.start;
        let range = match &field.payload {
            Payload::Fixed32(bits) if numbers.len() < most => {
                numbers.push(f32::from_bits(*bits));
                return Ok(());
            }
            Payload::Bytes(range) => range.clone(),
            Payload::Fixed32(_) => return Err(self.wrong(too_many(start, most))),
            _ => return Err(self.wrong(format!("the field at byte {start} is no number"))),
        };
        let room = (most - numbers.len()) as u64;
        if (range.end - range.start) / 4 > room {
            return Err(self.wrong(too_many(start, most)));
        }
        let bytes = self.bytes(range)?;
        let (fours, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err(self.wrong(format!("the numbers at byte {start} are cut short")));
        }
        numbers.extend(fours.iter().map(|four| f32::from_le_bytes(*four)));
        Ok(())
    }

    /// Whole numbers that a repeated field adds to `numbers`, side by side or one alone; no more than `most` in all.
    pub fn numbers(
        &mut self,
        field: &Field,
        most: usize,
        numbers: &mut Vec<i64>,
    ) -> Result<(), Error> {
        let start = field.whole.start;
        match &field.payload {
            Payload::Varint(value) => numbers.push(*value as i64),
            Payload::Bytes(range) => {
                let mut at = range.start;
                while at < range.end {
                    let mut head = self.window_at(at..range.end.min(at + LONGEST))?;
                    let before = head.len();
                    let value = decode_varint(&mut head);
                    at += (before - head.len()) as u64;
                    match value {
                        Ok(value) => numbers.push(value as i64),
                        Err(_) => {
                            return Err(
                                self.wrong(format!("the numbers at byte {start} are cut short"))
                            );
                        }
                    }
                    if numbers.len() > most {
                        return Err(self.wrong(too_many(start, most)));
                    }
                }
            }
            _ => {
                return Err(self.wrong(format!("the field at byte {start} is no whole number")));
            }
        }
        match numbers.len() > most {
            true => Err(self.wrong(too_many(start, most))),
            false => Ok(()),
        }
    }
}

fn too_many(start: u64, most: usize) -> String {
    format!("the field at byte {start} has more than {most} numbers")
}
