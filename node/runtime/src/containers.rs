//! The life of a container: snapshot, record, task; and its state as containerd has it.
//!
//! Round trips are few: a create makes four calls, a start one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime as RuntimeName;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, GetRequest, KillRequest, ListContainersRequest, ListTasksRequest, StartRequest,
    UpdateContainerRequest, WaitRequest,
};
use containerd_client::types::v1::{Process as Task, Status as TaskStatus};
use jiff::Timestamp;
use nix::unistd::Pid;
use prost_types::{Any, FieldMask};
use tonic::Code;

use crate::error::or_gone;
use crate::host::{self, Layers};
use crate::{
    Config, ContainerSpec, ContainerState, Error, Exit, Prepared, Result, Runtime, Seccomp, Status, events, exec,
    labels, limits, loggers, shims, spec, users,
};

const RUNC: &str = "io.containerd.runc.v2";
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const SIGKILL: u32 = 9;

impl Runtime {
    /// Makes the snapshot, the container and its task (cgroup, namespaces; nothing of it runs yet). Undone on error.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<()> {
        check(spec)?;
        let prepared = self.prepare(&spec.id, &spec.image).await?;
        self.create_on(spec, prepared.ok_or_else(|| Error::ImageMissing(spec.image.clone()))?).await
    }

    /// Makes the container and its task on a root file system that was made for its id. Undone on error, all of it.
    pub async fn create_on(&self, spec: &ContainerSpec, prepared: Prepared) -> Result<()> {
        let created = self.create_parts(spec, prepared).await;
        if created.is_err()
            && let Err(error) = self.remove_parts(&spec.id).await
        {
            tracing::warn!(container = spec.id, %error, "parts of a container that could not be made are left");
        }
        created
    }

    async fn create_parts(&self, spec: &ContainerSpec, prepared: Prepared) -> Result<()> {
        check(spec)?;
        let (client, config) = (&self.inner.client, &self.inner.config);
        let rootfs = prepared.mounts;
        let image = prepared.unpacked.ok_or_else(|| Error::ImageMissing(spec.image.clone()))?;
        if let Some(dir) = spec.log_path.parent() {
            fs::create_dir_all(dir).map_err(Error::io(format!("making {}", dir.display())))?;
        }
        let identity = users::resolve(&spec.security, &image.config.user, &Layers::new(&rootfs))?;
        let devices = if spec.security.privileged {
            host::devices()
        } else {
            let own = spec.devices.iter();
            own.map(|device| host::device(&device.host_path, &device.container_path)).collect::<Result<_>>()?
        };
        let profile = match &spec.security.seccomp {
            Seccomp::Localhost(path) => Some(host::seccomp_profile(path)?),
            _ => None,
        };
        let oci = spec::build(spec, &image.config, &identity, &self.inner.host, devices, profile)?;
        let oci = serde_json::to_vec(&oci).map_err(|error| Error::InvalidSpec(error.to_string()))?;
        let record = Container {
            id: spec.id.clone(),
            labels: labels::write(spec, &image.config_digest, image.config.stop_signal.as_deref()),
            image: spec.image.clone(),
            runtime: Some(RuntimeName { name: RUNC.into(), options: Some(runc_options(config)) }),
            spec: Some(Any { type_url: SPEC.into(), value: oci }),
            snapshotter: self.snapshotter(),
            snapshot_key: spec.id.clone(),
            ..Container::default()
        };
        let create = client.call(CreateContainerRequest { container: Some(record) });
        client.containers().create(create).await.map_err(client.failed(&spec.id))?;
        let streams = exec::container_streams(config, spec).await?;
        let task = CreateTaskRequest {
            container_id: spec.id.clone(),
            rootfs,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: spec.tty,
            ..CreateTaskRequest::default()
        };
        client.tasks().create(client.call(task)).await.map_err(client.failed(&spec.id))?;
        Ok(())
    }

    /// Runs it. Returns the pid.
    pub async fn start(&self, id: &str) -> Result<u32> {
        let client = &self.inner.client;
        let request = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
        let answer = client.tasks().start(client.call(request)).await.map_err(client.failed(id))?;
        let pid = answer.into_inner().pid;
        events::watch(self, id, pid);
        loggers::keep(self, id);
        Ok(pid)
    }

    /// `signal` (`None`: the image's, else SIGTERM), then SIGKILL after `grace`. Ended already is success.
    pub async fn stop(&self, id: &str, signal: Option<&str>, grace: Duration) -> Result<Exit> {
        let named = signal.map(signal_number).transpose()?;
        if !grace.is_zero() {
            let (record, task) = self.record(id).await?;
            let own = record.labels.get(labels::STOP_SIGNAL).and_then(|signal| signal_number(signal).ok());
            let chosen = named.or(own).unwrap_or(libc::SIGTERM.cast_unsigned());
            let deaf = task.as_ref().filter(|task| is_deaf(task, chosen));
            if !directly(id, task.as_ref(), chosen) {
                or_gone(self.signal(id, chosen, false).await)?;
            }
            let ended = async {
                tokio::select! {
                    ended = self.await_exit(id) => ended,
                    ended = signal_once_heard(id, deaf, chosen) => ended,
                }
            };
            if let Ok(exit) = tokio::time::timeout(grace, ended).await {
                return exit;
            }
        }
        let killed = async {
            or_gone(self.signal(id, SIGKILL, true).await)?;
            self.await_exit(id).await
        };
        match self.or_end_shim(id, "kill its container", killed).await {
            Some(exit) => exit,
            None => self.await_exit(id).await,
        }
    }

    /// What a shim does, unless it takes too long: then it is ended, and containerd clears up after it.
    async fn or_end_shim<T>(&self, id: &str, what: &str, work: impl Future<Output = T>) -> Option<T> {
        if let Ok(done) = tokio::time::timeout(limits::TASK_STUCK, work).await {
            return Some(done);
        }
        tracing::warn!(container = id, "a shim does not {what}; ending the shim");
        shims::end(&self.inner.config.socket, id);
        None
    }

    /// Sends a signal to the container's first process, or to all of them.
    pub async fn kill(&self, id: &str, signal: &str, all: bool) -> Result<()> {
        self.signal(id, signal_number(signal)?, all).await
    }

    /// A process that has ended already is [`Error::NotFound`].
    async fn signal(&self, id: &str, signal: u32, all: bool) -> Result<()> {
        let client = &self.inner.client;
        let request = KillRequest { container_id: id.to_owned(), signal, all, ..KillRequest::default() };
        client.tasks().kill(client.call(request)).await.map(drop).map_err(client.failed(id))
    }

    /// Removes task, container, snapshot and its run-time files (killing it if it runs); the log stays. Gone is success.
    pub async fn remove(&self, id: &str) -> Result<()> {
        self.remove_parts(id).await
    }

    async fn remove_parts(&self, id: &str) -> Result<()> {
        let client = &self.inner.client;
        if !self.delete_task(id).await? {
            or_gone(self.signal(id, SIGKILL, true).await)?;
            or_gone(self.wait_task(id).await.map(drop))?;
            self.delete_task(id).await?;
        }
        let delete = client.call(DeleteContainerRequest { id: id.to_owned() });
        let deleted = client.containers().delete(delete).await;
        or_gone(deleted.map(drop).map_err(client.failed(id)))?;
        self.see_shims_off();
        self.inner.images.remove_snapshot(id).await?;
        exec::forget(&self.inner.config, id)
    }

    /// Deletes an ended task; `false`: it still runs.
    pub(crate) async fn delete_task(&self, id: &str) -> Result<bool> {
        // A shim that is deleting its task hangs up on whoever asks for the same.
        let _turn = self.inner.turns.take(id).await;
        match self.or_end_shim(id, "let its ended task go", self.ask_to_delete(id)).await {
            Some(answer) => answer,
            None => self.ask_to_delete(id).await,
        }
    }

    async fn ask_to_delete(&self, id: &str) -> Result<bool> {
        let client = &self.inner.client;
        let request = client.call(DeleteTaskRequest { container_id: id.to_owned() });
        match client.tasks().delete(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(true),
            Err(status) if still_runs(&status) => Ok(false),
            // Another daemon's call to the same end has let the shim go.
            Err(status) if status.message().contains("ttrpc: closed") => Ok(true),
            Err(status) => Err(client.failed(id)(status)),
        }
    }

    /// Every container of ours, of any state.
    pub async fn containers(&self) -> Result<Vec<ContainerState>> {
        let all = self.records().await?.into_iter();
        Ok(all.map(|(record, task)| self.state(record, task)).collect())
    }

    /// Settles what ended unseen; returns the others.
    pub(crate) async fn settle_all(&self) -> Result<Vec<ContainerState>> {
        let mut open = Vec::new();
        let records = self.records().await?;
        let present: HashSet<&str> = records.iter().map(|(record, _)| record.id.as_str()).collect();
        self.inner.announced.lock().retain(|id| present.contains(id.as_str()));
        for (record, task) in records {
            let has_task = task.is_some();
            let state = self.state(record, task);
            match &state.status {
                Status::Exited(exit) if has_task => {
                    if let Err(error) = self.settle(&state.id, exit).await {
                        tracing::warn!(container = state.id, %error, "an ended container keeps its task");
                    }
                }
                Status::Exited(_) => {}
                _ => open.push(state),
            }
        }
        Ok(open)
    }

    async fn records(&self) -> Result<Vec<(Container, Option<Task>)>> {
        let client = &self.inner.client;
        let filters = vec![format!("labels.\"{}\"", labels::ATTEMPT)];
        let mut containers = client.containers();
        let mut tasks = client.tasks();
        let (records, tasks) = tokio::try_join!(
            containers.list(client.call(ListContainersRequest { filters })),
            tasks.list(client.call(ListTasksRequest::default())),
        )
        .map_err(client.failed("containers"))?;
        let tasks = tasks.into_inner().tasks.into_iter();
        let mut tasks: HashMap<String, Task> = tasks.map(|task| (task.id.clone(), task)).collect();
        let records = records.into_inner().containers.into_iter();
        Ok(records.map(|record| (tasks.remove(&record.id), record)).map(|(task, record)| (record, task)).collect())
    }

    /// Every container's id, ours or not.
    pub(crate) async fn ids(&self) -> Result<HashSet<String>> {
        let client = &self.inner.client;
        let list = client.call(ListContainersRequest::default());
        let all = client.containers().list(list).await.map_err(client.failed("containers"))?;
        Ok(all.into_inner().containers.into_iter().map(|container| container.id).collect())
    }

    /// One container of ours.
    pub async fn container(&self, id: &str) -> Result<Option<ContainerState>> {
        match self.record(id).await {
            Ok((record, task)) => Ok(Some(self.state(record, task))),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A container's record.
    pub(crate) async fn container_record(&self, id: &str) -> Result<Container> {
        let client = &self.inner.client;
        let get = client.call(GetContainerRequest { id: id.to_owned() });
        let answer = client.containers().get(get).await.map_err(client.failed(id))?;
        answer.into_inner().container.ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// A container's record and task.
    pub(crate) async fn record(&self, id: &str) -> Result<(Container, Option<Task>)> {
        let client = &self.inner.client;
        let get = client.call(GetRequest { container_id: id.to_owned(), exec_id: String::new() });
        let mut tasks = client.tasks();
        let (record, task) = tokio::join!(self.container_record(id), tasks.get(get));
        let record = record?;
        let task = match task {
            Ok(answer) => answer.into_inner().process,
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => return Err(client.failed(id)(status)),
        };
        Ok((record, task))
    }

    fn state(&self, record: Container, task: Option<Task>) -> ContainerState {
        let created = time(record.created_at);
        let status = self.status(&record, task, created);
        labels::read(record.id, created, record.labels, status)
    }

    fn status(&self, record: &Container, task: Option<Task>, created: Timestamp) -> Status {
        if let Some(exit) = labels::read_exit(&record.labels, created) {
            return Status::Exited(exit);
        }
        let Some(task) = task else { return Status::Unknown };
        match task.status() {
            TaskStatus::Created => Status::Created,
            TaskStatus::Running => Status::Running { pid: task.pid, started_at: created },
            TaskStatus::Paused | TaskStatus::Pausing => Status::Paused { pid: task.pid, started_at: created },
            TaskStatus::Stopped => Status::Exited(self.exit(record, task.exit_status, task.exited_at)),
            TaskStatus::Unknown => Status::Unknown,
        }
    }

    /// The end that is written on the container.
    pub(crate) fn written_exit(&self, record: &Container) -> Option<Exit> {
        labels::read_exit(&record.labels, time(record.created_at))
    }

    /// The end of a container whose task is still there, so that its cgroup tells about memory.
    pub(crate) fn exit(&self, record: &Container, code: u32, at: Option<prost_types::Timestamp>) -> Exit {
        let cgroup = record.labels.get(labels::CGROUP);
        Exit {
            code: code.cast_signed(),
            started_at: Some(time(record.created_at)),
            finished_at: time(at),
            oom_killed: cgroup.is_some_and(|path| self.inner.cgroups.oom_kills(path) > 0),
        }
    }

    /// Writes the end on the container and lets its task go.
    pub(crate) async fn settle(&self, id: &str, exit: &Exit) -> Result<()> {
        or_gone(self.write_exit(id, exit).await)?;
        self.delete_task(id).await.map(drop)
    }

    /// Writes the end on the container.
    pub(crate) async fn write_exit(&self, id: &str, exit: &Exit) -> Result<()> {
        let client = &self.inner.client;
        let record = Container {
            id: id.to_owned(),
            labels: HashMap::from([(labels::EXIT.to_owned(), labels::write_exit(exit))]),
            ..Container::default()
        };
        let paths = vec![format!("labels.{}", labels::EXIT)];
        let update = UpdateContainerRequest { container: Some(record), update_mask: Some(FieldMask { paths }) };
        client.containers().update(client.call(update)).await.map(drop).map_err(client.failed(id))
    }

    async fn wait_task(&self, id: &str) -> Result<(u32, Option<prost_types::Timestamp>)> {
        let client = &self.inner.client;
        let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
        let answer = client.tasks().wait(client.endless(request)).await.map_err(client.failed(id))?.into_inner();
        Ok((answer.exit_status, answer.exited_at))
    }

    pub(crate) async fn await_exit(&self, id: &str) -> Result<Exit> {
        match self.wait_task(id).await {
            Ok((code, at)) => {
                let record = self.container_record(id).await?;
                Ok(self.written_exit(&record).unwrap_or_else(|| self.exit(&record, code, at)))
            }
            // Its task is settled already: the end is on the container.
            Err(Error::NotFound(_)) => match self.container(id).await? {
                Some(ContainerState { status: Status::Exited(exit), .. }) => Ok(exit),
                _ => Err(Error::NotFound(id.to_owned())),
            },
            Err(error) => Err(error),
        }
    }
}

fn pid(task: &Task) -> Option<Pid> {
    i32::try_from(task.pid).ok().filter(|_| task.status() == TaskStatus::Running).map(Pid::from_raw)
}

fn is_deaf(task: &Task, signal: u32) -> bool {
    pid(task).is_some_and(|pid| crate::sys::is_deaf(pid, signal))
}

/// A program that has just been started may not catch its stop signal yet, and then never hears of it: it is told again as
/// soon as it does. Programs that never will get their whole grace, as everywhere.
async fn signal_once_heard(id: &str, deaf: Option<&Task>, signal: u32) -> Result<Exit> {
    let begun = tokio::time::Instant::now();
    let mut pause = limits::DEAF_FIRST;
    while let Some(task) = deaf
        && begun.elapsed() < limits::DEAF
    {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(limits::DEAF_PAUSE);
        if !is_deaf(task, signal) {
            directly(id, deaf, signal);
            break;
        }
    }
    std::future::pending().await
}

/// Signals a running container's first process without runc, whose start takes longer than most programs' end. `false`:
/// containerd has to be asked.
fn directly(id: &str, task: Option<&Task>, signal: u32) -> bool {
    let Some(pid) = task.and_then(pid) else { return false };
    let sent = crate::sys::signal_member(pid, &format!("/{id}"), signal.cast_signed());
    sent.unwrap_or_else(|error| {
        tracing::debug!(container = id, %error, "not signalled directly");
        false
    })
}

/// containerd 1.6 passes the shim's refusal on without a code of its own.
fn still_runs(status: &tonic::Status) -> bool {
    status.code() == Code::FailedPrecondition || status.message().contains("cannot delete a running process")
}

/// The shim's options (`containerd.runc.v1.Options`); the client crate does not have them.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    /// runc's state: its default is one for all containerd instances of the machine.
    #[prost(string, tag = "7")]
    root: String,
}

fn runc_options(config: &Config) -> Any {
    let root = config.state_dir.join("runc").to_string_lossy().into_owned();
    let value = prost::Message::encode_to_vec(&RuncOptions { root });
    Any { type_url: "containerd.runc.v1.Options".into(), value }
}

fn check(spec: &ContainerSpec) -> Result<()> {
    let fits = (1..=64).contains(&spec.id.len())
        && spec.id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !fits {
        return Err(Error::InvalidSpec(format!("container id {:?}: 1 to 64 of a-z and 0-9", spec.id)));
    }
    let absolute = |path: &PathBuf| path.is_absolute();
    if !absolute(&spec.log_path) || !spec.cgroup_parent.starts_with('/') {
        return Err(Error::InvalidSpec("log path and cgroup parent have to be absolute".into()));
    }
    match spec.mounts.iter().find(|mount| !absolute(&mount.destination)) {
        Some(mount) => {
            Err(Error::InvalidSpec(format!("invalid mount path: '{}' must be absolute", mount.destination.display())))
        }
        None => Ok(()),
    }
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub(crate) fn signal_number(name: &str) -> Result<u32> {
    let unknown = || Error::InvalidSpec(format!("unknown signal {name:?}"));
    if let Ok(number) = name.parse::<u32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(offset) = full.strip_prefix("SIGRTMIN") {
        let offset: u32 = if offset.is_empty() { 0 } else { offset.parse().map_err(|_| unknown())? };
        return Ok(34 + offset.min(30));
    }
    let signal: nix::sys::signal::Signal = full.parse().map_err(|_| unknown())?;
    Ok((signal as i32).cast_unsigned())
}

/// containerd's time as ours; none is the epoch.
pub(crate) fn time(from: Option<prost_types::Timestamp>) -> Timestamp {
    let from = from.unwrap_or_default();
    Timestamp::new(from.seconds, from.nanos).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for (name, want) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("0", None),
            ("SIGNONE", None),
            ("SIGRTMIN+x", None),
        ] {
            assert_eq!(signal_number(name).ok(), want, "{name}");
        }
    }
}
