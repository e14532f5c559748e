//! Read-only memory maps, and freed memory back to the system: the only `unsafe` of this crate.
#![expect(
    unsafe_code,
    reason = "a memory map is unsafe to create: the file may change under it; malloc_trim and mallopt are C"
)]

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

/// The bytes of a file or of a part of it, mapped or owned; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bytes {
    inner: Inner,
    part: Range<usize>,
}

#[derive(Clone, Debug)]
enum Inner {
    Mapped(Arc<Mmap>),
    Owned(Arc<[u8]>),
}

impl Bytes {
    /// Maps a whole file for reading.
    pub(crate) fn map(file: &File) -> io::Result<Bytes> {
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::from(Vec::new()));
        }
        // SAFETY: the map is read-only. Files of this project are not changed in place while someone
        // may hold a map of them: writers create new files and rename them, so the pages below a live
        // map keep their content and length, even when the file is removed. The one file that grows,
        // the log, is mapped for a moment by its only writer before it writes. A process from outside
        // that cuts a finished file short can raise SIGBUS, as with any map, but cannot make us read
        // elsewhere: the length was fixed at this call.
        let map = unsafe { Mmap::map(file)? };
        let part = 0..map.len();
        Ok(Bytes { inner: Inner::Mapped(Arc::new(map)), part })
    }

    /// A part of them; none where they do not reach so far.
    pub fn part(&self, part: Range<usize>) -> Option<Bytes> {
        self.get(part.clone())?;
        let part = self.part.start + part.start..self.part.start + part.end;
        Some(Bytes { inner: self.inner.clone(), part })
    }

    /// Tells the system that reads will jump around, so that it does not read ahead. No effect on
    /// owned bytes or where unsupported: it is advice.
    pub fn advise_random(&self) {
        #[cfg(unix)]
        if let Inner::Mapped(map) = &self.inner
            && let Err(error) = map.advise(memmap2::Advice::Random)
        {
            tracing::debug!(%error, "madvise refused");
        }
    }

    /// BLAKE3 of all of it, whose pages leave the memory of this process as soon as they are hashed.
    pub fn hash(&self) -> blake3::Hash {
        const PART: usize = 8 << 20;
        let mut hasher = blake3::Hasher::new();
        for (n, part) in self.chunks(PART).enumerate() {
            hasher.update(part);
            self.release(n * PART, part.len());
        }
        hasher.finalize()
    }

    /// Tells the system that a part will not be read soon: its pages leave the memory of this process. No effect
    /// on owned bytes or where unsupported: it is advice.
    pub fn release(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        if let Inner::Mapped(map) = &self.inner
            && offset.checked_add(len).is_some_and(|end| end <= self.part.len())
        {
            let offset = self.part.start + offset;
            // Whole pages: the system refuses a start inside of one.
            const PAGE: usize = 1 << 16;
            let start = offset.next_multiple_of(PAGE).min(offset + len);
            // SAFETY: the map is of a file and read-only: pages that are let go are read again when needed.
            let released = unsafe {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                map.unchecked_advise_range(advice, start, offset + len - start)
            };
            if let Err(error) = released {
                tracing::debug!(%error, "madvise refused");
            }
        }
    }
}

/// From now on glibc gives freed blocks of 256 KiB or more back to the system at once, and what is free at the end of
/// a heap. It would keep up to 64 MiB there for each thread, and let go of blocks less and less. For the start of a
/// program. Does nothing elsewhere.
pub fn keep_little_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for threshold in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: the function takes no pointer, and the program has no other thread yet that could allocate.
        unsafe {
            libc::mallopt(threshold, 256 << 10);
        }
    }
}

/// Gives freed memory back to the system, which glibc otherwise keeps: after work that took much more than what
/// comes next. Does nothing elsewhere.
pub fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the function takes no pointer, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all = match &self.inner {
            Inner::Mapped(map) => &map[..],
            Inner::Owned(bytes) => bytes,
        };
        &all[self.part.clone()]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let part = 0..bytes.len();
        Bytes { inner: Inner::Owned(bytes.into()), part }
    }
}
