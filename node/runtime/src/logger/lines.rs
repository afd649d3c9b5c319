//! From a stream of bytes to CRI log lines: `<time> <stream> <F|P> <text>`. Pure but for the clock.

use jiff::Timestamp;

use super::Stream;
use crate::limits;

/// One stream's unfinished line.
pub(super) struct Lines {
    name: &'static str,
    rest: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: Stream) -> Self {
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        Self { name, rest: Vec::new() }
    }

    /// Takes the next bytes and returns what they complete.
    pub(super) fn push(&mut self, data: &[u8]) -> Vec<u8> {
        let now = format!("{:.9}", Timestamp::now());
        let mut log = Vec::with_capacity(data.len() + 64);
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            let whole = self.rest.last() == Some(&b'\n');
            if whole {
                self.rest.pop();
            }
            let mut from = 0;
            while self.rest.len() - from > limits::LOG_LINE {
                line(&mut log, &now, self.name, 'P', &self.rest[from..from + limits::LOG_LINE]);
                from += limits::LOG_LINE;
            }
            self.rest.drain(..from);
            if whole {
                line(&mut log, &now, self.name, 'F', &self.rest);
                self.rest.clear();
            }
        }
        log
    }

    /// What had no newline when the stream ended is a part of a line, as in containerd's logs: readers add no newline to it.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut log = Vec::new();
        if !self.rest.is_empty() {
            line(&mut log, &format!("{:.9}", Timestamp::now()), self.name, 'P', &self.rest);
            self.rest.clear();
        }
        log
    }
}

fn line(log: &mut Vec<u8>, time: &str, stream: &str, tag: char, text: &[u8]) {
    log.extend_from_slice(format!("{time} {stream} {tag} ").as_bytes());
    log.extend_from_slice(text);
    log.push(b'\n');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(input: &[&[u8]], want: &[(&str, usize)]) {
        let mut lines = Lines::new(Stream::Stderr);
        let mut log: Vec<u8> = input.iter().flat_map(|data| lines.push(data)).collect();
        log.extend(lines.finish());
        let text = String::from_utf8(log).unwrap();
        let got: Vec<(String, usize)> = text
            .lines()
            .map(|line| {
                let mut fields = line.splitn(4, ' ');
                let time = fields.next().unwrap();
                assert!(time.parse::<Timestamp>().is_ok() && time.len() == 30, "{time}");
                assert_eq!(fields.next(), Some("stderr"));
                (fields.next().unwrap().to_owned(), fields.next().unwrap().len())
            })
            .collect();
        let got: Vec<(&str, usize)> = got.iter().map(|(tag, length)| (tag.as_str(), *length)).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn bytes_become_lines() {
        let limit = limits::LOG_LINE;
        check(&[b"one\ntwo\n"], &[("F", 3), ("F", 3)]);
        check(&[b"on", b"e", b"\n\nrest"], &[("F", 3), ("F", 0), ("P", 4)]);
        check(&[&vec![b'x'; limit], b"\n"], &[("F", limit)]);
        check(&[&vec![b'x'; limit + 1], b"\n"], &[("P", limit), ("F", 1)]);
        check(&[&vec![b'x'; 2 * limit + 5]], &[("P", limit), ("P", limit), ("P", 5)]);
        check(&[], &[]);
    }
}
