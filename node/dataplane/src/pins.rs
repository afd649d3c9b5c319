//! Where maps and links live between processes: `<pin dir>/v<schema>/…` in the BPF file system.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use sluice_ebpf_common::SCHEMA;

use crate::Error;

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The pins of one data plane.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub(crate) fn new(root: &Path) -> Pins {
        Pins { root: root.to_path_buf() }
    }

    fn current(&self) -> PathBuf {
        self.root.join(format!("v{SCHEMA}"))
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.current().join(name)
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.current().join("links")
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Names of the pinned links.
    pub(crate) fn link_names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.links()).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    fn filter_dir(&self) -> PathBuf {
        self.current().join("filters")
    }

    /// The pin of a program that says that a pod's link has it as a filter.
    pub(crate) fn filter(&self, program: &str, index: u32) -> PathBuf {
        self.filter_dir().join(format!("{program}-{index}"))
    }

    /// Indices of the pods' links that have our filters.
    pub(crate) fn filters(&self) -> BTreeSet<u32> {
        let entries = std::fs::read_dir(self.filter_dir()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.rsplit_once('-')?.1.parse().ok()).collect()
    }

    /// Has an earlier process left its maps here?
    pub(crate) fn taken(&self) -> bool {
        self.links().exists()
    }

    /// Makes the folders, mounting the BPF file system when it is missing.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        let mount_point = mount_point(&self.root);
        if !is_bpf(&mount_point) {
            std::fs::create_dir_all(&mount_point)
                .map_err(|source| Error::NoBpffs { path: mount_point.clone(), source })?;
            mount(Some("bpf"), &mount_point, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(|errno| {
                match io::Error::from(errno) {
                    source if source.kind() == io::ErrorKind::PermissionDenied => Error::Permission,
                    source => Error::NoBpffs { path: mount_point, source },
                }
            })?;
        }
        [self.links(), self.filter_dir()].iter().try_for_each(|dir| {
            std::fs::create_dir_all(dir).map_err(|error| Error::system(format!("create {}", dir.display()), error))
        })
    }

    /// Removes pins of other schemas, once this one is attached.
    pub(crate) fn remove_older(&self) -> Result<(), Error> {
        let current = self.current();
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let path = entry.path();
            let versioned = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok()));
            if versioned && path != current {
                end_links(&path.join("links"))?;
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes everything: links first, so that nothing runs on maps that go away.
    pub(crate) fn remove_all(&self) -> Result<(), Error> {
        end_links(&self.links())?;
        remove(&self.root)
    }
}

/// Ends every link that is pinned in a folder.
fn end_links(dir: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        crate::attach::unpin(&entry.path())?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::system(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// The mount that the pin directory is on, `/sys/fs/bpf` when it is below that.
fn mount_point(root: &Path) -> PathBuf {
    let usual = Path::new("/sys/fs/bpf");
    if root.starts_with(usual) {
        return usual.to_path_buf();
    }
    let on_bpf = |path: &&Path| is_bpf(path);
    root.ancestors().find(on_bpf).map_or_else(|| root.to_path_buf(), Path::to_path_buf)
}

fn is_bpf(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type().0 == BPF_FS_MAGIC)
}

/// The mount of the cgroup v2 tree, also in the hybrid layout.
pub(crate) fn cgroup_root() -> Result<PathBuf, Error> {
    let mounts =
        std::fs::read_to_string("/proc/self/mounts").map_err(|error| Error::system("read /proc/self/mounts", error))?;
    cgroup_in(&mounts).ok_or(Error::NoCgroup)
}

fn cgroup_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_tree_is_found_in_every_layout() {
        let cases = [
            ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", Some("/sys/fs/cgroup")),
            (
                "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n", None),
        ];
        for (mounts, expected) in cases {
            assert_eq!(cgroup_in(mounts), expected.map(PathBuf::from), "{mounts}");
        }
    }
}
