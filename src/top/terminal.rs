//! A terminal as a screen: given back as it was, however this ends.
#![allow(unsafe_code)]

use std::io::{IsTerminal as _, Read as _, Write as _};

use anyhow::{Context, Result, bail};
use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};
use tokio::sync::mpsc;

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const TOP_LEFT: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";

pub(super) struct Terminal {
    before: Termios,
}

impl Terminal {
    /// Takes the terminal that standard input and output are.
    pub(super) fn take() -> Result<Terminal> {
        if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
            bail!("this is no terminal; `sluice top --once` prints one screen");
        }
        let before = termios::tcgetattr(std::io::stdin()).context("the terminal does not say how it is set")?;
        let mut raw = before.clone();
        // Keys come one by one and unseen; Ctrl-C still is a signal.
        raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).context("the terminal cannot be set")?;
        let terminal = Terminal { before };
        write(ENTER)?;
        Ok(terminal)
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the request writes a whole value of that type.
        let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
        if result != 0 || size.ws_col == 0 || size.ws_row == 0 {
            return (80, 24);
        }
        (size.ws_col.into(), size.ws_row.into())
    }

    /// Shows these lines and nothing else.
    pub(super) fn show(&self, lines: &[String]) -> std::io::Result<()> {
        let rows: Vec<String> = lines.iter().map(|line| format!("{line}{REST_OF_LINE}")).collect();
        write(&format!("{TOP_LEFT}{}{REST_OF_SCREEN}", rows.join("\r\n")))
    }

    /// Keys as they are pressed; the end of them when the terminal is gone.
    pub(super) fn keys(&self) -> mpsc::Receiver<u8> {
        let (sender, receiver) = mpsc::channel(16);
        std::thread::spawn(move || {
            let mut key = [0];
            while std::io::stdin().read_exact(&mut key).is_ok() && sender.blocking_send(key[0]).is_ok() {}
        });
        receiver
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing is left to be done if the terminal is gone.
        let _ = write(LEAVE);
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}
