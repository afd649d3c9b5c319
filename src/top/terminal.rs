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
        write(&screen(lines, self.size().1))
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

/// What draws these lines on a screen of so many rows. Nothing is cleared behind a line: one as long as the screen is wide leaves
/// the cursor on its last letter.
fn screen(lines: &[String], rows: usize) -> String {
    let all: Vec<String> = lines.iter().map(|line| format!("{REST_OF_LINE}{line}")).collect();
    let below = if lines.len() < rows { format!("\r\n{REST_OF_SCREEN}") } else { String::new() };
    format!("{TOP_LEFT}{}{below}", all.join("\r\n"))
}

fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cleared_before_it_is_written_and_what_is_below_only_where_there_is_room() {
        let lines = ["one".to_owned(), "two".to_owned()];
        assert_eq!(screen(&lines, 2), "\x1b[H\x1b[Kone\r\n\x1b[Ktwo");
        assert_eq!(screen(&lines, 3), "\x1b[H\x1b[Kone\r\n\x1b[Ktwo\r\n\x1b[J");
    }
}
