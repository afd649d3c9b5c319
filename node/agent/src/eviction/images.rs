//! Collects images nobody uses when the disk fills: from upstream's high mark down to its low mark, those unused for the
//! longest first, none younger than the least age. Only what this node pulled is collected: an image that was imported
//! could not be had again. What is in use is asked of the runtime and the pods each time.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use sluice_runtime::ImageInfo;

use super::signals::{Room, Thresholds};
use crate::dispatch::Workers;
use crate::limits;
use crate::node_context::NodeContext;

/// What is remembered of images between two looks.
#[derive(Default)]
pub struct Collector {
    seen: HashMap<String, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Timestamp,
    used: Timestamp,
}

/// How much has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// So many bytes.
    Free(u64),
    /// Every image that nobody uses.
    All,
}

impl Goal {
    /// By the disk's fill alone; none below the high mark.
    pub fn of(disk: Room, t: &Thresholds) -> Option<Goal> {
        if disk.all == 0 || disk.used_percent() < t.images_high || disk.left >= t.images_enough {
            return None;
        }
        let keep = (disk.all / 100 * 100u64.saturating_sub(t.images_low)).min(t.images_enough);
        Some(Goal::Free(keep.saturating_sub(disk.left).max(1)))
    }
}

impl Collector {
    /// Looks at the images, and removes some if there is a goal. Returns the bytes that should come free.
    pub async fn look(&mut self, node: &NodeContext, workers: &Workers, goal: Option<Goal>) -> u64 {
        let (images, containers) = match (node.runtime.pulled_images().await, node.runtime.containers().await) {
            (Ok(images), Ok(containers)) => (images, containers),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "images are not looked at: the runtime does not list them");
                return 0;
            }
        };
        let mut used: HashSet<String> = containers.into_iter().flat_map(|c| [c.image, c.image_id]).collect();
        for handle in workers.all() {
            let view = handle.view.borrow();
            used.extend(view.pod.containers().map(|c| c.image.clone()));
            used.extend(view.pod.spec.volumes.iter().filter_map(|v| Some(v.image.as_ref()?.reference.clone())));
        }
        let now = Timestamp::now();
        let mut freed = 0;
        for image in self.choose(&images, &used, goal, now) {
            tracing::info!(image = image.names.join(", "), bytes = image.size, "removing an image that nobody uses");
            for name in &image.names {
                if let Err(error) = node.runtime.remove_image(name).await {
                    tracing::warn!(name, %error, "image not removed");
                }
            }
            freed += image.size;
        }
        if let Some(Goal::Free(wanted)) = goal
            && freed < wanted
        {
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found \
                 {freed} bytes eligible to free."
            );
            node.recorder.node(&node.identity.name, true, "FreeDiskSpaceFailed", &message);
        }
        freed
    }

    fn choose<'a>(
        &mut self,
        images: &'a [ImageInfo],
        used: &HashSet<String>,
        goal: Option<Goal>,
        now: Timestamp,
    ) -> Vec<&'a ImageInfo> {
        self.seen.retain(|id, _| images.iter().any(|i| i.id == *id));
        let mut free: Vec<(Seen, &ImageInfo)> = Vec::new();
        for image in images {
            let is_used = is_used(image, used);
            let seen = self.seen.entry(image.id.clone()).or_insert(Seen { first: now, used: Timestamp::UNIX_EPOCH });
            if is_used {
                seen.used = now;
            } else if now.duration_since(seen.first).unsigned_abs() >= limits::IMAGES_AGE {
                free.push((*seen, image));
            }
        }
        let Some(goal) = goal else { return Vec::new() };
        free.sort_by_key(|(seen, image)| (seen.used, seen.first, image.id.clone()));
        let mut sum = 0;
        let wanted = |sum: u64| goal == Goal::All || matches!(goal, Goal::Free(bytes) if sum < bytes);
        free.into_iter()
            .map(|(_, image)| image)
            .take_while(|image| {
                let go = wanted(sum);
                sum += image.size;
                go
            })
            .collect()
    }
}

/// By any of its names, whole or as people write them.
fn is_used(image: &ImageInfo, used: &HashSet<String>) -> bool {
    let short = |name: &str| -> Vec<String> {
        let mut all = vec![name.to_owned()];
        let familiar = name.strip_prefix("docker.io/").map(|n| n.strip_prefix("library/").unwrap_or(n).to_owned());
        all.extend(name.strip_prefix("docker.io/").map(str::to_owned));
        all.extend(familiar);
        let untagged: Vec<String> = all.iter().filter_map(|n| n.strip_suffix(":latest")).map(str::to_owned).collect();
        all.extend(untagged);
        all
    };
    used.contains(&image.id)
        || used.contains(&image.digest)
        || used.contains(&image.repo_digest)
        || image.names.iter().flat_map(|n| short(n)).any(|n| used.contains(&n))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn image(name: &str, size: u64) -> ImageInfo {
        ImageInfo {
            names: vec![format!("docker.io/library/{name}:latest")],
            id: format!("sha256:{name}"),
            digest: format!("sha256:m{name}"),
            repo_digest: String::new(),
            size,
            config: sluice_runtime::ImageConfig::default(),
        }
    }

    #[test]
    fn the_longest_unused_go_first_and_nothing_in_use() {
        let mut collector = Collector::default();
        let images = [image("a", 10), image("b", 10), image("c", 10), image("d", 10)];
        let start = Timestamp::from_second(1_000_000).unwrap();
        let uses = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<HashSet<_>>();
        let ids = |list: Vec<&ImageInfo>| list.iter().map(|i| i.id.clone()).collect::<Vec<_>>();
        // Too young to go.
        assert!(collector.choose(&images, &uses(&["a"]), Some(Goal::All), start).is_empty());
        let later = start + Duration::from_secs(60);
        collector.choose(&images, &uses(&["b", "sha256:a"]), None, later);
        let later = later + limits::IMAGES_AGE;
        let used = uses(&["d", "docker.io/library/x"]);
        assert_eq!(ids(collector.choose(&images, &used, Some(Goal::Free(11)), later)), ["sha256:c", "sha256:a"]);
        assert_eq!(ids(collector.choose(&images, &used, Some(Goal::All), later)), ["sha256:c", "sha256:a", "sha256:b"]);
        assert!(collector.choose(&images, &used, None, later).is_empty());
    }

    #[test]
    fn marks() {
        let goal = |left| Goal::of(Room { left, all: 1000 }, &Thresholds::default());
        // A large disk of which gigabytes are left is not full, whatever the percentage.
        let large = |left: u64| Goal::of(Room { left: left << 30, all: 100 << 30 }, &Thresholds::default());
        assert_eq!(large(5), None);
        assert_eq!(large(3), Some(Goal::Free(1 << 30)));
        assert_eq!(goal(151), None);
        assert_eq!(goal(150), Some(Goal::Free(50)));
        assert_eq!(goal(0), Some(Goal::Free(200)));
        assert_eq!(Goal::of(Room::default(), &Thresholds::default()), None);
    }
}
