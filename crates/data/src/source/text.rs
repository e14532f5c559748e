//! A plain-text file: one document, or many when it is large.

use std::io::Read;
use std::path::PathBuf;

use super::Document;
use crate::{Error, Result};

/// A file up to this size is one document.
const WHOLE: usize = 8 << 20;
/// A larger one is cut into documents of at most this size.
const PIECE: usize = 256 << 10;

/// Reads one file. Pieces are far smaller than [`WHOLE`] so that the share held out for validation can
/// be met closely; each ends at the last blank line in its second half, else at the last line break,
/// else between two characters.
pub(crate) struct TextReader<R> {
    input: R,
    path: PathBuf,
    domain: String,
    name: String,
    /// Bytes read and not yet handed out are `buffer[start..]`.
    buffer: Vec<u8>,
    start: usize,
    /// Pieces handed out, if the file is cut.
    cut: Option<u64>,
    begun: bool,
    /// Bytes and lines handed out.
    offset: u64,
    lines: u64,
}

impl<R: Read> TextReader<R> {
    pub(crate) fn new(input: R, path: PathBuf, domain: String, name: String) -> Self {
        let buffer = Vec::new();
        TextReader {
            input,
            path,
            domain,
            name,
            buffer,
            start: 0,
            cut: None,
            begun: false,
            offset: 0,
            lines: 0,
        }
    }

    /// Reads until `bytes` are there or the file ends.
    fn fill(&mut self, bytes: usize) -> Result<()> {
        let held = self.buffer.len() - self.start;
        if held >= bytes {
            return Ok(());
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let more = (bytes - held) as u64;
        let read = self.input.by_ref().take(more).read_to_end(&mut self.buffer);
        read.map_err(|e| Error::read(&self.path, e))?;
        Ok(())
    }

    /// The next document; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Document>> {
        if !self.begun {
            self.begun = true;
            self.fill(WHOLE + 1)?;
            self.cut = (self.buffer.len() > WHOLE).then_some(0);
            if self.buffer.starts_with(b"\xef\xbb\xbf") {
                self.start = 3;
                self.offset = 3;
            }
        }
        let end = match self.cut {
            None => self.buffer.len(),
            Some(_) => {
                self.fill(PIECE + 1)?;
                let held = self.buffer.get(self.start..).unwrap_or_default();
                self.start + held.get(..PIECE).map_or(held.len(), cut_point)
            }
        };
        let piece = self.buffer.get(self.start..end).unwrap_or_default();
        if piece.is_empty() {
            return Ok(None);
        }
        let text = match std::str::from_utf8(piece) {
            Ok(text) => text.to_owned(),
            Err(error) => {
                let (good, bad) = piece.split_at(error.valid_up_to());
                let byte = bad.first().copied().unwrap_or_default();
                let (line, offset) = (self.lines + newlines(good) + 1, self.offset + good.len() as u64);
                return Err(Error::Utf8 { path: self.path.clone(), line, offset, byte });
            }
        };
        self.offset += piece.len() as u64;
        self.lines += newlines(piece);
        self.start = end;
        let name = match &mut self.cut {
            None => self.name.clone(),
            Some(count) => {
                *count += 1;
                format!("{}#{count}", self.name)
            }
        };
        Ok(Some(Document { domain: self.domain.clone(), name, text, messages: Vec::new() }))
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// Where to end a piece that is full: behind a blank line, behind a line, or between characters.
fn cut_point(piece: &[u8]) -> usize {
    let half = piece.len() / 2;
    let mut line = None;
    for (at, _) in piece.iter().enumerate().skip(half).rev().filter(|&(_, &byte)| byte == b'\n') {
        line.get_or_insert(at + 1);
        let before = piece.get(..at).unwrap_or_default();
        if before.ends_with(b"\n") || before.ends_with(b"\n\r") {
            return at + 1;
        }
    }
    let between = || {
        let starts = |&at: &usize| piece.get(at).is_some_and(|byte| byte & 0xc0 != 0x80);
        (piece.len().saturating_sub(4)..piece.len()).rev().find(starts)
    };
    line.or_else(between).unwrap_or(piece.len())
}
