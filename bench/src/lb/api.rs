//! As much of an API server as the data plane asks for: lists of Services and EndpointSlices in pages, a watch of each, over
//! plain HTTP on loopback. Every other kind is empty. Objects are kept as they are sent: what a list costs is the client's.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The server; it ends with the process.
#[derive(Clone)]
pub(super) struct Api {
    shared: Arc<Mutex<Shared>>,
    pub(super) address: SocketAddr,
}

struct Shared {
    services: Vec<String>,
    slices: Vec<String>,
    revision: u64,
    /// What was told at each revision, for watches that begin at an earlier one.
    told: Vec<(u64, String)>,
    /// Open watches of slices.
    watches: Vec<TcpStream>,
}

impl Api {
    pub(super) fn serve(services: Vec<Value>, slices: Vec<Value>) -> Result<Api> {
        let [services, slices] = [services, slices].map(|objects| objects.iter().map(Value::to_string).collect());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Mutex::new(Shared { services, slices, revision: 1, told: Vec::new(), watches: Vec::new() }));
        let api = Api { shared, address };
        let server = api.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // A client that goes ends its connection with an error.
                thread::spawn(move || server.answer(stream));
            }
        });
        Ok(api)
    }

    /// Changes a slice, and tells those that watch.
    pub(super) fn change(&self, index: usize, mut slice: Value) -> Result<()> {
        let mut shared = self.lock();
        shared.revision += 1;
        slice["metadata"]["resourceVersion"] = json!(shared.revision.to_string());
        *shared.slices.get_mut(index).context("a slice that was never there")? = slice.to_string();
        let event = json!({"type": "MODIFIED", "object": slice}).to_string() + "\n";
        shared.watches.retain_mut(|watch| chunk(watch, &event).is_ok());
        let revision = shared.revision;
        shared.told.push((revision, event));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        loop {
            let Some(first) = lines.next().transpose()? else { return Ok(()) };
            while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
            let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let field = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            let number = |name: &str| field(name).and_then(|value| value.parse::<usize>().ok());
            if field("watch").is_some() {
                stream.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
                )?;
                if path.ends_with("/endpointslices") {
                    self.watch(&mut stream, number("resourceVersion").unwrap_or(0) as u64)?;
                }
                continue;
            }
            let body = self.list(path, number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )?;
            stream.write_all(body.as_bytes())?;
        }
    }

    /// Tells what happened after a revision, and what happens from now on.
    fn watch(&self, stream: &mut TcpStream, revision: u64) -> io::Result<()> {
        let mut shared = self.lock();
        for (_, event) in shared.told.iter().filter(|(at, _)| *at > revision) {
            chunk(stream, event)?;
        }
        shared.watches.push(stream.try_clone()?);
        Ok(())
    }

    fn list(&self, path: &str, from: usize, limit: usize) -> String {
        let shared = self.lock();
        let all: &[String] = match path.rsplit('/').next() {
            Some("services") => &shared.services,
            Some("endpointslices") => &shared.slices,
            _ => &[],
        };
        let rest = all.get(from..).unwrap_or_default();
        let items = &rest[..limit.min(rest.len())];
        let next = if items.len() < rest.len() { (from + items.len()).to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": shared.revision.to_string(), "continue": next});
        let head = json!({"apiVersion": "v1", "kind": "List", "metadata": metadata}).to_string();
        format!("{},\"items\":[{}]}}", head.strip_suffix('}').unwrap_or(&head), items.join(","))
    }
}

fn chunk(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn ask(api: &Api, target: &str) -> TcpStream {
        let mut stream = TcpStream::connect(api.address).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        stream
    }

    #[test]
    fn lists_come_in_pages_and_changes_are_told() {
        let slices = vec![json!({"metadata": {"name": "a"}}), json!({"metadata": {"name": "b"}})];
        let api = Api::serve(vec![], slices).unwrap();
        let read = |mut stream: TcpStream, until: &str| {
            let mut text = String::new();
            let mut buffer = [0; 512];
            while !text.contains(until) {
                let read = stream.read(&mut buffer).unwrap();
                assert!(read > 0, "{text}");
                text += std::str::from_utf8(&buffer[..read]).unwrap();
            }
            text
        };
        let first = read(ask(&api, "/apis/x/v1/endpointslices?limit=1"), "]}");
        assert!(first.contains("\"continue\":\"1\"") && first.contains("\"a\"") && !first.contains("\"b\""), "{first}");
        let rest = read(ask(&api, "/apis/x/v1/endpointslices?limit=1&continue=1"), "]}");
        assert!(rest.contains("\"continue\":\"\"") && rest.contains("\"b\""), "{rest}");
        api.change(1, json!({"metadata": {"name": "early"}})).unwrap();
        let mut watch = ask(&api, "/apis/x/v1/endpointslices?watch=true&resourceVersion=1");
        assert!(read(watch.try_clone().unwrap(), "\"early\"").contains("chunked"));
        api.change(1, json!({"metadata": {"name": "late"}})).unwrap();
        let mut buffer = [0; 512];
        let length = watch.read(&mut buffer).unwrap();
        assert!(String::from_utf8_lossy(&buffer[..length]).contains("\"late\""));
        assert!(api.change(2, json!({})).is_err());
    }
}
