//! Volumes on disk: where they are, how they are made, mounted and removed. Blocking calls only; the worker runs
//! them off the async threads. Contents of API-object volumes come from [`payload`], written by [`writer`].

pub mod payload;
pub mod writer;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::model::{EmptyDir, HostPath, Pod, Volume, VolumeMount};
use crate::quantity;
use payload::Files;
use writer::Owner;

/// The directories of one pod below the daemon's own.
#[derive(Clone, Debug)]
pub struct PodDir {
    root: PathBuf,
}

impl PodDir {
    /// `<dir>/pods/<uid>`.
    pub fn new(dir: &Path, uid: &str) -> PodDir {
        PodDir { root: dir.join("pods").join(uid) }
    }

    /// The pod's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file that is mounted into every container of the pod (`etc-hosts`, `resolv.conf`, `hostname`).
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The termination message file of one attempt of a container.
    pub fn termination(&self, container: &str, attempt: u32) -> PathBuf {
        self.root.join("containers").join(container).join(attempt.to_string())
    }

    /// Where a volume is, in upstream's layout.
    pub fn volume(&self, volume: &Volume) -> PathBuf {
        let plugin = match () {
            () if volume.empty_dir.is_some() => "kubernetes.io~empty-dir",
            () if volume.config_map.is_some() => "kubernetes.io~configmap",
            () if volume.secret.is_some() => "kubernetes.io~secret",
            () if volume.downward_api.is_some() => "kubernetes.io~downward-api",
            () if volume.image.is_some() => IMAGE_PLUGIN,
            () => "kubernetes.io~projected",
        };
        if let Some(h) = &volume.host_path {
            return PathBuf::from(&h.path);
        }
        self.root.join("volumes").join(plugin).join(&volume.name)
    }
}

/// Directory of the image volumes among a pod's volumes.
const IMAGE_PLUGIN: &str = "kubernetes.io~image";

/// The images mounted for a pod: where, and the key of each.
pub fn image_mounts(dir: &PodDir, uid: &str) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(dir.root.join("volumes").join(IMAGE_PLUGIN)).into_iter().flatten().flatten();
    entries.map(|e| (e.path(), image_key(uid, &e.file_name().to_string_lossy()))).collect()
}

/// What an image volume is called in the runtime.
pub fn image_key(uid: &str, volume: &str) -> String {
    format!("sluice-volume-{uid}-{volume}")
}

/// True if the node can mount this kind of volume.
pub fn is_supported(v: &Volume) -> bool {
    v.empty_dir.is_some()
        || v.host_path.is_some()
        || v.config_map.is_some()
        || v.secret.is_some()
        || v.downward_api.is_some()
        || v.projected.is_some()
        || v.image.is_some()
}

/// Makes a volume, or brings its files up to date. Idempotent. Errors are in upstream's words.
pub fn set_up(dir: &PodDir, pod: &Pod, volume: &Volume, files: Option<&Files>) -> Result<(), String> {
    let path = dir.volume(volume);
    let group = pod.spec.security_context.fs_group;
    let result = if let Some(e) = &volume.empty_dir {
        empty_dir(&path, e, group).map_err(|e| e.to_string())
    } else if let Some(h) = &volume.host_path {
        host_path(h)
    } else if volume.image.is_some() {
        // Mounted before, as that takes the runtime.
        Ok(())
    } else if let Some(files) = files {
        let user = payload::tokens(volume).next().and_then(|_| payload::common_user(pod));
        api_volume(&path, files, Owner { user, group }, in_memory(volume)).map_err(|e| e.to_string())
    } else {
        Err("this kind of volume is not supported by this node".to_owned())
    };
    result.map_err(|e| format!("MountVolume.SetUp failed for volume \"{}\" : {e}", volume.name))
}

/// Unmounts and removes everything of the pod. Idempotent.
pub fn tear_down(dir: &PodDir) -> io::Result<()> {
    let root = dir.root();
    if !root.exists() {
        return Ok(());
    }
    for point in mounts_below(root)? {
        umount2(&point, MntFlags::MNT_DETACH).map_err(io::Error::from)?;
    }
    match fs::remove_dir_all(root) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The host path a mount refers to, with `subPath` resolved (made if missing) and kept inside the volume.
pub fn source(dir: &PodDir, volume: &Volume, mount: &VolumeMount, sub_path: &str) -> Result<PathBuf, String> {
    let base = dir.volume(volume);
    if sub_path.is_empty() {
        return Ok(base);
    }
    let fail = |e: &dyn std::fmt::Display| {
        format!("failed to prepare subPath for volumeMount \"{}\" of container: {e}", mount.name)
    };
    let relative = Path::new(sub_path);
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(fail(&"subPath must not contain '..' or be absolute"));
    }
    let base = fs::canonicalize(&base).map_err(|e| fail(&e))?;
    let target = base.join(relative);
    if fs::symlink_metadata(&target).is_err() {
        make_below(&base, relative).map_err(|e| fail(&e))?;
    }
    let real = fs::canonicalize(&target).map_err(|e| fail(&e))?;
    if !real.starts_with(&base) {
        return Err(fail(&"it leads outside the volume"));
    }
    Ok(real)
}

/// Makes the directories of a `subPath` that are missing, with the mode and the group of the volume itself (upstream).
fn make_below(base: &Path, relative: &Path) -> io::Result<()> {
    let about = fs::metadata(base)?;
    let mut made = base.to_path_buf();
    for part in relative.components() {
        made.push(part);
        match fs::create_dir(&made) {
            Ok(()) => {
                chown(&made, None, Some(about.gid()))?;
                fs::set_permissions(&made, fs::Permissions::from_mode(about.mode() & 0o7777))?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && made.is_dir() => {}
            Err(e) => return Err(e),
        }
        // A link on the way must not lead out of the volume.
        if !fs::canonicalize(&made)?.starts_with(base) {
            return Err(io::Error::other("it leads outside the volume"));
        }
    }
    Ok(())
}

/// Secrets and tokens never reach a disk.
fn in_memory(volume: &Volume) -> bool {
    volume.secret.is_some() || volume.projected.is_some()
}

fn empty_dir(path: &Path, e: &EmptyDir, group: Option<u32>) -> io::Result<()> {
    let fresh = !path.exists();
    fs::create_dir_all(path)?;
    if e.medium == "Memory" && !is_mount_point(path)? {
        let size = e.size_limit.as_deref().and_then(quantity::value);
        tmpfs(path, size)?;
    } else if !fresh {
        return Ok(());
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    if group.is_some() {
        chown(path, None, group)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn api_volume(path: &Path, files: &Files, owner: Owner, memory: bool) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if memory && !is_mount_point(path)? {
        tmpfs(path, None)?;
    }
    if owner.group.is_some() {
        chown(path, None, owner.group)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o2755))?;
    }
    writer::write(path, files, owner).map(|_| ())
}

fn tmpfs(path: &Path, size: Option<i128>) -> io::Result<()> {
    let options = size.map(|s| format!("size={s}"));
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), options.as_deref())
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("mount of a tmpfs at {}: {e}", path.display())))
}

fn host_path(h: &HostPath) -> Result<(), String> {
    let path = Path::new(&h.path);
    let found = fs::metadata(path).ok();
    let is = |test: fn(&fs::Metadata) -> bool| found.as_ref().is_some_and(test);
    let fail = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", h.path));
    let ok = match h.type_.as_str() {
        "" => found.is_some() || fs::create_dir_all(path).is_ok(),
        "DirectoryOrCreate" if found.is_none() => fs::create_dir_all(path).is_ok(),
        "FileOrCreate" if found.is_none() => fs::File::create(path).is_ok(),
        "Directory" | "DirectoryOrCreate" if !is(fs::Metadata::is_dir) => return fail("a directory"),
        "File" | "FileOrCreate" if !is(fs::Metadata::is_file) => return fail("a file"),
        "Socket" if !is(|m| m.file_type().is_socket()) => return fail("a socket file"),
        "CharDevice" if !is(|m| m.file_type().is_char_device()) => return fail("a character device"),
        "BlockDevice" if !is(|m| m.file_type().is_block_device()) => return fail("a block device"),
        _ => true,
    };
    if ok { Ok(()) } else { Err(format!("cannot create {}", h.path)) }
}

/// Whether something is mounted there.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// Mount points below `root`, the deepest first.
fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|p| PathBuf::from(p.replace("\\040", " ")))
        .filter(|p| p.starts_with(root))
        .collect();
    found.sort_by_key(|p| std::cmp::Reverse(p.as_os_str().len()));
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn volume(v: serde_json::Value) -> Volume {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn host_path_types() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().join(name).to_string_lossy().into_owned();
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("dir")).unwrap();
        for (name, type_, ok) in [
            ("dir", "Directory", true),
            ("file", "Directory", false),
            ("none", "Directory", false),
            ("new", "DirectoryOrCreate", true),
            ("file", "File", true),
            ("dir", "FileOrCreate", false),
            ("newfile", "FileOrCreate", true),
            ("file", "Socket", false),
            ("dir", "BlockDevice", false),
            ("file", "", true),
        ] {
            let h = HostPath { path: at(name), type_: type_.into() };
            assert_eq!(host_path(&h).is_ok(), ok, "{name} {type_}");
        }
        let error = host_path(&HostPath { path: at("file"), type_: "Directory".into() }).unwrap_err();
        assert_eq!(error, format!("hostPath type check failed: {} is not a directory", at("file")));
    }

    #[test]
    fn empty_dir_and_sub_paths() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = PodDir::new(tmp.path(), "u");
        let v = volume(json!({"name": "v", "emptyDir": {}}));
        set_up(&dir, &Pod::default(), &v, None).unwrap();
        let base = dir.volume(&v);
        assert_eq!(fs::metadata(&base).unwrap().permissions().mode() & 0o777, 0o777);
        let m = VolumeMount { name: "v".into(), ..VolumeMount::default() };
        assert!(source(&dir, &v, &m, "a/b").unwrap().ends_with("v/a/b"));
        assert!(base.join("a/b").is_dir());
        assert_eq!(fs::metadata(base.join("a/b")).unwrap().permissions().mode() & 0o7777, 0o777);
        std::os::unix::fs::symlink("/etc", base.join("out")).unwrap();
        assert!(source(&dir, &v, &m, "out/x").unwrap_err().contains("outside the volume"));
        assert!(source(&dir, &v, &m, "out").unwrap_err().contains("outside the volume"));
        assert!(source(&dir, &v, &m, "../x").is_err());
        tear_down(&dir).unwrap();
        assert!(!dir.root().exists());
        tear_down(&dir).unwrap();
    }

    #[test]
    fn unsupported_volumes_are_named() {
        let tmp = tempfile::tempdir().unwrap();
        let v = volume(json!({"name": "v", "nfs": {"server": "x"}}));
        assert!(!is_supported(&v));
        let e = set_up(&PodDir::new(tmp.path(), "u"), &Pod::default(), &v, None).unwrap_err();
        assert!(e.starts_with("MountVolume.SetUp failed for volume \"v\" : "), "{e}");
    }
}
