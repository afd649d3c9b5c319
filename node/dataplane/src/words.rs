//! Array maps that are mapped into this process, as words that programs and we change at the same time.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An array map of words, mapped into this process.
pub(crate) struct Words {
    start: *mut libc::c_void,
    words: usize,
}

// SAFETY: the mapping is only read and written through atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Maps the first `words` of an array map made with `BPF_F_MMAPABLE`.
    pub(crate) fn map(fd: BorrowedFd<'_>, words: usize, writable: bool) -> io::Result<Words> {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a fresh shared mapping of a descriptor that we hold; the result is checked.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), words * 4, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Words { start, words }) }
    }

    fn word(&self, index: usize) -> Option<&AtomicU32> {
        if index >= self.words {
            return None;
        }
        // SAFETY: inside the mapping, which lives as long as `self`; words are aligned.
        Some(unsafe { AtomicU32::from_ptr(self.start.cast::<u32>().add(index)) })
    }

    /// Reads a word.
    pub(crate) fn get(&self, index: usize) -> Option<u32> {
        self.word(index).map(|word| word.load(Ordering::Acquire))
    }

    /// Reads two neighbouring words as one number.
    pub(crate) fn get_long(&self, index: usize) -> Option<u64> {
        let halves = [self.get(index)?, self.get(index + 1)?];
        Some(if cfg!(target_endian = "little") {
            u64::from(halves[0]) | u64::from(halves[1]) << 32
        } else {
            u64::from(halves[1]) | u64::from(halves[0]) << 32
        })
    }

    /// Two neighbouring words as one number, of which the first has an even index.
    fn long(&self, index: usize) -> Option<&AtomicU64> {
        if !index.is_multiple_of(2) || index + 1 >= self.words {
            return None;
        }
        // SAFETY: inside the mapping, which starts at a page and lives as long as `self`; an even word is aligned for eight
        // bytes.
        Some(unsafe { AtomicU64::from_ptr(self.start.cast::<u64>().add(index / 2)) })
    }

    /// Adds to two neighbouring words as one number.
    pub(crate) fn add_long(&self, index: usize, value: u64) {
        if let Some(long) = self.long(index) {
            long.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// Sets bits of two neighbouring words as one number, which others change at the same time.
    pub(crate) fn mark_long(&self, index: usize, bits: u64) {
        if let Some(long) = self.long(index) {
            long.fetch_or(bits, Ordering::AcqRel);
        }
    }

    /// Clears bits of two neighbouring words as one number, which others change at the same time.
    pub(crate) fn clear_long(&self, index: usize, bits: u64) {
        if let Some(long) = self.long(index) {
            long.fetch_and(!bits, Ordering::AcqRel);
        }
    }

    /// How many words there are.
    pub(crate) fn len(&self) -> usize {
        self.words
    }

    /// Writes a word that has a value, and leaves it alone where it has another one.
    pub(crate) fn replace(&self, index: usize, from: u32, to: u32) {
        if let Some(word) = self.word(index) {
            let _ = word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Writes a word; out of range is ignored, the planner never asks for it.
    pub(crate) fn set(&self, index: usize, value: u32) {
        if let Some(word) = self.word(index) {
            word.store(value, Ordering::Release);
        }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`.
        unsafe { libc::munmap(self.start, self.words * 4) };
    }
}
