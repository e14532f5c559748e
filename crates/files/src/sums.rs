//! Checksums: CRC-32C per block, to say where a file is damaged, and BLAKE3 per file.

use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Storage, valid_name};

/// Bytes per CRC-32C block.
pub const BLOCK: usize = 1 << 20;

/// What a manifest knows of one file beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSum {
    /// Name inside the directory of the manifest.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// BLAKE3 of the content, 64 lower-case hexadecimal digits.
    pub blake3: String,
    /// CRC-32C of each 1 MiB block, 8 hexadecimal digits each.
    pub crc32c: String,
}

impl FileSum {
    /// Whether the fields fit together; the file itself is not looked at.
    pub(crate) fn check(&self, manifest: &Path) -> Result<()> {
        if !valid_name(&self.name) || self.name.starts_with('.') || self.name.eq_ignore_ascii_case(MANIFEST) {
            return Err(Error::broken("file name", manifest, "a plain name of [A-Za-z0-9._-]", &self.name));
        }
        let digits = self.bytes.div_ceil(BLOCK as u64).checked_mul(8);
        if digits != Some(self.crc32c.len() as u64) || !self.crc32c.is_ascii() {
            let expected = format!("8 digits for each MiB of {} bytes", self.bytes);
            return Err(Error::broken("crc32c", manifest, expected, self.crc32c.len()));
        }
        Ok(())
    }

    /// Whether the file in `dir` has the length the manifest says.
    pub(crate) fn check_len(&self, storage: &dyn Storage, dir: &Path) -> Result<()> {
        let path = dir.join(&self.name);
        let found = storage.len(&path)?;
        if found != self.bytes {
            return Err(Error::broken("length", &path, format!("{} bytes", self.bytes), found));
        }
        Ok(())
    }

    /// Reads the file in `dir` from one end to the other and compares every checksum.
    pub(crate) fn verify(&self, storage: &dyn Storage, dir: &Path) -> Result<()> {
        self.check_len(storage, dir)?;
        let path = dir.join(&self.name);
        let mut reader = storage.reader(&path)?;
        let mut hasher = blake3::Hasher::new();
        let mut block = Vec::with_capacity(self.bytes.min(BLOCK as u64) as usize);
        let mut seen = 0u64;
        for (index, expected) in self.crc32c.as_bytes().chunks(8).enumerate() {
            block.clear();
            let read = reader.by_ref().take(BLOCK as u64).read_to_end(&mut block);
            seen += read.map_err(|e| Error::io("read", &path, e))? as u64;
            let found = crc_digits(&block);
            if found.as_bytes() != expected {
                let what = format!("crc32c of block {index}");
                return Err(Error::broken(what, &path, String::from_utf8_lossy(expected), found));
            }
            hasher.update(&block);
        }
        let found = hasher.finalize().to_hex();
        if seen != self.bytes || found.as_str() != self.blake3 {
            return Err(Error::broken("BLAKE3", &path, &self.blake3, found));
        }
        Ok(())
    }
}

/// The name every manifest has.
pub(crate) const MANIFEST: &str = "manifest.json";

fn crc_digits(block: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(block))
}

/// Writes through to `W` in blocks of [`BLOCK`] bytes and sums them on the way.
#[derive(Debug)]
pub(crate) struct Summing<W> {
    out: W,
    block: Vec<u8>,
    bytes: u64,
    hasher: blake3::Hasher,
    crc32c: String,
}

impl<W: Write> Summing<W> {
    pub(crate) fn new(out: W) -> Self {
        Summing { out, block: Vec::new(), bytes: 0, hasher: blake3::Hasher::new(), crc32c: String::new() }
    }

    /// Bytes taken so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn write_block(&mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            self.crc32c.push_str(&crc_digits(&self.block));
            self.hasher.update(&self.block);
            self.out.write_all(&self.block)?;
            self.block.clear();
        }
        Ok(())
    }

    /// Writes what is left and returns the inner writer and the sums.
    pub(crate) fn finish(mut self, name: &str) -> io::Result<(W, FileSum)> {
        self.write_block()?;
        let blake3 = self.hasher.finalize().to_hex().to_string();
        let sum = FileSum { name: name.to_owned(), bytes: self.bytes, blake3, crc32c: self.crc32c };
        Ok((self.out, sum))
    }
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let take = buf.len().min(BLOCK - self.block.len());
        let (now, _) = buf.split_at(take);
        self.block.extend_from_slice(now);
        self.bytes += take as u64;
        if self.block.len() == BLOCK {
            self.write_block()?;
        }
        Ok(take)
    }

    /// Nothing: a block goes out when it is full, the last one in [`Summing::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
