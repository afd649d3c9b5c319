//! Lists of thousands of pods, whole and by pages, and what the server's memory is with them.

use std::time::Instant;

use anyhow::{Context, Result};

use super::{Options, fill, pod};
use crate::{
    cluster::{Caller, Cluster, Object, Space},
    lab::say,
    limits,
    report::Measured,
};

pub(super) const WHOLE: &str = "list, whole: time";
pub(super) const WHOLE_CPU: &str = "list, whole: server CPU";
pub(super) const MEMORY: &str = "memory with the pods to list";

pub(super) async fn run(options: &Options, cluster: &Cluster, space: &Space, measured: &mut Measured) -> Result<()> {
    say(&format!("creating {} pods to list", options.pods));
    let callers: Vec<Caller> = (0..limits::LOAD_WRITERS).map(|_| cluster.caller()).collect::<Result<_>>()?;
    let empty = cluster.meter.memory()?;
    let path = space.path(Object::Pods);
    let create = {
        let path = path.clone();
        move |caller: Caller, number: usize| {
            let path = path.clone();
            async move { caller.post(&path, &pod(&format!("list-{number}"))).await.map(drop) }
        }
    };
    fill::run(&callers, options.pods, create).await?;
    let full = cluster.meter.memory()?;
    measured.row("memory before the pods to list", "MiB", &Vec::from_iter(empty));
    measured.row(MEMORY, "MiB", &Vec::from_iter(full));
    if let (Some(empty), Some(full)) = (empty, full) {
        #[expect(clippy::cast_precision_loss)]
        measured.row("memory for each of them", "KiB", &[(full - empty) * 1024.0 / options.pods as f64]);
    }
    say("listing them");
    let caller = cluster.caller()?;
    for (name, page) in [("whole", None), ("by 500", Some(limits::PAGE))] {
        let (mut times, mut costs, mut bytes) = (Vec::new(), Vec::new(), 0);
        for _ in 0..limits::LISTS {
            let before = cluster.meter.read()?;
            let begun = Instant::now();
            bytes = list(&caller, &path, page).await?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            costs.extend(cluster.meter.read()?.per(before, 1).server);
        }
        measured.row(&format!("list, {name}: time"), "ms", &times);
        measured.row(&format!("list, {name}: server CPU"), "ms", &costs);
        #[expect(clippy::cast_precision_loss)]
        measured.row(&format!("list, {name}: size"), "MB", &[bytes as f64 / 1e6]);
    }
    measured.row("memory after the lists", "MiB", &Vec::from_iter(cluster.meter.memory()?));
    say("deleting them");
    space.empty(Object::Pods).await
}

/// Reads a list to its end; how many bytes it had.
async fn list(caller: &Caller, path: &str, page: Option<usize>) -> Result<usize> {
    let Some(page) = page else { return Ok(caller.get(path).await?.len()) };
    let (mut bytes, mut from) = (0, String::new());
    loop {
        let answer = caller.get(&format!("{path}?limit={page}{from}")).await?;
        bytes += answer.len();
        match next(&answer).context("a page is no list")? {
            "" => return Ok(bytes),
            token => from = format!("&continue={}", token.replace('=', "%3D").replace('+', "%2B")),
        }
    }
}

/// Where the next page begins, without reading all of this one: lists have their metadata before their items.
fn next(page: &[u8]) -> Option<&str> {
    let head = String::from_utf8_lossy(&page[..page.len().min(4096)]);
    let end = head.find("\"items\"").unwrap_or(head.len());
    if !head[..end].contains("\"metadata\"") {
        return None;
    }
    let Some(at) = head[..end].find("\"continue\":\"") else { return Some("") };
    let begin = at + "\"continue\":\"".len();
    let length = page.get(begin..)?.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(page.get(begin..begin + length)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_where_the_next_begins() {
        let page = |metadata: &str| {
            format!(r#"{{"kind":"PodList","metadata":{metadata},"items":[{{"metadata":{{"continue":"no"}}}}]}}"#)
        };
        assert_eq!(next(page(r#"{"resourceVersion":"9","continue":"abc=="}"#).as_bytes()), Some("abc=="));
        assert_eq!(next(page(r#"{"resourceVersion":"9"}"#).as_bytes()), Some(""));
        assert_eq!(next(b"no list"), None);
    }
}
