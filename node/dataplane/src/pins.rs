//! Where maps and links live between processes, in the BPF file system:
//!
//! `<pin dir>/v<schema>/<map>` are sets of maps, one for each schema, and `<pin dir>/current` names the one that the programs
//! work on. `<pin dir>/links`, `filters` and `uplinks` say where programs are attached; they belong to no schema, as any build
//! may put its programs there. `<pin dir>/programs/<origin>` has the programs for the next process of the same build. While a
//! map is replaced, the new one is pinned beside the old one as `next-<map>`.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::{Error, sys};

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
const CURRENT: &str = "current";
const NEXT: &str = "next-";
const REVISION: &str = "revision-";
const BACK: &str = "back-";

/// The pins of one data plane, with the set of maps of one schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pins {
    root: PathBuf,
    schema: u32,
}

impl Pins {
    pub(crate) fn new(root: &Path, schema: u32) -> Pins {
        Pins { root: root.to_path_buf(), schema }
    }

    fn set(&self) -> PathBuf {
        self.root.join(format!("v{}", self.schema))
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.set().join(name)
    }

    /// Where the map is pinned that will take a map's place.
    pub(crate) fn next(&self, name: &str) -> PathBuf {
        self.set().join(format!("{NEXT}{name}"))
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Names of the pinned links.
    pub(crate) fn link_names(&self) -> Vec<String> {
        let mut names = names(&self.links());
        names.sort();
        names
    }

    fn filter_dir(&self) -> PathBuf {
        self.root.join("filters")
    }

    /// The pin of a program that says that a pod's link has it as a filter.
    pub(crate) fn filter(&self, program: &str, index: u32) -> PathBuf {
        self.filter_dir().join(format!("{program}-{index}"))
    }

    /// Indices of the pods' links that have our filters.
    pub(crate) fn filters(&self) -> BTreeSet<u32> {
        indices(&self.filter_dir())
    }

    fn program_dir(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// Where programs are pinned that are made of what has this name.
    pub(crate) fn programs(&self, origin: &str) -> PathBuf {
        self.program_dir().join(origin)
    }

    /// Makes the folder for programs of this origin.
    pub(crate) fn add_programs(&self, origin: &str) -> Result<PathBuf, Error> {
        let folder = self.programs(origin);
        create(&folder)?;
        Ok(folder)
    }

    /// Forgets programs of every other origin. What is attached stays attached.
    pub(crate) fn remove_other_programs(&self, origin: &str) -> Result<(), Error> {
        let others = names(&self.program_dir()).into_iter().filter(|name| name != origin);
        others.map(|name| self.programs(&name)).try_for_each(|folder| remove(&folder))
    }

    fn uplink_dir(&self) -> PathBuf {
        self.root.join("uplinks")
    }

    /// The pin of a program that says that an uplink has it as a filter. Apart from those of pods' links, which are read by
    /// their indices alone.
    pub(crate) fn uplink_filter(&self, program: &str, index: u32) -> PathBuf {
        self.uplink_dir().join(format!("{program}-{index}"))
    }

    /// Indices of the uplinks that have our filters.
    pub(crate) fn uplink_filters(&self) -> BTreeSet<u32> {
        indices(&self.uplink_dir())
    }

    /// Does any uplink have a program of this name, as a link or as a filter?
    pub(crate) fn is_attached(&self, program: &str) -> bool {
        let dirs = [self.links(), self.uplink_dir()];
        dirs.iter().flat_map(|dir| names(dir)).any(|name| name.rsplit_once('-').is_some_and(|(own, _)| own == program))
    }

    /// Has an earlier process left something here?
    pub(crate) fn taken(&self) -> bool {
        !self.schemas().is_empty()
    }

    fn schemas(&self) -> BTreeSet<u32> {
        names(&self.root).iter().filter_map(|name| name.strip_prefix('v')?.parse().ok()).collect()
    }

    /// The set that the programs in the kernel work on; `None` on a fresh machine.
    pub(crate) fn in_use(&self) -> Option<Pins> {
        let target = std::fs::read_link(self.root.join(CURRENT)).ok();
        let named = target.and_then(|target| target.to_str()?.strip_prefix('v')?.parse().ok());
        let known = self.schemas();
        // Builds before there was a name had one set only.
        let schema = named.filter(|schema| known.contains(schema)).or(known.last().copied())?;
        Some(Pins { root: self.root.clone(), schema }).filter(|pins| !pins.maps().is_empty())
    }

    /// Says that the programs work on this set from now on.
    pub(crate) fn use_now(&self) -> Result<(), Error> {
        self.note(CURRENT, &format!("v{}", self.schema), &self.root)
    }

    /// Names of the maps of this set.
    pub(crate) fn maps(&self) -> BTreeSet<String> {
        let notes = [NEXT, REVISION, BACK, "links", "filters"];
        names(&self.set()).into_iter().filter(|name| !notes.iter().any(|note| name.starts_with(note))).collect()
    }

    /// The revision of a map's layout.
    pub(crate) fn revision(&self, name: &str) -> u32 {
        let target = std::fs::read_link(self.set().join(format!("{REVISION}{name}"))).ok();
        target.and_then(|target| target.to_str()?.parse().ok()).unwrap_or(1)
    }

    pub(crate) fn set_revision(&self, name: &str, revision: u32) -> Result<(), Error> {
        if self.revision(name) == revision {
            return Ok(());
        }
        self.note(&format!("{REVISION}{name}"), &revision.to_string(), &self.set())
    }

    /// What is noted about the way back from a map to an older revision of it.
    pub(crate) fn way_back(&self, name: &str, revision: u32) -> Option<String> {
        let target = std::fs::read_link(self.set().join(format!("{BACK}{revision}-{name}"))).ok()?;
        target.to_str().map(str::to_owned)
    }

    pub(crate) fn set_way_back(&self, name: &str, revision: u32, recipe: &str) -> Result<(), Error> {
        self.note(&format!("{BACK}{revision}-{name}"), recipe, &self.set())
    }

    /// The BPF file system holds no plain files; the target of a symbolic link may be any text, and is replaced at once.
    fn note(&self, name: &str, text: &str, dir: &Path) -> Result<(), Error> {
        let fresh = dir.join(format!("{NEXT}{name}"));
        remove_pin(&fresh)?;
        std::os::unix::fs::symlink(text, &fresh)
            .and_then(|()| std::fs::rename(&fresh, dir.join(name)))
            .map_err(|error| Error::system(format!("note {name} in {}", dir.display()), error))
    }

    /// Makes the folders, mounting the BPF file system when it is missing, and takes over links and filters from builds that
    /// kept them with the maps.
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
        for dir in [self.links(), self.filter_dir(), self.uplink_dir(), self.set()] {
            create(&dir)?;
        }
        for schema in self.schemas() {
            let set = self.root.join(format!("v{schema}"));
            for (from, to) in [(set.join("links"), self.links()), (set.join("filters"), self.filter_dir())] {
                names(&from).iter().try_for_each(|name| share(&from.join(name), &to.join(name)))?;
            }
        }
        Ok(())
    }

    /// Makes a map of another set this set's own, too.
    pub(crate) fn adopt(&self, from: &Pins, name: &str) -> Result<(), Error> {
        if self != from {
            remove_pin(&self.map(name))?;
            share(&from.map(name), &self.map(name))?;
        }
        Ok(())
    }

    /// Forgets a map of this set.
    pub(crate) fn forget(&self, name: &str) -> Result<(), Error> {
        remove_pin(&self.map(name))
    }

    /// Puts the next map in a map's place.
    pub(crate) fn advance(&self, name: &str) -> Result<(), Error> {
        std::fs::rename(self.next(name), self.map(name))
            .map_err(|error| Error::system(format!("replace the map {name}"), error))
    }

    /// Forgets a map that should have taken another one's place.
    pub(crate) fn forget_next(&self, name: &str) -> Result<(), Error> {
        remove_pin(&self.next(name))
    }

    /// Schemas whose sets are kept beside this one.
    pub(crate) fn others(&self) -> Vec<Pins> {
        let others = self.schemas().into_iter().filter(|schema| *schema != self.schema);
        others.map(|schema| Pins { root: self.root.clone(), schema }).collect()
    }

    /// Removes every set but this one and `kept`. Nothing is detached.
    pub(crate) fn remove_others(&self, kept: Option<&Pins>) -> Result<(), Error> {
        self.others().iter().filter(|other| Some(*other) != kept).try_for_each(|other| remove(&other.set()))
    }

    /// Removes everything: links first, so that nothing runs on maps that go away.
    pub(crate) fn remove_all(&self) -> Result<(), Error> {
        for dir in self.schemas().iter().map(|schema| self.root.join(format!("v{schema}/links"))).chain([self.links()])
        {
            names(&dir).iter().try_for_each(|name| crate::attach::unpin(&dir.join(name)))?;
        }
        remove(&self.root)
    }
}

/// The numbers at the ends of the names in a folder.
fn indices(dir: &Path) -> BTreeSet<u32> {
    names(dir).iter().filter_map(|name| name.rsplit_once('-')?.1.parse().ok()).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Pins what is pinned in one place in another one, too.
fn share(from: &Path, to: &Path) -> Result<(), Error> {
    if to.exists() {
        return Ok(());
    }
    let object = sys::open_pinned(from).map_err(|error| Error::system(format!("open {}", from.display()), error))?;
    sys::pin(std::os::fd::AsFd::as_fd(&object), to)
        .map_err(|error| Error::system(format!("pin {}", to.display()), error))
}

fn create(dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(|error| Error::system(format!("create {}", dir.display()), error))
}

pub(crate) fn remove_pin(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::system(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
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
