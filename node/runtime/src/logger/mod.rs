//! The logger that containerd's shims start for every container.
//!
//! It reads the container's two streams, writes the CRI log file (rotated) and serves attached clients from a unix socket.
//! One thread and `poll`, no runtime: it stays small. It never stops reading because of a disk or a client, and it ends
//! only when both streams have: neither our daemon's death nor a signal loses a line.

mod clients;
mod file;
mod lines;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

use crate::{limits, sys};
use clients::Clients;
use file::LogFile;
pub(crate) use file::rotated;
use lines::Lines;

/// Name of the socket in a container's folder.
pub(crate) const ATTACH_SOCKET: &str = "attach";

/// What the logger is told, as one argument: shims pass several in any order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) log: PathBuf,
    /// The container's folder, for the socket.
    pub(crate) folder: PathBuf,
}

/// Which of a container's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// Runs as the logger until the container's streams end. `args`: what follows `logger` on the command line: what the
/// runtime wrote into the task's `binary://` address, then (only when the runtime started it) two fifos.
/// Started by a shim it needs the descriptors 3 (stdout), 4 (stderr) and 5 (closed when ready).
/// Returns the exit code of the process.
pub fn run(args: impl Iterator<Item = OsString>) -> i32 {
    let args: Vec<OsString> = args.collect();
    let Some(arguments) = args.first().and_then(|text| Arguments::parse(&text.to_string_lossy())) else {
        eprintln!("the logger is started by containerd for a container, not by hand");
        return 2;
    };
    // The shim signals its logger before the last bytes are read; only the end of the streams ends us.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    let _ = signals.thread_block();
    let (sources, ready) = match args.get(1..3) {
        Some([stdout, stderr]) => {
            let sources = fifo(Path::new(stdout)).and_then(|stdout| Ok((stdout, fifo(Path::new(stderr))?)));
            (sources, 1)
        }
        _ => (sys::inherited(3).and_then(|stdout| Ok((stdout, sys::inherited(4)?))), 5),
    };
    let (stdout, stderr) = match sources {
        Ok(sources) => sources,
        Err(error) => {
            eprintln!("the logger has no streams to read: {error}");
            return 2;
        }
    };
    let listener = listen(&arguments.folder);
    let mut logger = Logger {
        sources: [Source::new(Stream::Stdout, stdout), Source::new(Stream::Stderr, stderr)],
        file: LogFile::new(arguments.log),
        clients: Clients::default(),
    };
    logger.file.open();
    drop(sys::inherited(ready));
    logger.serve(listener.as_ref());
    0
}

struct Source {
    stream: Stream,
    /// `None` at its end.
    pipe: Option<File>,
    lines: Lines,
}

struct Logger {
    sources: [Source; 2],
    file: LogFile,
    clients: Clients,
}

impl Source {
    fn new(stream: Stream, pipe: File) -> Self {
        Self { stream, pipe: Some(pipe), lines: Lines::new(stream) }
    }
}

impl Logger {
    fn serve(&mut self, listener: Option<&UnixListener>) {
        let mut buffer = vec![0; limits::LOG_READ];
        while self.sources.iter().any(|source| source.pipe.is_some()) {
            let Some(ready) = self.poll(listener) else { continue };
            for (source, ready) in self.sources.iter_mut().zip(ready.sources) {
                if ready {
                    let text = source.read(&mut buffer, &mut self.clients);
                    self.file.write(&text);
                }
            }
            if let Some(listener) = listener.filter(|_| ready.listener) {
                self.clients.accept(listener);
            }
            self.clients.serve();
        }
        self.clients.finish();
    }

    fn poll(&self, listener: Option<&UnixListener>) -> Option<Ready> {
        let sources = self.sources.iter().filter_map(|source| source.pipe.as_ref());
        let mut fds: Vec<PollFd<'_>> = sources.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
        let first_other = fds.len();
        fds.extend(listener.map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.clients.poll());
        // Interrupted: ask again.
        poll(&mut fds, PollTimeout::NONE).ok()?;
        let any = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        let mut answers = fds[..first_other].iter().map(any);
        let sources = [0, 1].map(|at: usize| self.sources[at].pipe.is_some() && answers.next().unwrap_or_default());
        Some(Ready { sources, listener: listener.is_some() && any(&fds[first_other]) })
    }
}

struct Ready {
    sources: [bool; 2],
    listener: bool,
}

impl Source {
    /// Reads once; returns the text for the log.
    fn read(&mut self, buffer: &mut [u8], clients: &mut Clients) -> Vec<u8> {
        let Some(pipe) = &mut self.pipe else { return Vec::new() };
        match pipe.read(buffer) {
            Ok(length @ 1..) => {
                clients.send(self.stream, &buffer[..length]);
                self.lines.push(&buffer[..length])
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock) => {
                Vec::new()
            }
            _ => {
                self.pipe = None;
                self.lines.finish()
            }
        }
    }
}

impl fmt::Display for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.log.display(), self.folder.display())
    }
}

impl Arguments {
    fn parse(text: &str) -> Option<Self> {
        let (log, folder) = text.split_once('\n')?;
        Some(Self { log: log.into(), folder: folder.into() })
    }
}

fn fifo(path: &Path) -> std::io::Result<File> {
    // Without waiting for the writer: that may never come.
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Without a socket the container can be logged but not attached to.
fn listen(folder: &Path) -> Option<UnixListener> {
    // Relative: the whole path may be longer than a socket's name can be.
    std::env::set_current_dir(folder).ok()?;
    let _ = std::fs::remove_file(ATTACH_SOCKET);
    let listener = UnixListener::bind(ATTACH_SOCKET).ok()?;
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}
