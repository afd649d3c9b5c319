//! `--flamegraph`: what the server's processes do while they are measured, by `perf`, drawn as one picture.
//!
//! Stacks are unwound by the programs' own tables, so the programs are those that are measured without it, too. Sampling
//! takes a little of the machine: figures of such a run are for looking at, not for comparing.

use std::{
    fs::File,
    io::{BufReader, BufWriter},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use inferno::{
    collapse::{Collapse as _, perf},
    flamegraph,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{lab::say, limits};

/// Samples being taken; see the module.
pub(crate) struct Profile {
    perf: Child,
    dir: TempDir,
    picture: PathBuf,
}

impl Profile {
    /// Begins to look at `pids`; the picture goes to `picture`.
    pub(crate) fn begin(pids: &[u32], picture: &Path) -> Result<Self> {
        if pids.is_empty() {
            bail!("--flamegraph looks at processes of this machine: name them with --pid");
        }
        let dir = tempfile::Builder::new().prefix("sluice-bench-").tempdir()?;
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let perf = Command::new("perf")
            .args(["record", "--quiet", "--event", "cpu-clock", "--pid", &pids.join(",")])
            .args(["--freq", &limits::SAMPLES.to_string(), "--call-graph", &format!("dwarf,{}", limits::SAMPLED_STACK)])
            .arg("--output")
            .arg(dir.path().join("samples"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start perf (apt-get install linux-perf)")?;
        Ok(Self { perf, dir, picture: picture.to_owned() })
    }

    /// Ends it and draws the picture.
    pub(crate) fn end(mut self) -> Result<()> {
        say("drawing the flame graph");
        kill(self.pid(), Signal::SIGINT)?;
        self.perf.wait()?;
        let mut script = Command::new("perf")
            .args(["script", "--no-inline", "--input"])
            .arg(self.dir.path().join("samples"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start perf script")?;
        let text = script.stdout.take().context("perf script has no output")?;
        let stacks = fold(BufReader::new(text))?;
        script.wait()?;
        let file = File::create(&self.picture).with_context(|| format!("cannot write {}", self.picture.display()))?;
        let mut options = flamegraph::Options::default();
        options.title = "CPU time of the server".into();
        flamegraph::from_lines(&mut options, stacks.lines(), BufWriter::new(file)).context("perf took no samples")?;
        say(&format!("the flame graph is in {}", self.picture.display()));
        Ok(())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.perf.id().cast_signed())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        // It has ended already unless the measuring failed.
        if let Ok(None) = self.perf.try_wait() {
            let _ = kill(self.pid(), Signal::SIGINT);
            let _ = self.perf.wait();
        }
    }
}

/// Samples as `perf script` prints them, one line for each stack with how often it was seen.
fn fold(samples: impl std::io::BufRead) -> Result<String> {
    let mut folder = perf::Folder::from(perf::Options::default());
    let mut lines = Vec::new();
    folder.collapse(samples, &mut lines)?;
    Ok(String::from_utf8(lines)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_stacks_are_one_line() {
        let sample = "tokio 7 1.0: 1 cpu-clock: \n\t 55 inner+0x5 (/bin/sluice)\n\t 44 outer+0x4 (/bin/sluice)\n\n";
        let folded = fold(sample.repeat(3).as_bytes()).unwrap();
        assert_eq!(folded.trim_end(), "tokio;outer;inner 3");
    }
}
