//! Writes the files of a volume so that a reader sees either all old or all new ones: upstream's layout of a
//! timestamped directory, a `..data` link that is swapped, and one visible link per top-level name.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::payload::Files;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Who the files belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// For service account tokens: the uid all containers share.
    pub user: Option<u32>,
    /// `fsGroup`.
    pub group: Option<u32>,
}

/// Makes the volume at `dir` hold exactly `files`. Returns whether anything was changed. Blocking.
pub fn write(dir: &Path, files: &Files, owner: Owner) -> io::Result<bool> {
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && same(&dir.join(current), files)?
    {
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let fresh = PathBuf::from(format!("{stamp}.{}", rand::random::<u32>()));
    write_tree(&dir.join(&fresh), files, owner)?;
    for name in top_names(files) {
        let link = dir.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(&name), &link)?;
        }
    }
    let tmp = dir.join(DATA_TMP);
    if let Err(e) = fs::remove_file(&tmp)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(e);
    }
    symlink(&fresh, &tmp)?;
    fs::rename(&tmp, dir.join(DATA))?;
    remove_stale(dir, files, &fresh)?;
    Ok(true)
}

fn write_tree(root: &Path, files: &Files, owner: Owner) -> io::Result<()> {
    make_dir(root, owner)?;
    for (path, file) in files {
        let target = root.join(path);
        let mut made = root.to_path_buf();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            made.push(part);
            if !made.is_dir() {
                make_dir(&made, owner)?;
            }
        }
        fs::write(&target, &file.data)?;
        let mode = if owner.group.is_some() { file.mode | 0o440 } else { file.mode };
        if owner != Owner::default() {
            chown(&target, owner.user.filter(|_| file.private), owner.group)?;
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn make_dir(path: &Path, owner: Owner) -> io::Result<()> {
    fs::create_dir(path)?;
    if owner.group.is_some() {
        chown(path, None, owner.group)?;
    }
    let mode = if owner.group.is_some() { 0o2755 } else { 0o755 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn same(current: &Path, files: &Files) -> io::Result<bool> {
    let mut seen = 0;
    let mut pending = vec![current.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                pending.push(path);
                continue;
            }
            let name = path.strip_prefix(current).unwrap_or(&path).to_string_lossy().into_owned();
            match files.get(&name) {
                Some(file) if fs::read(&path)? == file.data => seen += 1,
                _ => return Ok(false),
            }
        }
    }
    Ok(seen == files.len())
}

fn top_names(files: &Files) -> BTreeSet<String> {
    files.keys().filter_map(|p| p.split('/').next()).map(str::to_owned).collect()
}

fn remove_stale(dir: &Path, files: &Files, fresh: &Path) -> io::Result<()> {
    let keep = top_names(files);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == DATA || Path::new(&name) == fresh || keep.contains(&name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::payload::File;
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter()
            .map(|(p, d)| ((*p).to_owned(), File { data: d.as_bytes().to_vec(), mode: 0o640, private: false }))
            .collect()
    }

    #[test]
    fn swaps_whole_generations() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &files(&[("a", "1"), ("d/x", "2"), ("gone", "3")]), Owner::default()).unwrap());
        assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_to_string(dir.join("d/x")).unwrap(), "2");
        let mode = fs::metadata(dir.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let first = fs::read_link(dir.join("..data")).unwrap();
        assert!(!write(dir, &files(&[("a", "1"), ("d/x", "2"), ("gone", "3")]), Owner::default()).unwrap());
        assert_eq!(fs::read_link(dir.join("..data")).unwrap(), first, "nothing changed, nothing written");

        assert!(write(dir, &files(&[("a", "9"), ("d/x", "2")]), Owner::default()).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "9");
        assert!(fs::symlink_metadata(dir.join("gone")).is_err());
        assert!(!dir.join(first).exists(), "the old generation is removed");
    }

    #[test]
    fn empty_volume() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &Files::new(), Owner::default()).unwrap());
        assert!(dir.path().join("..data").is_dir());
    }
}
