//! What pods have on the node's disk: `emptyDir`s, logs and containers' own layers; and the limits they set themselves.
//! Measured only for pods that have limits, or when the disk is short.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::eviction::rank::Share;
use crate::model::{Container, Pod};
use crate::node_context::NodeContext;
use crate::pod::worker::View;
use crate::quantity;

const NAME: &str = "ephemeral-storage";

/// Bytes of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Layer and logs of each container.
    pub containers: Vec<Share>,
    /// Name and size of each `emptyDir`; those in memory do not count for the disk.
    pub volumes: Vec<(String, i128, bool)>,
}

impl Usage {
    /// All of it that is on the disk.
    pub fn on_disk(&self) -> i128 {
        let volumes = self.volumes.iter().filter(|(_, _, memory)| !memory).map(|(_, size, _)| size);
        self.containers.iter().map(|s| s.usage).sum::<i128>() + volumes.sum::<i128>()
    }
}

/// True if the pod may exceed a limit of its own.
pub fn is_limited(pod: &Pod) -> bool {
    let volume = |v: &crate::model::Volume| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some());
    pod.spec.volumes.iter().any(volume) || pod.spec.containers.iter().any(|c| limit(c).is_some())
}

/// Measures a pod. A container whose layer cannot be asked for counts with its logs alone.
pub async fn measure(node: &NodeContext, view: &View) -> Usage {
    let mut layers = Vec::new();
    for c in view.pod.containers() {
        let id = view.containers.iter().find(|v| v.name == c.name).and_then(|v| v.id.clone());
        let layer = match id {
            Some(id) => node.runtime.layer_usage(&id).await.unwrap_or_default(),
            None => 0,
        };
        layers.push((c.name.clone(), node.log_dir(&view.pod).join(&c.name), layer, request(c)));
    }
    let dir = node.dir(view.pod.uid());
    let volumes: Vec<(String, PathBuf, bool)> = view
        .pod
        .spec
        .volumes
        .iter()
        .filter_map(|v| Some((v.name.clone(), dir.volume(v), v.empty_dir.as_ref()?.medium == "Memory")))
        .collect();
    let work = move || Usage {
        containers: layers
            .into_iter()
            .map(|(container, logs, layer, request)| Share {
                container,
                usage: i128::from(layer) + size(&logs),
                request,
            })
            .collect(),
        volumes: volumes.into_iter().map(|(name, path, memory)| (name, size(&path), memory)).collect(),
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

/// Upstream's sentence about the first limit that is exceeded.
pub fn exceeded(pod: &Pod, usage: &Usage) -> Option<String> {
    for (name, size, _) in &usage.volumes {
        let volume = pod.spec.volumes.iter().find(|v| v.name == *name);
        let text = volume.and_then(|v| v.empty_dir.as_ref()?.size_limit.as_deref());
        if let Some(text) = text
            && quantity::value(text).is_some_and(|limit| limit > 0 && *size > limit)
        {
            return Some(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{text}\". "));
        }
    }
    let limits: Vec<Option<i128>> = pod.spec.containers.iter().map(limit).collect();
    if let Some(total) = limits.iter().copied().try_fold(0, |sum, l| Some(sum + l?))
        && total > 0
        && usage.on_disk() > total
    {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            quantity::binary(total)
        ));
    }
    usage.containers.iter().find_map(|share| {
        let container = pod.spec.containers.iter().find(|c| c.name == share.container)?;
        let text = container.resources.limits.get(NAME)?;
        (share.usage > limit(container)?)
            .then(|| format!("Container {} exceeded its local ephemeral storage limit \"{text}\". ", share.container))
    })
}

fn limit(c: &Container) -> Option<i128> {
    c.resources.limits.get(NAME).and_then(|q| quantity::value(q)).filter(|l| *l > 0)
}

fn request(c: &Container) -> i128 {
    c.resources.requests.get(NAME).and_then(|q| quantity::value(q)).unwrap_or(0)
}

/// Bytes that a directory takes on its filesystem, as `du` counts; what vanishes meanwhile counts for nothing.
fn size(dir: &Path) -> i128 {
    let mut total = 0;
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(about) = entry.metadata() else { continue };
            total += i128::from(about.blocks()) * 512;
            if about.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_of_pods() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": "10Mi"}}}, {"name": "b"},
            ],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "w", "emptyDir": {}}],
        }}))
        .unwrap();
        assert!(is_limited(&pod));
        let mib = 1 << 20;
        let usage = |a, v| Usage {
            containers: vec![Share { container: "a".into(), usage: a, request: 0 }],
            volumes: vec![("v".into(), v, false), ("w".into(), 100 * mib, false)],
        };
        for (usage, expected) in [
            (usage(mib, mib), None),
            (usage(mib, mib + 1), Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ")),
            (usage(11 * mib, 0), Some("Container a exceeded its local ephemeral storage limit \"10Mi\". ")),
        ] {
            assert_eq!(exceeded(&pod, &usage).as_deref(), expected, "{usage:?}");
        }
        let mut all = pod;
        all.spec.containers.truncate(1);
        assert_eq!(
            exceeded(&all, &usage(mib, 0)).as_deref(),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ")
        );
    }

    #[test]
    fn directories_are_counted_through() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("d")).unwrap();
        let before = size(tmp.path());
        fs::write(tmp.path().join("d/f"), vec![1; 100_000]).unwrap();
        assert!((100_000..200_000).contains(&(size(tmp.path()) - before)));
        assert_eq!(size(Path::new("/none")), 0);
    }
}
