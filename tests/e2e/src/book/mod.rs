//! The book as a reader follows it: page by page, command by command, on machines that begin as bare as the page says.

pub mod page;
mod run;
mod shell;
mod shown;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

pub use page::{Fate, Page, Place, plain};
pub use run::{Report, run};

/// Where the book's pages are.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// Every page that the table of contents names, in its order.
pub fn pages() -> Result<Vec<Page>> {
    let contents = fs::read_to_string(root().join("SUMMARY.md")).context("the table of contents")?;
    let named = Page::parse(Path::new("SUMMARY.md"), &contents)?.links;
    named
        .iter()
        .map(|name| {
            let text = fs::read_to_string(root().join(name)).with_context(|| name.clone())?;
            Page::parse(Path::new(name), &text).with_context(|| name.clone())
        })
        .collect()
}

/// A page that begins on machines of its own and all that go on after it, in the order of the book.
pub fn group<'a>(pages: &'a [Page], first: &str) -> Result<Vec<&'a Page>> {
    let mut group: Vec<&Page> = Vec::new();
    for page in pages {
        let after = matches!(&page.place, Place::After(other) if group.iter().any(|page| page.path == *other));
        if page.path == Path::new(first) || after {
            group.push(page);
        }
    }
    ensure!(!group.is_empty(), "{first} is not in the book");
    Ok(group)
}
