//! Archives as the kernel unpacks them into its first root: cpio, "newc" form. Pure.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive in the making; folders are made as files need them.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// Adds a file that may be run. `path` is absolute; what is there already stays.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE, content);
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.entry(path, LINK, to.as_bytes());
    }

    /// Adds a folder and those above it.
    pub(super) fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            self.add(&path[..at], DIRECTORY, &[]);
        }
        self.add(path, DIRECTORY, &[]);
    }

    /// The archive's bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.write("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_matches('/');
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.add(path, mode, content);
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        if !name.is_empty() && self.names.insert(name.to_owned()) {
            self.write(name, mode, content);
        }
    }

    fn write(&mut self, name: &str, mode: u32, content: &[u8]) {
        // Magic; inode, mode, user, group, links, time, size, device twice, special device twice, name's length, checksum.
        let inode = self.names.len();
        let fields = [inode, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_folders_come_first() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", b"hello");
        archive.file("/a/b/d", b"");
        archive.link("/lib64", "usr/lib64");
        let bytes = archive.finish();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let places: Vec<usize> = ["a\0", "a/b\0", "a/b/c\0", "hello", "a/b/d\0", "lib64\0", "TRAILER!!!\0"]
            .map(|name| text.find(name).unwrap())
            .to_vec();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(text.matches("070701").count(), 6);
        assert!(text.match_indices("070701").all(|(at, _)| at % 4 == 0));
        assert_eq!(bytes.len() % 4, 0);
    }
}
