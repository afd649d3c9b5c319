//! The log file: appended to, rotated by size. A disk that refuses costs lines, never the container its progress.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::limits;

/// The active log of one container.
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl LogFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, size: 0 }
    }

    /// Opens for appending; tried again at the next write if it fails.
    pub(super) fn open(&mut self) {
        if let Some(dir) = self.path.parent() {
            let _ = fs::create_dir_all(dir);
        }
        self.file = File::options().create(true).append(true).open(&self.path).ok();
        self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |about| about.len());
    }

    /// Appends whole lines.
    pub(super) fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.size > 0 && self.size + lines.len() as u64 > limits::LOG_FILE {
            self.rotate();
        }
        if self.file.is_none() {
            self.open();
        }
        if let Some(file) = &mut self.file {
            match file.write_all(lines) {
                Ok(()) => self.size += lines.len() as u64,
                Err(_) => self.file = None,
            }
        }
    }

    /// Renames as kubelet does (`0.log.20260102-030405`) and drops the oldest.
    fn rotate(&mut self) {
        self.file = None;
        let time = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let name = |suffix: &str| PathBuf::from(format!("{}.{time}{suffix}", self.path.display()));
        let mut target = name("");
        for again in 1..100 {
            if !target.exists() {
                break;
            }
            target = name(&format!("-{again:02}"));
        }
        let _ = fs::rename(&self.path, target);
        let rotated = rotated(&self.path);
        let surplus = rotated.len().saturating_sub(limits::LOG_FILES - 1);
        for old in &rotated[..surplus] {
            let _ = fs::remove_file(old);
        }
    }
}

/// The rotated files of a log, the oldest first.
pub(crate) fn rotated(path: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_full_log_is_rotated_and_the_oldest_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c/0.log");
        let mut log = LogFile::new(path.clone());
        let line = [&vec![b'x'; limits::LOG_FILE as usize / 2 - 1][..], b"\n"].concat();
        for _ in 0..2 * limits::LOG_FILES + 5 {
            log.write(&line);
        }
        log.write(b"last\n");
        let rotated = rotated(&path);
        assert_eq!(rotated.len(), limits::LOG_FILES - 1);
        assert!(rotated.iter().all(|file| fs::metadata(file).unwrap().len() == limits::LOG_FILE));
        assert!(fs::read_to_string(&path).unwrap().ends_with("\nlast\n"));
    }
}
