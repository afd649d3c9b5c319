//! Engines for the tests: an embedded store in a temporary directory, or a real etcd of its own.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use sluice_store::{
    DynEngine, Error, Op, Range, Revision, Txn, TxnResult, WatchItem, WatchStream,
    embedded::{Embedded, Options},
    etcd::{Etcd, Tls},
};

/// How long anything a test waits for may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An engine and what it lives on.
pub struct Fixture {
    pub engine: DynEngine,
    pub etcd: Option<EtcdServer>,
    _dir: Option<tempfile::TempDir>,
}

pub async fn embedded() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    Fixture { engine: Embedded::open(dir.path(), Options::default()).unwrap(), etcd: None, _dir: Some(dir) }
}

pub async fn etcd() -> Fixture {
    let server = EtcdServer::start();
    Fixture { engine: server.connect().await, etcd: Some(server), _dir: None }
}

/// A way to an etcd that can go silent: connections stay, new ones are taken, and nothing passes.
pub struct Relay {
    port: u16,
    silent: tokio::sync::watch::Sender<bool>,
}

impl Relay {
    pub async fn to(endpoint: &str) -> Relay {
        let there = endpoint.trim_start_matches("http://").to_owned();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (silent, told) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let (there, mut told) = (there.clone(), told.clone());
                tokio::spawn(async move {
                    let pass = async {
                        let mut there = tokio::net::TcpStream::connect(there).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                    };
                    let silent = async { told.wait_for(|silent| *silent).await.is_ok() };
                    let ends = tokio::select! { biased; silent = silent => !silent, () = pass => true };
                    if !ends {
                        std::future::pending().await
                    }
                });
            }
        });
        Relay { port, silent }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn be_silent(&self) {
        self.silent.send_replace(true);
    }
}

/// One etcd on 127.0.0.1 in a directory of its own; stopped when dropped.
pub struct EtcdServer {
    child: Child,
    client: u16,
    peer: u16,
    dir: tempfile::TempDir,
    /// Files for TLS, when clients must use it.
    tls: Option<TlsFiles>,
}

/// PEM: an authority, and a certificate and key of it for both sides.
pub struct TlsFiles {
    pub ca: String,
    pub certificate: String,
    pub key: String,
}

impl EtcdServer {
    pub fn start() -> Self {
        Self::start_with(None)
    }

    pub fn start_with(tls: Option<TlsFiles>) -> Self {
        let (client, peer) = (free_port(), free_port());
        let dir = tempfile::tempdir().unwrap();
        EtcdServer { child: spawn_etcd(dir.path(), client, peer, tls.as_ref()), client, peer, dir, tls }
    }

    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client)
    }

    pub async fn connect(&self) -> Arc<Etcd> {
        self.connect_with(None).await
    }

    pub async fn connect_with(&self, tls: Option<Tls>) -> Arc<Etcd> {
        let endpoint = self.endpoint();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match Etcd::connect(std::slice::from_ref(&endpoint), tls.clone()).await {
                Ok(etcd) => return etcd,
                Err(e) if tokio::time::Instant::now() > deadline => panic!("etcd: {e}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Kills etcd.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on what it left.
    pub fn restart(&mut self) {
        self.child = spawn_etcd(self.dir.path(), self.client, self.peer, self.tls.as_ref());
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn_etcd(dir: &std::path::Path, client: u16, peer: u16, tls: Option<&TlsFiles>) -> Child {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let client = format!("{scheme}://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let mut command = Command::new("/usr/bin/etcd");
    if let Some(tls) = tls {
        for (option, name, pem) in [
            ("--trusted-ca-file", "ca", &tls.ca),
            ("--cert-file", "certificate", &tls.certificate),
            ("--key-file", "key", &tls.key),
        ] {
            let path = dir.join(name);
            std::fs::write(&path, pem).unwrap();
            command.arg(option).arg(path);
        }
        command.arg("--client-cert-auth");
    }
    command
        .args(["--name", "test", "--unsafe-no-fsync", "--log-level", "error"])
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd must be installed for this test: apt-get install etcd-server")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

pub fn put(key: &str, value: &str) -> Op {
    Op::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()), lease: 0 }
}

pub fn delete(key: &str, end: &str) -> Op {
    Op::Delete { key: Bytes::copy_from_slice(key.as_bytes()), end: Bytes::copy_from_slice(end.as_bytes()) }
}

pub async fn write(engine: &DynEngine, ops: Vec<Op>) -> TxnResult {
    let txn = Txn { success: ops, ..Txn::default() };
    engine.txn(txn).await.unwrap()
}

pub fn range(key: &str, end: &str) -> Range {
    Range {
        key: Bytes::copy_from_slice(key.as_bytes()),
        end: Bytes::copy_from_slice(end.as_bytes()),
        ..Range::default()
    }
}

/// `key=value` of what a range holds.
pub async fn list(engine: &DynEngine, range: Range) -> Result<Vec<String>, Error> {
    let result = engine.range(range).await?;
    Ok(result.kvs.iter().map(show).collect())
}

pub fn show(kv: &sluice_store::Kv) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}={}", text(&kv.key), text(&kv.value))
}

/// The next revision's events; progress is skipped.
pub async fn next_events(stream: &mut WatchStream) -> Result<(Revision, Vec<sluice_store::Event>), Error> {
    loop {
        let item = tokio::time::timeout(PATIENCE, stream.next()).await;
        match item.expect("a watch item in time").expect("a live watch")? {
            WatchItem::Events { revision, events } => return Ok((revision, events)),
            WatchItem::Progress(_) => {}
        }
    }
}
