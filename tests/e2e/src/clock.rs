//! A clock of a node's own, for programs that ask the C library what time it is, as `sluice` does.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::sh::output;

const SOURCE: &str = include_str!("clock.c");

pub(crate) struct Clock {
    library: PathBuf,
    ahead: PathBuf,
}

impl Clock {
    /// Makes one in a folder, as right as the machine's.
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        let clock = Self { library: dir.join("clock.so"), ahead: dir.join("clock-ahead") };
        let source = dir.join("clock.c");
        fs::write(&source, SOURCE)?;
        output(Command::new("cc").args(["-shared", "-fPIC", "-O", "-o"]).arg(&clock.library).arg(&source))?;
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it so many seconds ahead of the machine's, for programs that run already, too.
    pub(crate) fn set(&self, ahead: i64) -> Result<()> {
        // They have the file's page.
        let file = File::options().create(true).truncate(false).write(true).open(&self.ahead)?;
        Ok(file.write_all_at(&ahead.to_ne_bytes(), 0)?)
    }

    /// Gives it to a command, and to all that this starts.
    pub(crate) fn give(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("OWN_CLOCK", &self.ahead);
    }
}
