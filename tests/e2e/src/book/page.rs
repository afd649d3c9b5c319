//! A page of the book as a test sees it: where its commands run, and its fenced blocks of commands in their order.
//!
//! What only the test has to know stands in comments, which readers do not see:
//!
//! - `<!-- machines: 3 -->` near the top: the page begins on so many bare machines, `node1` and so on;
//! - `<!-- continues: first-cluster.md -->`: it goes on where the other page ended;
//! - `<!-- lab -->`: its commands run where the repository is;
//! - `<!-- not run: REASON -->` before a block: the test leaves it out, and says so;
//! - `<!-- fails -->` before a block: its last command is meant to fail;
//! - `<!-- until -->` before a block: its command is repeated until it shows what the page shows;
//! - `<!-- stays -->` before a block: its last command goes on after it has shown what the page shows;
//! - `<!-- newer package -->`: from here on the newer package lies on the first machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Where a page's commands run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On so many machines of its own.
    Machines(usize),
    /// Where this page, a path in the book, ended.
    After(PathBuf),
    /// In the repository.
    Lab,
    /// It has no commands that run.
    Nowhere,
}

/// What becomes of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Run,
    Fails,
    Until,
    Stays,
    NotRun(String),
}

/// One command with what the page shows of its output, if it shows any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The machine's number, from 1.
    pub machine: usize,
    pub text: String,
    pub shown: Vec<String>,
}

/// A fenced block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// In the page, from 1.
    pub line: usize,
    pub fate: Fate,
    /// Whether it needs the newer package on the first machine.
    pub newer: bool,
    pub commands: Vec<Command>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Page {
    /// In the book.
    pub path: PathBuf,
    pub place: Place,
    pub blocks: Vec<Block>,
    /// Targets of its links.
    pub links: Vec<String>,
}

impl Page {
    /// Reads a page; `path` is its place in the book.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let mut page = Self { path: path.into(), place: Place::Nowhere, blocks: Vec::new(), links: Vec::new() };
        let (mut fate, mut newer) = (Fate::Run, false);
        let mut lines = text.lines().enumerate();
        let mut before = "";
        while let Some((index, line)) = lines.next() {
            if let Some(comment) = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) {
                page.told(comment, &mut fate, &mut newer).with_context(|| format!("line {}", index + 1))?;
            } else if let Some(language) = line.trim_start().strip_prefix("```") {
                let body: Vec<&str> =
                    lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
                let commands = match language {
                    "console" => console(&body),
                    "sh" => Ok(vec![Command { machine: 1, text: body.join("\n"), shown: Vec::new() }]),
                    "" => bail!("line {}: a block without a language", index + 1),
                    _ => continue,
                };
                let commands = commands.with_context(|| format!("the block of line {}", index + 1))?;
                let fate = std::mem::replace(&mut fate, Fate::Run);
                page.blocks.push(Block { line: index + 1, fate, newer, commands });
            } else {
                ensure!(
                    !(line.starts_with("    ") && before.is_empty()),
                    "line {}: an indented block, which no test can tell from a command's",
                    index + 1
                );
                page.links.extend(links(line));
            }
            before = line;
        }
        let runs = page.blocks.iter().any(|block| !matches!(block.fate, Fate::NotRun(_)));
        ensure!(!runs || page.place != Place::Nowhere, "it has commands, and does not say where they run");
        Ok(page)
    }

    fn told(&mut self, comment: &str, fate: &mut Fate, newer: &mut bool) -> Result<()> {
        let (word, rest) = comment.split_once(": ").unwrap_or((comment, ""));
        match word {
            "machines" => self.place = Place::Machines(rest.parse()?),
            "continues" => {
                let base = self.path.parent().unwrap_or(Path::new(""));
                self.place = Place::After(plain(&base.join(rest)));
            }
            "lab" => self.place = Place::Lab,
            "not run" if !rest.is_empty() => *fate = Fate::NotRun(rest.to_owned()),
            "fails" => *fate = Fate::Fails,
            "until" => *fate = Fate::Until,
            "stays" => *fate = Fate::Stays,
            "newer package" => *newer = true,
            _ => {}
        }
        Ok(())
    }
}

/// A path without `..`.
pub fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path {
        if part == ".." {
            // Above the book there is nothing that it could lead to.
            out.pop();
        } else {
            out.push(part);
        }
    }
    out
}

/// Commands after their prompts (`$ `, or `node2$ ` for another machine), with what follows as their output.
fn console(lines: &[&str]) -> Result<Vec<Command>> {
    let mut commands: Vec<Command> = Vec::new();
    let mut lines = lines.iter();
    while let Some(line) = lines.next() {
        let Some((machine, begin)) = prompt(line) else {
            let last = commands.last_mut().context("output before the first prompt")?;
            last.shown.push((*line).to_owned());
            continue;
        };
        let mut text = begin.to_owned();
        while text.ends_with('\\') {
            text = format!("{text}\n{}", lines.next().context("a command without its end")?);
        }
        if let Some((_, mark)) = begin.split_once("<<") {
            let mark = mark.trim_matches('\'');
            let mut more = lines.by_ref().take_while(|line| **line != mark).peekable();
            ensure!(more.peek().is_some(), "a here-document without its end");
            for line in more {
                text = format!("{text}\n{line}");
            }
            text = format!("{text}\n{mark}");
        }
        commands.push(Command { machine, text, shown: Vec::new() });
    }
    Ok(commands)
}

fn prompt(line: &str) -> Option<(usize, &str)> {
    if let Some(text) = line.strip_prefix("$ ") {
        return Some((1, text));
    }
    let (number, text) = line.strip_prefix("node")?.split_once("$ ")?;
    Some((number.parse().ok()?, text))
}

/// Targets of `[text](target)`.
fn links(line: &str) -> Vec<String> {
    let after = line.match_indices("](").map(|(at, _)| &line[at + 2..]);
    after.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read() {
        let text = "# Title\n<!-- machines: 2 -->\nSee [other](a/b.md#c).\n\n```console\n$ one \\\n  two\nout\n\nnode2$ cat <<'E'\nx\nE\n```\n\
                    <!-- not run: needs a reader -->\n```sh\nreboot\n```\n```yaml\na: 1\n```\n";
        let page = Page::parse(Path::new("x/page.md"), text).unwrap();
        assert_eq!((page.place, page.links), (Place::Machines(2), vec!["a/b.md#c".to_owned()]));
        let command = |machine, text: &str, shown: &[&str]| Command {
            machine,
            text: text.into(),
            shown: shown.iter().map(|line| (*line).to_owned()).collect(),
        };
        assert_eq!(
            page.blocks[0].commands,
            [command(1, "one \\\n  two", &["out", ""]), command(2, "cat <<'E'\nx\nE", &[])]
        );
        assert_eq!(page.blocks[1].fate, Fate::NotRun("needs a reader".into()));
        assert_eq!(page.blocks.len(), 2);
    }

    #[test]
    fn what_no_test_could_run_is_refused() {
        let refused = |text: &str| format!("{:#}", Page::parse(Path::new("page.md"), text).unwrap_err());
        assert!(refused("```sh\nls\n```\n").contains("does not say where"));
        assert!(refused("text\n\n    ls\n").contains("indented block"));
        assert!(refused("```\nls\n```\n").contains("without a language"));
    }

    #[test]
    fn pages_are_named_from_the_book() {
        let page = Page::parse(Path::new("how-to/a.md"), "<!-- continues: ../tutorial/b.md -->\n").unwrap();
        assert_eq!(page.place, Place::After("tutorial/b.md".into()));
    }
}
