//! What a lab leaves behind whose process was killed: daemons and members of its etcd, pods, namespaces, files.

use std::{fs, path::Path};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};

use crate::{
    node::{Node, processes_of},
    sh::run,
};

/// Removes everything of the labs of this name, which must not run. True if there was anything.
///
/// # Errors
/// When processes cannot be listed, or a namespace or folder cannot be removed.
pub fn remove(name: &str, binary: &Path) -> Result<bool> {
    let mut found = false;
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        let dir = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(&format!("{name}-"));
        if !ours || !dir.is_dir() {
            continue;
        }
        found = true;
        for (pid, _) in processes_of(&dir)? {
            // One that has just ended is as good as killed.
            let _ = kill(pid, Signal::SIGKILL);
        }
        for node in fs::read_dir(&dir)?.flatten().filter(|entry| entry.path().join("data").is_dir()) {
            let node = node.file_name().to_string_lossy().into_owned();
            let Some(number) = node.strip_prefix("node") else { continue };
            let namespace = format!("{name}-{number}");
            if Path::new("/run/netns").join(&namespace).exists() {
                // Removed as a lab's node is, when it goes out of scope.
                drop(Node::new(name, &node, namespace, Vec::new(), &dir, binary));
            }
        }
        fs::remove_dir_all(&dir)?;
    }
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let namespace = entry.file_name().to_string_lossy().into_owned();
        let part = namespace.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        if part.is_some_and(|part| part == "net" || part.parse::<usize>().is_ok()) {
            found = true;
            run(&format!("ip netns del {namespace}"))?;
        }
    }
    Ok(found)
}
