//! The file of a backup: a line of JSON that says what it is and how the rest has to hash, padded to a fixed length; then
//! the files of keys, each with two lengths (4 bytes, little-endian) before name and content; then the store's stream.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sluice_store::snapshot;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::config::Config;

/// The layout that this program reads and writes.
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 1024;
/// No key or certificate is larger.
const MAX_FILE_BYTES: u32 = 1 << 20;
const MAX_FILES: usize = 256;

/// What the first line says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    pub sluice_backup: u32,
    /// Of the program that wrote it.
    pub version: String,
    pub created: String,
    pub engine: String,
    pub revision: i64,
    pub keys: u64,
    pub files: usize,
    /// Of everything after this line.
    pub sha256: String,
}

/// A backup whose bytes are right.
pub(super) struct Opened {
    pub header: Header,
    /// Name and content.
    pub files: Vec<(String, Vec<u8>)>,
    /// At the store's stream.
    pub stream: tokio::fs::File,
}

/// Writes the keys and the stream into `path`, which appears only when it is whole.
pub(super) async fn write(path: &Path, config: &Config, stream: &mut (impl AsyncRead + Unpin)) -> Result<Header> {
    let fresh = path.with_extension("new");
    let cannot = || format!("cannot write {}", fresh.display());
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(cannot)?;
    let written = fill(&mut file, config, stream).await.and_then(|header| {
        file.sync_all()?;
        fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(header)
    });
    if written.is_err() {
        // Half a backup is none.
        let _ = fs::remove_file(&fresh);
    }
    written.with_context(cannot)
}

async fn fill(file: &mut File, config: &Config, stream: &mut (impl AsyncRead + Unpin)) -> Result<Header> {
    let keys = keys(&config.pki_dir())?;
    let mut hash = Sha256::new();
    let mut put = |file: &mut File, bytes: &[u8]| -> Result<()> {
        hash.update(bytes);
        Ok(file.write_all(bytes)?)
    };
    file.write_all(&[b' '; HEADER_BYTES])?;
    for (name, content) in &keys {
        for part in [name.as_bytes(), content] {
            put(file, &u32::try_from(part.len())?.to_le_bytes())?;
        }
        put(file, name.as_bytes())?;
        put(file, content)?;
    }
    let begin = file.stream_position()?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut buffer).await.context("the store's stream broke off")?;
        if length == 0 {
            break;
        }
        put(file, &buffer[..length])?;
    }
    file.seek(SeekFrom::Start(begin))?;
    let held = snapshot::check(&mut tokio::fs::File::from_std(file.try_clone()?)).await;
    let held = held.context("the store did not tell all that it holds; is its disk or etcd in order?")?;
    let header = Header {
        sluice_backup: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        created: k8s_openapi::jiff::Timestamp::now().to_string(),
        engine: if config.etcd.is_empty() { "embedded".into() } else { "etcd".into() },
        revision: held.revision,
        keys: held.keys,
        files: keys.len(),
        sha256: hex(hash),
    };
    file.seek(SeekFrom::Start(0))?;
    file.write_all(serde_json::to_string(&header)?.as_bytes())?;
    file.seek(SeekFrom::Start(HEADER_BYTES as u64 - 1))?;
    file.write_all(b"\n")?;
    Ok(header)
}

/// Opens a backup and checks all of it.
pub(super) async fn open(path: &Path) -> Result<Opened> {
    let cannot = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let mut line = [0; HEADER_BYTES];
    let header = file.read_exact(&mut line).ok().and_then(|()| serde_json::from_slice::<Header>(&line).ok());
    let header = header.with_context(|| format!("{} is no backup of `sluice backup`", path.display()))?;
    if header.sluice_backup != FORMAT {
        bail!(
            "{} has format {}, this version knows format {FORMAT}: restore it with sluice {} or a newer one",
            path.display(),
            header.sluice_backup,
            header.version
        );
    }
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).with_context(cannot)?;
    if hex(hash) != header.sha256 {
        bail!("{} is damaged: its content does not have the checksum that it names", path.display());
    }
    file.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
    let files = (0..header.files.min(MAX_FILES)).map(|_| one(&mut file)).collect::<Result<_>>().with_context(cannot)?;
    let begin = file.stream_position()?;
    let mut stream = tokio::fs::File::from_std(file);
    snapshot::check(&mut stream).await.with_context(cannot)?;
    tokio::io::AsyncSeekExt::seek(&mut stream, SeekFrom::Start(begin)).await?;
    Ok(Opened { header, files, stream })
}

fn one(file: &mut File) -> Result<(String, Vec<u8>)> {
    let mut lengths = [0; 8];
    file.read_exact(&mut lengths)?;
    let length = |from: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| lengths[from + n]));
    let (name, content) = (length(0), length(4));
    if name.max(content) > MAX_FILE_BYTES {
        bail!("a file of keys is too large");
    }
    let (mut name, mut content) = (vec![0; name as usize], vec![0; content as usize]);
    file.read_exact(&mut name)?;
    file.read_exact(&mut content)?;
    let name = String::from_utf8(name)?;
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        bail!("{name:?} is no name of a file of keys");
    }
    Ok((name, content))
}

/// The files of a directory of keys, by name.
pub(super) fn keys(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let cannot = || format!("cannot read the keys in {}", dir.display());
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let (name, kind) = (entry.file_name().to_string_lossy().into_owned(), entry.file_type()?);
        if kind.is_file() && !name.starts_with('.') {
            all.push((name, fs::read(entry.path()).with_context(cannot)?));
        }
    }
    all.sort();
    Ok(all)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
