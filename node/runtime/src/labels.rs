//! What is written on a container so that a restarted daemon needs no file of its own, and how it is read back.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use jiff::Timestamp;

use crate::{ContainerSpec, ContainerState, Exit, Status};

pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const NAME: &str = "io.kubernetes.container.name";
/// Present on every container of ours.
pub(crate) const ATTEMPT: &str = "io.sluice.attempt";
pub(crate) const IMAGE: &str = "io.sluice.image";
pub(crate) const IMAGE_ID: &str = "io.sluice.image-id";
pub(crate) const LOG_PATH: &str = "io.sluice.log-path";
pub(crate) const CGROUP: &str = "io.sluice.cgroup";
pub(crate) const STOP_SIGNAL: &str = "io.sluice.stop-signal";
pub(crate) const TTY: &str = "io.sluice.tty";
/// `open` or `once`.
pub(crate) const STDIN: &str = "io.sluice.stdin";
/// Written at the end: `<code> <oom> <finished at>`.
pub(crate) const EXIT: &str = "io.sluice.exit";

/// On images: this node fetched it from a registry.
pub(crate) const PULLED: &str = "io.sluice.pulled";

const OWN: [&str; 13] =
    [POD_UID, POD_NAME, POD_NAMESPACE, NAME, ATTEMPT, IMAGE, IMAGE_ID, LOG_PATH, CGROUP, STOP_SIGNAL, TTY, STDIN, EXIT];

/// All labels of a new container.
pub(crate) fn write(spec: &ContainerSpec, image_id: &str, stop_signal: Option<&str>) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
    let mut set = |key: &str, value: &str| {
        if !value.is_empty() {
            labels.insert(key.to_owned(), value.to_owned());
        }
    };
    set(POD_UID, &spec.pod_uid);
    set(POD_NAME, &spec.pod_name);
    set(POD_NAMESPACE, &spec.namespace);
    set(NAME, &spec.name);
    set(ATTEMPT, &spec.attempt.to_string());
    set(IMAGE, &spec.image);
    set(IMAGE_ID, image_id);
    set(LOG_PATH, &spec.log_path.to_string_lossy());
    set(CGROUP, &format!("{}/{}", spec.cgroup_parent, spec.id));
    set(STOP_SIGNAL, stop_signal.unwrap_or_default());
    set(TTY, if spec.tty { "true" } else { "" });
    set(
        STDIN,
        if !spec.stdin {
            ""
        } else if spec.stdin_once {
            "once"
        } else {
            "open"
        },
    );
    labels
}

/// A container as its labels describe it; `status` comes from its task or, ended, from its labels.
pub(crate) fn read(
    id: String,
    created_at: Timestamp,
    mut labels: HashMap<String, String>,
    status: Status,
) -> ContainerState {
    let mut take = |key: &str| labels.remove(key).unwrap_or_default();
    let (tty, stdin) = (take(TTY), take(STDIN));
    let state = ContainerState {
        id,
        pod_uid: take(POD_UID),
        pod_name: take(POD_NAME),
        namespace: take(POD_NAMESPACE),
        name: take(NAME),
        attempt: take(ATTEMPT).parse().unwrap_or_default(),
        image: take(IMAGE),
        image_id: take(IMAGE_ID),
        log_path: PathBuf::from(take(LOG_PATH)),
        created_at,
        status,
        tty: !tty.is_empty(),
        stdin: !stdin.is_empty(),
        labels: BTreeMap::new(),
    };
    labels.retain(|key, _| !OWN.contains(&key.as_str()));
    ContainerState { labels: labels.into_iter().collect(), ..state }
}

/// How the end is written down.
pub(crate) fn write_exit(exit: &Exit) -> String {
    format!("{} {} {}", exit.code, exit.oom_killed, exit.finished_at)
}

/// The end as written down.
pub(crate) fn read_exit(labels: &HashMap<String, String>, started_at: Timestamp) -> Option<Exit> {
    let mut fields = labels.get(EXIT)?.split(' ');
    Some(Exit {
        code: fields.next()?.parse().ok()?,
        oom_killed: fields.next()?.parse().ok()?,
        finished_at: fields.next()?.parse().ok()?,
        started_at: Some(started_at),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut spec = ContainerSpec {
            id: "c1".into(),
            pod_uid: "u".into(),
            name: "web".into(),
            attempt: 3,
            image: "web:1".into(),
            stdin: true,
            ..ContainerSpec::default()
        };
        spec.labels.insert("io.sluice.spec-hash".into(), "abc".into());
        let mut labels = write(&spec, "sha256:1", Some("SIGQUIT"));
        let now: Timestamp = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        let exit = Exit { code: 137, started_at: Some(now), finished_at: now, oom_killed: true };
        labels.insert(EXIT.into(), write_exit(&exit));
        assert_eq!(read_exit(&labels, now), Some(exit.clone()));
        let state = read("c1".into(), now, labels, Status::Exited(exit));
        assert_eq!((state.name.as_str(), state.attempt, state.tty, state.stdin), ("web", 3, false, true));
        assert_eq!(state.labels, spec.labels);
    }
}
