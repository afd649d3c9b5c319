//! Termination messages: what a container wrote to its message file, or the end of its log when it failed without
//! writing one and its policy asks for that. Blocking reads of small pieces.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::limits;
use crate::model::Container;

/// The message of a container that exited with `code`.
pub fn read(container: &Container, file: &Path, log: &Path, code: i32) -> Option<String> {
    let mut text = Vec::new();
    if let Ok(f) = File::open(file) {
        // An unreadable message is no message.
        let _ = f.take(limits::TERMINATION_MESSAGE as u64).read_to_end(&mut text);
    }
    if text.is_empty() && code != 0 && container.termination_message_policy == "FallbackToLogsOnError" {
        return tail(log).ok().filter(|t| !t.is_empty());
    }
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The last lines of a CRI log, without their prefixes.
fn tail(log: &Path) -> io::Result<String> {
    let mut f = File::open(log)?;
    let size = f.metadata()?.len();
    let piece = (limits::TERMINATION_LOG * 4) as u64;
    f.seek(SeekFrom::Start(size.saturating_sub(piece)))?;
    let mut bytes = Vec::new();
    f.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().skip(usize::from(size > piece)) {
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(tag), body) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let body = body.unwrap_or_default();
        lines.push(if tag == "P" { body.to_owned() } else { format!("{body}\n") });
    }
    let first = lines.len().saturating_sub(limits::TERMINATION_LOG_LINES);
    let mut out: String = lines[first..].concat();
    while out.len() > limits::TERMINATION_LOG {
        let mut cut = out.len() - limits::TERMINATION_LOG;
        while !out.is_char_boundary(cut) {
            cut += 1;
        }
        out.drain(..cut);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn file_then_log() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("m"), dir.path().join("l"));
        std::fs::write(
            &log,
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr P tw\n2026-01-01T00:00:00Z stderr F o\n",
        )
        .unwrap();
        let c = |policy: &str| Container { termination_message_policy: policy.into(), ..Container::default() };
        assert_eq!(read(&c("File"), &file, &log, 1), None);
        assert_eq!(read(&c("FallbackToLogsOnError"), &file, &log, 1).as_deref(), Some("one\ntwo\n"));
        assert_eq!(read(&c("FallbackToLogsOnError"), &file, &log, 0), None);
        std::fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(read(&c("FallbackToLogsOnError"), &file, &log, 1).unwrap().len(), 4096);
    }
}
