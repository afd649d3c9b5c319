//! The book, word by word: its commands run in their order on bare machines and in a lab, and show what its pages show.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use sluice_e2e::book::{self, Fate, Page, Place, plain};

/// Pages that begin on machines of their own, each with a test below.
const FIRST: &[&str] = &["tutorial/first-cluster.md", "tutorial/lab.md"];

fn follow(first: &str) -> Result<()> {
    let pages = book::pages()?;
    let group = book::group(&pages, first)?;
    let report = book::run(&group, env!("CARGO_PKG_VERSION"))?;
    ensure!(report.run > 0, "nothing was run");
    ensure!(
        report.wrong.is_empty(),
        "{} commands go otherwise than their pages say:\n{}",
        report.wrong.len(),
        report.wrong.join("\n\n")
    );
    println!("{} commands run, {} blocks not, of {} pages", report.run, report.left_out.len(), group.len());
    Ok(())
}

#[test]
fn the_first_cluster_and_what_goes_on_with_it() -> Result<()> {
    follow("tutorial/first-cluster.md")
}

#[test]
fn a_lab_is_broken_and_heals() -> Result<()> {
    follow("tutorial/lab.md")
}

#[test]
fn every_page_is_reached_and_every_command_has_a_place() -> Result<()> {
    let pages = book::pages()?;
    let known: BTreeSet<&Path> = pages.iter().map(|page| page.path.as_path()).collect();
    for page in &pages {
        match &page.place {
            Place::Machines(_) | Place::Lab => {
                let first = page.path.to_str().unwrap_or_default();
                ensure!(FIRST.contains(&first), "{first} begins on machines of its own, and no test follows it");
            }
            Place::After(other) => {
                ensure!(known.contains(other.as_path()), "{} continues no page", page.path.display())
            }
            Place::Nowhere => {}
        }
    }
    let mut files = Vec::new();
    let mut dirs = vec![book::root()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "md")) {
        let name = file.strip_prefix(book::root())?;
        ensure!(known.contains(name) || name == Path::new("SUMMARY.md"), "{} is not in SUMMARY.md", name.display());
    }
    let left_out = |page: &&Page| page.blocks.iter().filter(|block| matches!(block.fate, Fate::NotRun(_))).count();
    let blocks: usize = pages.iter().map(|page| page.blocks.len()).sum();
    let left_out: usize = pages.iter().map(|page| left_out(&page)).sum();
    println!("{} pages, {blocks} blocks of commands, {left_out} of them not run", pages.len());
    Ok(())
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let pages = book::pages()?;
    let known: BTreeSet<&PathBuf> = pages.iter().map(|page| &page.path).collect();
    for page in &pages {
        let here = page.path.parent().unwrap_or(Path::new(""));
        for link in page.links.iter().filter(|link| !link.starts_with("https://") && !link.starts_with("http://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.path.clone() } else { plain(&here.join(file)) };
            ensure!(known.contains(&target), "{}: {link} is no page of the book", page.path.display());
            let text = std::fs::read(book::root().join(&target))?;
            let text = String::from_utf8_lossy(&text);
            let titles = text.lines().filter_map(|line| line.strip_prefix('#')).map(slug);
            ensure!(
                anchor.is_empty() || titles.into_iter().any(|title| title == anchor),
                "{}: {link} names no title",
                page.path.display()
            );
        }
    }
    Ok(())
}

/// A title as links name it.
fn slug(title: &str) -> String {
    let title = title.trim_start_matches('#').trim().to_lowercase();
    let kept = title.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
