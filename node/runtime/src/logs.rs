//! Reading CRI logs: rotated files, tail, since, follow.
//!
//! What `kubectl logs` shows, from the files that the logger writes; the only coupling is their format and names. A follower
//! sleeps on inotify and is woken by writes, never by a clock.

use std::fs::File;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::logger::rotated;
use crate::sys::Watch;
use crate::{Error, Result, limits};

/// What to read (`PodLogOptions`).
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Go on until the container has ended.
    pub follow: bool,
    /// Only so many of the last lines (pieces of a long line count one by one, as upstream).
    pub tail: Option<usize>,
    /// Only lines written at this time or later.
    pub since: Option<Timestamp>,
    /// Bytes of output.
    pub limit: Option<u64>,
    /// Put the time before every line.
    pub timestamps: bool,
    /// Which of the container's streams.
    pub stream: LogStream,
}

/// Which of a container's streams to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogStream {
    #[default]
    Both,
    Stdout,
    Stderr,
}

/// Reads the log of one container from its oldest file on. With `follow` it goes on until `ended` resolves (the
/// container has exited) and all is read. Chunks are as `kubectl logs` prints them. Dropping the receiver ends it.
pub fn read(
    path: &Path,
    options: LogOptions,
    ended: impl Future<Output = ()> + Send + 'static,
) -> mpsc::Receiver<Result<Bytes>> {
    let (chunks, receiver) = mpsc::channel(4);
    let path = path.to_owned();
    tokio::spawn(async move {
        let result = follow(path, options, ended, &chunks).await;
        if let Err(Stop::Failed(error)) = result {
            // Nobody may listen any more.
            let _ = chunks.send(Err(error)).await;
        }
    });
    receiver
}

/// Why reading ends early.
enum Stop {
    /// The limit is reached or nobody listens.
    Done,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

async fn follow(
    path: PathBuf,
    options: LogOptions,
    ended: impl Future<Output = ()> + Send,
    chunks: &mpsc::Sender<Result<Bytes>>,
) -> Result<(), Stop> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    // Before the first reading, so that no write falls in between.
    let watch = match options.follow {
        true => Some(Watch::new(dir).map_err(Error::io(format!("watching {}", dir.display())))?),
        false => None,
    };
    let mut files = Files::open(&path, options.tail).map_err(Error::io(format!("reading {}", path.display())))?;
    let mut format = Format::new(options);
    tokio::pin!(ended);
    let mut last = watch.is_none();
    loop {
        drain(&mut files, &mut format, chunks).await?;
        let Some(watch) = watch.as_ref().filter(|_| !last) else { return Ok(()) };
        tokio::select! {
            () = &mut ended => last = true,
            () = chunks.closed() => return Err(Stop::Done),
            changed = watch.changed() => changed.map_err(Error::io(format!("watching {}", dir.display())))?,
        }
    }
}

/// Sends everything that is there now.
async fn drain(files: &mut Files, format: &mut Format, chunks: &mpsc::Sender<Result<Bytes>>) -> Result<(), Stop> {
    loop {
        let mut chunk = BytesMut::new();
        let mut more = true;
        while more && chunk.len() < limits::LOG_CHUNK {
            let line = files.next().map_err(Error::io(format!("reading {}", files.path.display())))?;
            match line {
                Some(line) => format.add(&line, &mut chunk),
                None => more = false,
            }
            more &= !format.full();
        }
        if !chunk.is_empty() && chunks.send(Ok(chunk.freeze())).await.is_err() {
            return Err(Stop::Done);
        }
        if format.full() {
            return Err(Stop::Done);
        }
        if !more {
            return Ok(());
        }
    }
}

/// The files of one log, read in order.
struct Files {
    path: PathBuf,
    current: Option<Current>,
    /// A line whose end is not written yet.
    rest: Vec<u8>,
}

/// The file being read. It is open, so that its inode number stays its own whatever rotation does to its name.
struct Current {
    reader: BufReader<File>,
    inode: u64,
}

impl Files {
    fn open(path: &Path, tail: Option<usize>) -> io::Result<Self> {
        let mut files = Self { path: path.to_owned(), current: None, rest: Vec::new() };
        if let Some(lines) = tail {
            files.skip_to_tail(lines)?;
        }
        Ok(files)
    }

    /// Starts at the last lines: whole files are left out from the newest backwards.
    fn skip_to_tail(&mut self, lines: usize) -> io::Result<()> {
        let mut wanted = lines;
        for (inode, mut file) in self.all()?.into_iter().rev() {
            let (start, found) = tail_start(&mut file, wanted)?;
            wanted -= found;
            if wanted == 0 {
                file.seek(SeekFrom::Start(start))?;
                self.current = Some(Current { reader: BufReader::new(file), inode });
                break;
            }
        }
        Ok(())
    }

    /// The next whole line without its newline; `None`: no more at the moment.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.line()? {
                return Ok(Some(line));
            }
            let Some(newer) = self.newer()? else { return Ok(None) };
            // Since its end was seen, lines may have come before the file that follows was begun; none come after.
            if let Some(line) = self.line()? {
                return Ok(Some(line));
            }
            self.rest.clear();
            self.current = Some(newer);
        }
    }

    /// The next whole line of the file being read.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(current) = &mut self.current else { return Ok(None) };
        current.reader.read_until(b'\n', &mut self.rest)?;
        let whole = self.rest.pop_if(|last| *last == b'\n').is_some();
        Ok(whole.then(|| std::mem::take(&mut self.rest)))
    }

    /// The file after the one being read, if it is there.
    fn newer(&self) -> io::Result<Option<Current>> {
        let mut all = self.all()?;
        // One that is not found was dropped as the oldest: all that are left follow it.
        let at = self.current.as_ref().and_then(|current| all.iter().position(|(inode, _)| *inode == current.inode));
        let next = at.map_or(0, |at| at + 1);
        if next >= all.len() {
            return Ok(None);
        }
        let (inode, file) = all.swap_remove(next);
        Ok(Some(Current { reader: BufReader::new(file), inode }))
    }

    /// All files with their inode numbers, the oldest first, none left out whenever rotation happens: the active one is
    /// opened before the rotated ones are listed, so one that is renamed in between is held either way.
    fn all(&self) -> io::Result<Vec<(u64, File)>> {
        let active = open(&self.path)?;
        let mut all = Vec::new();
        for path in rotated(&self.path) {
            all.extend(open(&path)?);
        }
        all.extend(active.filter(|(inode, _)| all.iter().all(|(rotated, _)| rotated != inode)));
        Ok(all)
    }
}

/// Opens a file that may be rotated away or not written yet.
fn open(path: &Path) -> io::Result<Option<(u64, File)>> {
    match File::open(path) {
        Ok(file) => Ok(Some((file.metadata()?.ino(), file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the last `wanted` lines of a file begin, and how many it has of them.
fn tail_start(file: &mut File, wanted: usize) -> io::Result<(u64, usize)> {
    let mut end = file.metadata()?.len();
    let mut found = 0;
    if wanted == 0 {
        return Ok((end, 0));
    }
    let mut block = vec![0; limits::LOG_CHUNK];
    let whole = end;
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        for (at, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = start + at as u64 + 1;
            if after == whole {
                continue;
            }
            found += 1;
            if found == wanted {
                return Ok((after, found));
            }
        }
        end = start;
    }
    Ok((0, found + usize::from(whole > 0)))
}

/// From log lines to what is shown.
struct Format {
    options: LogOptions,
    left: u64,
    /// The last piece belongs to a line that goes on.
    within: bool,
}

impl Format {
    fn new(options: LogOptions) -> Self {
        Self { left: options.limit.unwrap_or(u64::MAX), options, within: false }
    }

    fn full(&self) -> bool {
        self.left == 0
    }

    fn add(&mut self, line: &[u8], to: &mut BytesMut) {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag)) = (fields.next(), fields.next(), fields.next()) else { return };
        let text = fields.next().unwrap_or_default();
        let wanted = match self.options.stream {
            LogStream::Both => true,
            LogStream::Stdout => stream == b"stdout",
            LogStream::Stderr => stream == b"stderr",
        };
        let late_enough = self.options.since.is_none_or(|since| {
            let time = std::str::from_utf8(time).ok().and_then(|time| time.parse::<Timestamp>().ok());
            time.is_some_and(|time| time >= since)
        });
        if !wanted || !late_enough {
            return;
        }
        if self.options.timestamps && !self.within {
            self.put(time, to);
            self.put(b" ", to);
        }
        self.put(text, to);
        self.within = tag.first() == Some(&b'P');
        if !self.within {
            self.put(b"\n", to);
        }
    }

    fn put(&mut self, text: &[u8], to: &mut BytesMut) {
        let length = text.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        to.extend_from_slice(&text[..length]);
        self.left -= length as u64;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::io::Write;

    use super::*;

    async fn all(path: &Path, options: LogOptions) -> String {
        let mut chunks = read(path, options, std::future::pending());
        let mut text = String::new();
        while let Some(chunk) = chunks.recv().await {
            text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
        text
    }

    const OLD: &str = "2026-01-01T00:00:00.000000001Z stdout F one\n2026-01-01T00:00:01.000000000Z stderr F two\n";
    const NEW: &str = "2026-01-01T00:00:02.000000000Z stdout P thr\n2026-01-01T00:00:02.000000000Z stdout F ee\n\
        2026-01-01T00:00:03.000000000Z stdout F four\n";

    #[tokio::test]
    async fn options_choose_what_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(dir.path().join("0.log.20260101-000001"), OLD).unwrap();
        fs::write(&path, NEW).unwrap();
        let none = LogOptions::default;
        let since = Some("2026-01-01T00:00:01Z".parse().unwrap());
        for (options, want) in [
            (none(), "one\ntwo\nthree\nfour\n"),
            (LogOptions { tail: Some(0), ..none() }, ""),
            (LogOptions { tail: Some(1), ..none() }, "four\n"),
            (LogOptions { tail: Some(3), ..none() }, "three\nfour\n"),
            (LogOptions { tail: Some(4), ..none() }, "two\nthree\nfour\n"),
            (LogOptions { tail: Some(99), ..none() }, "one\ntwo\nthree\nfour\n"),
            (LogOptions { since, ..none() }, "two\nthree\nfour\n"),
            (LogOptions { limit: Some(6), ..none() }, "one\ntw"),
            (LogOptions { stream: LogStream::Stderr, ..none() }, "two\n"),
            (
                LogOptions { timestamps: true, tail: Some(3), ..none() },
                "2026-01-01T00:00:02.000000000Z three\n2026-01-01T00:00:03.000000000Z four\n",
            ),
        ] {
            assert_eq!(all(&path, options.clone()).await, want, "{options:?}");
        }
    }

    #[tokio::test]
    async fn a_follower_sees_every_line_over_rotations() {
        const FILES: usize = 200;
        const LINES: usize = 20;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut chunks = read(&path, options, async { drop(ended.await) });
        let writer = tokio::task::spawn_blocking(move || {
            for file in 0..FILES {
                let mut log = fs::File::create(&path).unwrap();
                for line in 0..LINES {
                    writeln!(log, "2026-01-01T00:00:00Z stdout F {}", file * LINES + line).unwrap();
                }
                if file < FILES - 1 {
                    fs::rename(&path, format!("{}.2026-{file:03}", path.display())).unwrap();
                }
            }
            end.send(()).unwrap();
        });
        let mut text = String::new();
        while let Some(chunk) = chunks.recv().await {
            text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
        writer.await.unwrap();
        let want: String = (0..FILES * LINES).map(|line| format!("{line}\n")).collect();
        assert!(text == want, "{} lines", text.lines().count());
    }
}
