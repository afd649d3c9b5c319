//! Follows pages on machines: makes them, types each command, compares.

use std::{fs, path::Path, process::Command, time::Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Fate, Page, Place, page, shell::Shell, shown::differs};
use crate::{Bare, target};

/// The version that pages begin with.
const OLDER: &str = "0.0.1";

/// What a test of pages did.
#[derive(Debug, Default)]
pub struct Report {
    /// Commands that were run.
    pub run: usize,
    /// Those that were not, each with its place and the reason.
    pub left_out: Vec<String>,
    /// What did not go as its page says.
    pub wrong: Vec<String>,
}

/// Where commands are typed.
struct Site {
    /// Dropped before the machines that they run on.
    shells: Vec<Shell>,
    machines: Vec<Bare>,
}

/// Follows these pages, one after the other, in one place.
pub fn run(pages: &[&Page], version: &str) -> Result<Report> {
    let first = pages.first().context("no pages")?;
    let mut site = match first.place {
        Place::Machines(count) => Site::machines(count)?,
        Place::Lab => Site::lab()?,
        _ => bail!("{} does not say where it begins", first.path.display()),
    };
    let mut report = Report::default();
    for page in pages {
        let (begun, before) = (Instant::now(), report.run);
        site.follow(page, version, &mut report).with_context(|| page.path.display().to_string())?;
        let took = begun.elapsed().as_secs_f64();
        eprintln!("{}: {} commands in {took:.1} s", page.path.display(), report.run - before);
    }
    for line in &report.left_out {
        eprintln!("not run: {line}");
    }
    Ok(report)
}

/// Ctrl-C ends what a reader follows, even if the tests themselves run where nobody can press it.
const BASH: &str = "env --default-signal=INT,QUIT bash --noprofile --norc";

impl Site {
    fn machines(count: usize) -> Result<Self> {
        let machines = Bare::several("sbook", count)?;
        let mut shells = Vec::new();
        for machine in &machines {
            furnish(machine)?;
            let mut bash = machine.command(BASH);
            bash.env("TERM", "dumb");
            let mut shell = Shell::start(bash)?;
            shell.run("cd /root")?;
            shells.push(shell);
        }
        Ok(Self { shells, machines })
    }

    /// The repository, with a `cargo` that runs the tasks that are built already on the program that is built already.
    fn lab() -> Result<Self> {
        let dir = target().join("book");
        fs::create_dir_all(&dir)?;
        let cargo = dir.join("cargo");
        let target = fs::canonicalize(target())?;
        let lab = include_str!("cargo.sh").replace("@TARGET@", &target.display().to_string());
        fs::write(&cargo, lab)?;
        ensure!(Command::new("chmod").arg("+x").arg(&cargo).status()?.success());
        let mut bash = Command::new("sh");
        let path = std::env::var("PATH").unwrap_or_default();
        bash.args(["-c", &format!("exec {BASH}")])
            .env("PATH", format!("{}:{path}", fs::canonicalize(&dir)?.display()))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        Ok(Self { shells: vec![Shell::start(bash)?], machines: Vec::new() })
    }

    fn follow(&mut self, page: &Page, version: &str, report: &mut Report) -> Result<()> {
        for block in &page.blocks {
            if let Fate::NotRun(why) = &block.fate {
                let count = block.commands.len();
                report.left_out.push(format!("{}:{} ({count}): {why}", page.path.display(), block.line));
                continue;
            }
            let package = if block.newer { version } else { OLDER };
            self.machines.iter().try_for_each(|machine| lay(machine, package))?;
            for (index, command) in block.commands.iter().enumerate() {
                let last = index + 1 == block.commands.len();
                let fate = if last { &block.fate } else { &Fate::Run };
                if let Err(error) = self.command(command, fate) {
                    let place = format!("{}, block of line {}", page.path.display(), block.line);
                    report.wrong.push(format!("{place}: $ {}\n{error:#}", command.text));
                }
                report.run += 1;
            }
        }
        Ok(())
    }

    fn command(&mut self, command: &page::Command, fate: &Fate) -> Result<()> {
        if let Some((from, words, to)) = remote(&command.text) {
            let done = self.shell(from)?.run(&format!("({words}) 2>/dev/null | base64 -w0"))?;
            ensure!(done.code == 0 && !done.said.is_empty(), "on node{from} it ended with {}", done.code);
            let done = self.shell(command.machine)?.run(&format!("echo {} | base64 -d {to}", done.said))?;
            ensure!(done.code == 0, "{}", done.said);
            return Ok(());
        }
        let shell = self.shells.get_mut(command.machine - 1).context("there is no such machine")?;
        let stop = command.shown.last().is_some_and(|line| line == "^C");
        let shown = &command.shown[..command.shown.len() - usize::from(stop)];
        eprintln!("node{}$ {}", command.machine, command.text);
        let seen = |said: &str| differs(shown, said);
        let wrong = match fate {
            Fate::Stays => shell.follow(&command.text, false, seen)?,
            Fate::Until => shell.repeat(&command.text, seen)?,
            _ if stop => shell.follow(&command.text, true, seen)?,
            _ => {
                let done = shell.run(&command.text)?;
                ensure!(
                    (done.code == 0) != (*fate == Fate::Fails),
                    "it ended with {}:\n{}\n{}",
                    done.code,
                    done.said,
                    self.logs()
                );
                eprintln!("{}", done.said);
                if shown.is_empty() { None } else { differs(shown, &done.said) }
            }
        };
        match wrong {
            Some(wrong) => bail!("{wrong}"),
            None => Ok(()),
        }
    }

    fn shell(&mut self, machine: usize) -> Result<&mut Shell> {
        self.shells.get_mut(machine - 1).context("there is no such machine")
    }

    /// What the machines' daemons said last.
    fn logs(&self) -> String {
        let log = |(number, machine): (usize, &Bare)| {
            let names = ["sluice", "sluice-server", "sluice-node"];
            let tails = names.map(|name| crate::notices::tail(&machine.path(&format!("/var/log/{name}.log"))));
            format!("log of node{}:\n{}", number + 1, tails.join("\n"))
        };
        self.machines.iter().enumerate().map(log).collect::<Vec<_>>().join("\n")
    }
}

/// The machines have no SSH: of `ssh node1 COMMAND >>FILE` (or `| COMMAND`) the test does what SSH would, from node1's shell
/// into the file.
fn remote(text: &str) -> Option<(usize, &str, &str)> {
    let (node, rest) = text.strip_prefix("ssh node")?.split_once(' ')?;
    let at = rest.find(" >").or_else(|| rest.find(" |"))?;
    Some((node.parse().ok()?, &rest[..at], &rest[at..]))
}

/// What every machine has before a page begins: the package beside it, the host names of its neighbours, stand-ins for the
/// service manager, and settings that keep it apart from others on this kernel.
fn furnish(machine: &Bare) -> Result<()> {
    lay(machine, OLDER)?;
    fs::create_dir_all(machine.path("/run/systemd/system"))?;
    for (name, text) in [("systemctl", include_str!("systemctl.pl")), ("journalctl", include_str!("journalctl.sh"))] {
        fs::write(machine.path(&format!("/usr/bin/{name}")), text)?;
        machine.run(&format!("chmod +x /usr/bin/{name}"))?;
    }
    let hosts: String = (1..=9).map(|number| format!("172.30.0.{} node{number}\n", 10 + number)).collect();
    fs::write(machine.path("/etc/hosts"), format!("127.0.0.1 localhost\n{hosts}"))?;
    let settings = format!("instance: {}\nsocketHooks: instance\ndnsUpstream: [none]\n", machine.instance());
    fs::write(machine.path("/etc/settings-of-the-test"), settings)?;
    // After dpkg has put its own settings file there.
    fs::write(
        machine.path("/etc/apt/apt.conf.d/99settings-of-the-test"),
        "DPkg::Post-Invoke {\"grep -qs ^instance: /etc/sluice/sluice.yaml || [ ! -e /etc/sluice/sluice.yaml ] || \
         cat /etc/settings-of-the-test >>/etc/sluice/sluice.yaml\";};\n",
    )?;
    Ok(())
}

/// Puts the package of this version, and no other, where the book's reader has it.
fn lay(machine: &Bare, version: &str) -> Result<()> {
    let name = format!("sluice_{version}_amd64.deb");
    if machine.path(&format!("/root/{name}")).exists() {
        return Ok(());
    }
    for entry in fs::read_dir(machine.path("/root"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            fs::remove_file(path)?;
        }
    }
    let file = target().join("dist").join(&name);
    ensure!(file.exists(), "{} is missing: cargo xtask dist --for-tests", file.display());
    machine.put(&file, &format!("/root/{name}"))
}
