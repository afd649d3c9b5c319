//! `sluice top`: what is going on at this node's Services and pods, second by second, from the kernel's counters.

pub(crate) mod rates;
pub(crate) mod screen;
mod terminal;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Options;
use crate::flows::serve;
use rates::{Rates, Sample, rates};
use terminal::Terminal;

/// How long the daemon may take to name pods.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(crate) struct Arguments {
    /// Print one screen, of one interval, and end
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { once, interval, options } = arguments;
    let config = options.resolve()?;
    let place = Place { pins: config.pin_dir(), socket: serve::socket(&config), node: config.node_name };
    let interval = Duration::from_secs(interval);
    if once {
        let rates = place.over(interval).await?;
        screen::lines(&rates, &place.node, usize::MAX, 0).iter().for_each(|line| println!("{line}"));
        return Ok(());
    }
    follow(&place, interval).await
}

/// Until `q`, Ctrl-C or the end of the terminal.
async fn follow(place: &Place, interval: Duration) -> Result<()> {
    let mut before = (Instant::now(), place.sample()?);
    let mut shown = None;
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let terminal = Terminal::take()?;
    let mut keys = terminal.keys();
    terminal.show(&[format!("sluice top  {}", place.node)])?;
    let mut next = tokio::time::interval(interval);
    next.tick().await;
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            key = keys.recv() => match key {
                None | Some(b'q' | b'Q') => return Ok(()),
                Some(_) => continue,
            },
            _ = resized.recv() => {}
            _ = next.tick() => {
                let after = (Instant::now(), place.sample()?);
                let names = place.names().await;
                shown = Some(rates(&before.1, &after.1, after.0 - before.0, &names));
                before = after;
            }
        }
        if let Some(rates) = &shown {
            let (columns, rows) = terminal.size();
            terminal.show(&screen::lines(rates, &place.node, columns, rows))?;
        }
    }
}

/// Where a node's figures are.
pub(crate) struct Place {
    pub(crate) pins: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) node: String,
}

impl Place {
    /// Rates over some time from now on.
    pub(crate) async fn over(&self, time: Duration) -> Result<Rates> {
        let (begun, before) = (Instant::now(), self.sample()?);
        tokio::time::sleep(time).await;
        let after = self.sample()?;
        Ok(rates(&before, &after, begun.elapsed(), &self.names().await))
    }

    fn sample(&self) -> Result<Sample> {
        let pins: &Path = &self.pins;
        let read = || -> Result<Sample, sluice_dataplane::Error> {
            let (services, pods) = (sluice_dataplane::services(pins)?, sluice_dataplane::pods(pins)?);
            Ok(Sample { services, pods, drops: sluice_dataplane::drops(pins)? })
        };
        read().with_context(|| {
            format!("cannot read the maps pinned under {}; is the node running, and are you root?", pins.display())
        })
    }

    /// Pods by their links, as the daemon knows them; none while it does not answer.
    async fn names(&self) -> HashMap<u32, String> {
        let asked = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(b"pods\n").await?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await?;
            serde_json::from_str(&line).map_err(std::io::Error::from)
        };
        tokio::time::timeout(PATIENCE, asked).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}
