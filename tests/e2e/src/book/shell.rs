//! A shell that a reader's commands are typed into: what one command exports or changes holds for the next.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Longest that one command may take.
const PATIENCE: Duration = Duration::from_secs(240);
/// Between two looks at a command that goes on, or that is repeated.
const LOOK: Duration = Duration::from_millis(200);
const END: &str = "@@end@@";

/// See the module; ended on drop, with what it left running.
pub(super) struct Shell {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// Process groups of commands that go on.
    running: Vec<String>,
}

/// What a command did.
pub(super) struct Done {
    pub(super) code: i32,
    pub(super) said: String,
}

impl Shell {
    /// `bash` is a command that becomes a bash, wherever it is to run.
    pub(super) fn start(mut bash: Command) -> Result<Self> {
        let mut child = bash.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start a shell")?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            output
                .split(b'\n')
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(String::from_utf8_lossy(&line).into()))
        });
        Ok(Self { child, input, lines, running: Vec::new() })
    }

    /// Runs commands to their end; the first that fails is the last.
    pub(super) fn run(&mut self, text: &str) -> Result<Done> {
        // A function's body, so that it may return and the shell goes on.
        let words = format!("{{\n{text}\n}} </dev/null 2>&1\nprintf '\\n{END} %s\\n' $?\n");
        self.input.write_all(words.as_bytes()).context("the shell has ended")?;
        let deadline = Instant::now() + PATIENCE;
        let mut said = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(_) => {
                    bail!("{text}\nhas not ended (or ended its shell) after {} s; it said:\n{said}", PATIENCE.as_secs())
                }
            };
            if let Some(code) = line.strip_prefix(&format!("{END} ")) {
                return Ok(Done { code: code.parse()?, said: said.trim_end().to_owned() });
            }
            said.push_str(&line);
            said.push('\n');
        }
    }

    /// Starts a command that goes on, waits until `seen` is content with what it has said, and returns why not else.
    pub(super) fn follow(
        &mut self,
        text: &str,
        stop: bool,
        seen: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<String>> {
        let begun =
            self.run(&format!("set -m; out=$(mktemp); {{ {text}\n}} >$out 2>&1 </dev/null & echo $out $!; set +m"))?;
        let last = begun.said.lines().last().unwrap_or_default().to_owned();
        let (file, group) = last.split_once(' ').with_context(|| format!("{text} did not start: {}", begun.said))?;
        let deadline = Instant::now() + PATIENCE;
        let mut why = None;
        while Instant::now() < deadline {
            let said = self.run(&format!("cat {file}"))?.said;
            why = seen(&said);
            if why.is_none() {
                break;
            }
            if self.run(&format!("kill -0 {group}"))?.code != 0 {
                break;
            }
            thread::sleep(LOOK);
        }
        if stop {
            self.interrupt(group)?;
        } else {
            self.running.push(group.to_owned());
        }
        Ok(why)
    }

    /// Repeats a command until `seen` is content with it; else why not.
    pub(super) fn repeat(&mut self, text: &str, seen: impl Fn(&str) -> Option<String>) -> Result<Option<String>> {
        let deadline = Instant::now() + PATIENCE / 2;
        loop {
            let done = self.run(text)?;
            let why = seen(&done.said);
            if why.is_none() || Instant::now() > deadline {
                return Ok(why);
            }
            thread::sleep(LOOK);
        }
    }

    /// Ctrl-C, for one that goes on.
    fn interrupt(&mut self, group: &str) -> Result<()> {
        self.run(&format!("kill -INT -- -{group}; wait {group}")).map(drop)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        for group in std::mem::take(&mut self.running) {
            // One that has ended meanwhile is as good as stopped.
            let _ = self.interrupt(&group);
        }
        let _ = self.input.write_all(b"exit\n");
        let _ = self.child.wait();
    }
}
