//! Streams of containers and of commands run in them: fifos, the logger's command line, attach.
//!
//! A container's output always goes to a logger process. Mostly the shim starts it (`binary://`), so it belongs to the
//! container and not to us. The shim gives such a container no stdin unless it has a terminal; a container with stdin and no
//! terminal therefore gets fifos and a logger of our starting, in a session of its own, revived if it is ever lost.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_client::services::v1::{DeleteProcessRequest, ExecProcessRequest, StartRequest, WaitRequest};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use prost_types::Any;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::io::{Exit, Stdin, Target};
use crate::logger::{ATTACH_SOCKET, Arguments, Stream};
use crate::{
    Config, ContainerSpec, ContainerState, Error, ExecOutput, ExecSpec, Output, Process, Result, Runtime, labels,
    limits,
};

const NULL: &str = "/dev/null";
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// What containerd is told about a task's streams; empty is none.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Makes the streams of a new container.
pub(crate) async fn container_streams(config: &Config, spec: &ContainerSpec) -> Result<Streams> {
    let dir = folder(config, &spec.id);
    fs::create_dir_all(&dir).map_err(Error::io(format!("making {}", dir.display())))?;
    let mut streams = Streams::default();
    if spec.stdin {
        streams.stdin = fifo(&dir, "stdin")?;
    }
    if spec.stdin && !spec.tty {
        streams.stdout = fifo(&dir, "stdout")?;
        streams.stderr = fifo(&dir, "stderr")?;
        start_logger(config, &spec.id, &spec.log_path, fifos(config, &spec.id)).await?;
        return Ok(streams);
    }
    let arguments = Arguments { log: spec.log_path.clone(), folder: dir }.to_string();
    streams.stdout = format!("binary://{}?logger={}", escape(&config.logger.to_string_lossy()), escape(&arguments));
    if !spec.tty {
        streams.stderr.clone_from(&streams.stdout);
    }
    Ok(streams)
}

/// Starts the logger of a container with fifos again if it is gone.
pub(crate) async fn revive_logger(config: &Config, state: &ContainerState) -> Result<()> {
    let ours = state.stdin && !state.tty;
    if ours && std::os::unix::net::UnixStream::connect(socket(config, &state.id)?.1).is_err() {
        start_logger(config, &state.id, &state.log_path, fifos(config, &state.id)).await?;
    }
    Ok(())
}

/// Removes a container's run-time files.
pub(crate) fn forget(config: &Config, id: &str) -> Result<()> {
    let dir = folder(config, id);
    for name in ["stdout", "stderr"] {
        // A writer that comes and goes is the end of input for a logger that never had another.
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let _ = open(&dir.join(name), flags, Mode::empty());
    }
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}

/// See [`Runtime::exec`].
pub(crate) async fn start(runtime: &Runtime, id: &str, spec: ExecSpec) -> Result<Process> {
    let client = &runtime.inner.client;
    let (record, _) = runtime.record(id).await?;
    let process = process(&record.spec.unwrap_or_default().value, &spec)?;
    let exec = format!("{:016x}", rand::random::<u64>());
    let dir = folder(&runtime.inner.config, id).join(&exec);
    fs::create_dir_all(&dir).map_err(Error::io(format!("making {}", dir.display())))?;
    // The shim opens every name it is given, but a terminal's stderr, and needs two.
    let mut streams = Streams { stdin: String::new(), stdout: NULL.into(), stderr: NULL.into() };
    let mut stdin = None;
    if spec.stdin {
        streams.stdin = fifo(&dir, "stdin")?;
        stdin = Some(writer(&dir.join("stdin"))?);
    }
    let mut stdout = None;
    if spec.stdout || spec.tty {
        streams.stdout = fifo(&dir, "stdout")?;
        stdout = Some(reader(&dir.join("stdout"))?);
    }
    let mut stderr = None;
    if spec.stderr && !spec.tty {
        streams.stderr = fifo(&dir, "stderr")?;
        stderr = Some(reader(&dir.join("stderr"))?);
    }
    let request = ExecProcessRequest {
        container_id: id.to_owned(),
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        terminal: spec.tty,
        spec: Some(Any { type_url: PROCESS.into(), value: process }),
        exec_id: exec.clone(),
    };
    let of = Target { runtime: runtime.clone(), container: id.to_owned(), exec: exec.clone() };
    let (exited, exit) = watch::channel(None);
    let created = client.tasks().exec(client.call(request)).await;
    created.map_err(|status| cleaned(&dir, client.failed(id)(status)))?;
    let start = StartRequest { container_id: id.to_owned(), exec_id: exec.clone() };
    if let Err(status) = client.tasks().start(client.call(start)).await {
        delete(&of).await;
        return Err(cleaned(&dir, client.failed(id)(status)));
    }
    tokio::spawn(wait(of.clone(), exited, dir));
    let process = Process {
        stdin: stdin.map(|pipe| -> crate::Input { Box::pin(Stdin::new(pipe, (!spec.tty).then(|| of.clone()))) }),
        stdout: stdout.map(|pipe| -> Output { Box::pin(pipe) }),
        stderr: stderr.map(|pipe| -> Output { Box::pin(pipe) }),
        of,
        exit: Exit::Exec(exit),
    };
    if let Some(size) = spec.size.filter(|_| spec.tty) {
        process.resize(size).await?;
    }
    Ok(process)
}

/// Publishes the exit code, then lets containerd and the fifos go.
async fn wait(of: Target, exited: watch::Sender<Option<Result<i32, String>>>, dir: PathBuf) {
    let client = &of.runtime.inner.client;
    let request = WaitRequest { container_id: of.container.clone(), exec_id: of.exec.clone() };
    let answer = client.tasks().wait(client.endless(request)).await;
    let code = answer.map(|answer| answer.into_inner().exit_status.cast_signed());
    // Nobody may be interested any more.
    let _ = exited.send(Some(code.map_err(|status| status.message().to_owned())));
    delete(&of).await;
    let _ = fs::remove_dir_all(dir);
}

async fn delete(of: &Target) {
    let client = &of.runtime.inner.client;
    let request = DeleteProcessRequest { container_id: of.container.clone(), exec_id: of.exec.clone() };
    if let Err(status) = client.tasks().delete_process(client.endless(request)).await
        && status.code() != tonic::Code::NotFound
    {
        tracing::debug!(exec = of.exec, %status, "an ended process stays until its container goes");
    }
}

/// See [`Runtime::exec_sync`].
pub(crate) async fn sync(
    runtime: &Runtime,
    id: &str,
    argv: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput> {
    let began = tokio::time::Instant::now();
    let spec = ExecSpec { argv, stdout: true, stderr: true, ..ExecSpec::default() };
    let mut process = start(runtime, id, spec).await?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (from_stdout, from_stderr) = (process.stdout.take(), process.stderr.take());
    let read = async { tokio::join!(collect(from_stdout, &mut stdout), collect(from_stderr, &mut stderr)) };
    let ended = async {
        tokio::pin!(read);
        let code = tokio::select! {
            _ = &mut read => return process.wait().await,
            code = process.wait() => code,
        };
        // What it left running in the background may hold its output open for ever.
        let _ = tokio::time::timeout(limits::EXEC_DRAIN, read).await;
        code
    };
    let code = match timeout {
        None => ended.await?,
        Some(after) => match tokio::time::timeout_at(began + after, ended).await {
            Ok(code) => code?,
            Err(_) => {
                process.kill().await?;
                return Err(Error::Timeout { what: "command".into(), after });
            }
        },
    };
    Ok(ExecOutput { code, stdout, stderr })
}

/// Keeps the beginning, reads to the end.
async fn collect(from: Option<Output>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut chunk = vec![0; 4096];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        let room = limits::EXEC_SYNC_OUTPUT - into.len();
        into.extend_from_slice(&chunk[..length.min(room)]);
    }
}

/// See [`Runtime::attach`].
pub(crate) async fn attach(runtime: &Runtime, id: &str) -> Result<Process> {
    let config = &runtime.inner.config;
    let (record, _) = runtime.record(id).await?;
    let tty = record.labels.contains_key(labels::TTY);
    let (_open, path) = socket(config, id)?;
    let failed = || Error::io(format!("attaching to {id}"));
    let mut stream = UnixStream::connect(path).await.map_err(failed())?;
    // The logger's first frame is empty: it says that we are heard.
    stream.read_exact(&mut [0; 5]).await.map_err(failed())?;
    let of = Target { runtime: runtime.clone(), container: id.to_owned(), exec: String::new() };
    let stdin = match record.labels.get(labels::STDIN).map(String::as_str) {
        None => None,
        Some(kind) => {
            let end = (kind == "once" && !tty).then(|| of.clone());
            Some(Stdin::new(writer(&folder(config, id).join("stdin"))?, end))
        }
    };
    let (stdout, to_stdout) = tokio::io::duplex(limits::ATTACH_CHUNK);
    let (stderr, to_stderr) = tokio::io::duplex(limits::ATTACH_CHUNK);
    tokio::spawn(split(stream, to_stdout, to_stderr));
    Ok(Process {
        stdin: stdin.map(|stdin| -> crate::Input { Box::pin(stdin) }),
        stdout: Some(Box::pin(stdout)),
        stderr: (!tty).then(|| -> Output { Box::pin(stderr) }),
        of,
        exit: Exit::Container,
    })
}

/// Deals the logger's frames out to the two streams until the container or the reader is gone.
async fn split(mut from: UnixStream, stdout: DuplexStream, stderr: DuplexStream) {
    let (mut stdout, mut stderr) = (Some(stdout), Some(stderr));
    let mut data = Vec::new();
    while stdout.is_some() || stderr.is_some() {
        let (Ok(stream), Ok(length)) = (from.read_u8().await, from.read_u32().await) else { return };
        data.resize((length as usize).min(limits::ATTACH_QUEUE), 0);
        if from.read_exact(&mut data).await.is_err() {
            return;
        }
        let to = if stream == Stream::Stderr as u8 { &mut stderr } else { &mut stdout };
        if let Some(writer) = to
            && writer.write_all(&data).await.is_err()
        {
            *to = None;
        }
    }
}

/// The command as the container's own process would run, but for arguments and terminal.
fn process(container: &[u8], spec: &ExecSpec) -> Result<Vec<u8>> {
    let invalid = |error: serde_json::Error| Error::Containerd(format!("container specification: {error}"));
    let mut oci: serde_json::Value = serde_json::from_slice(container).map_err(invalid)?;
    let mut process = oci["process"].take();
    process["args"] = serde_json::json!(spec.argv);
    process["terminal"] = serde_json::json!(spec.tty);
    if spec.tty
        && let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(|variable| variable.as_str().is_some_and(|text| text.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
    serde_json::to_vec(&process).map_err(invalid)
}

fn fifos(config: &Config, id: &str) -> [PathBuf; 2] {
    ["stdout", "stderr"].map(|name| folder(config, id).join(name))
}

/// Starts a logger that opens the two streams by name. Returns when it is ready: it closes its standard output then.
pub(crate) async fn start_logger(config: &Config, id: &str, log: &Path, streams: [PathBuf; 2]) -> Result<()> {
    let dir = folder(config, id);
    let program = config.logger.clone();
    let arguments = Arguments { log: log.to_owned(), folder: dir.clone() };
    let mut command = Command::new(&program);
    command.arg("logger").arg(arguments.to_string()).args(streams);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let start = move || {
        let mut child = command.spawn()?;
        let ready = child.stdout.take().map_or(Ok(0), |mut ready| ready.read(&mut [0]));
        std::thread::spawn(move || child.wait());
        ready
    };
    let started = tokio::task::spawn_blocking(start).await.map_err(io::Error::other).flatten();
    started.map(drop).map_err(Error::io(format!("starting {} as a logger", program.display())))
}

pub(crate) fn folder(config: &Config, id: &str) -> PathBuf {
    config.state_dir.join("io").join(id)
}

/// The logger's socket by a name that is short enough for any folder; valid while the first value lives.
pub(crate) fn socket(config: &Config, id: &str) -> Result<(std::os::fd::OwnedFd, PathBuf)> {
    let dir = folder(config, id);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open = open(&dir, flags, Mode::empty())
        .map_err(|error| Error::io(format!("opening {}", dir.display()))(error.into()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{ATTACH_SOCKET}", open.as_raw_fd()));
    Ok((open, path))
}

fn fifo(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(name);
    match mkfifo(&path, Mode::from_bits_truncate(0o600)) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(path.to_string_lossy().into_owned()),
        Err(error) => Err(Error::io(format!("making {}", path.display()))(error.into())),
    }
}

fn reader(path: &Path) -> Result<pipe::Receiver> {
    pipe::OpenOptions::new().open_receiver(path).map_err(Error::io(format!("opening {}", path.display())))
}

/// Opened for both ways, as the reader may come later; a write never fails for want of one.
fn writer(path: &Path) -> Result<pipe::Sender> {
    pipe::OpenOptions::new()
        .read_write(true)
        .open_sender(path)
        .map_err(Error::io(format!("opening {}", path.display())))
}

fn cleaned(dir: &Path, error: Error) -> Error {
    let _ = fs::remove_dir_all(dir);
    error
}

/// Percent-encodes for a path or a query of a URI.
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-_./~".contains(&byte) {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
        escaped
    })
}
