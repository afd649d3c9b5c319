//! Image archives: `docker save` and OCI layout, plain or gzipped, into containerd.
//!
//! The archive is read twice: once for its tables and small documents, once to stream the blobs that they name. Nothing is
//! unpacked to disk here and no layer is held in memory.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use tokio::runtime::Handle;

use crate::content::{Descriptor, Upload, digest_of};
use crate::images::{Images, Manifest, Origin, normalise};
use crate::{Error, ImageInfo, Result, limits};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// First reading: what is in the archive.
#[derive(Default)]
struct Contents {
    /// Files small enough to be documents and starting like JSON.
    documents: HashMap<String, Vec<u8>>,
    /// Links to the file that has the content.
    links: HashMap<String, String>,
    /// Files that start with gzip's magic.
    gzipped: BTreeSet<String>,
}

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What becomes of one image in the archive.
struct Plan {
    names: Vec<String>,
    target: Descriptor,
    manifest: Manifest,
}

/// Stores every image of the archive that has a name.
pub(crate) async fn import(images: &Arc<Images>, path: &Path) -> Result<Vec<ImageInfo>> {
    let contents = {
        let path = path.to_owned();
        blocking(move || scan(&path)).await?
    };
    let names = images
        .leased(async |lease| {
            let plans = if contents.documents.contains_key("oci-layout") {
                layout(images, &lease, path, &contents).await?
            } else {
                saved(images, &lease, path, &contents).await?
            };
            let mut names = Vec::new();
            for plan in plans {
                let config = plan.manifest.config.clone().ok_or_else(|| invalid("a manifest has no configuration"))?;
                images.unpack(&lease, &plan.manifest, &config).await?;
                for name in plan.names {
                    images.name(&name, &plan.target, Origin::Archive).await?;
                    names.push(name);
                }
            }
            Ok(names)
        })
        .await?;
    if names.is_empty() {
        return Err(invalid("no image in it has a name: save it with a tag"));
    }
    let mut infos = Vec::new();
    for name in names {
        infos.extend(images.info(&name).await?);
    }
    Ok(infos)
}

/// `docker save`: a table of layers and a configuration; the manifest is ours to write.
async fn saved(images: &Arc<Images>, lease: &str, path: &Path, contents: &Contents) -> Result<Vec<Plan>> {
    let table = contents
        .documents
        .get("manifest.json")
        .ok_or_else(|| invalid("it has neither manifest.json nor oci-layout: is it made by `docker save`?"))?;
    let table: Vec<Saved> = serde_json::from_slice(table).map_err(|error| invalid(&error.to_string()))?;
    let layers = table.iter().flat_map(|image| image.layers.iter());
    let wanted = layers.map(|layer| (contents.real(layer), None)).collect();
    let blobs = store(images, lease, path, wanted).await?;
    let mut plans = Vec::new();
    for image in table {
        let config = contents
            .documents
            .get(&contents.real(&image.config))
            .ok_or_else(|| invalid(&format!("{} is missing", image.config)))?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let name = contents.real(layer);
            let (digest, size) = blobs.get(&name).ok_or_else(|| invalid(&format!("{layer} is missing")))?;
            let gzip = if contents.gzipped.contains(&name) { ".gzip" } else { "" };
            layers.push(Descriptor {
                media_type: format!("{LAYER}{gzip}"),
                digest: digest.clone(),
                size: *size,
                ..Descriptor::default()
            });
        }
        let config = Descriptor {
            media_type: CONFIG.into(),
            digest: images.client.write_blob(lease, config, HashMap::new()).await?,
            size: config.len() as u64,
            ..Descriptor::default()
        };
        let text = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        })
        .to_string();
        let manifest = Manifest { config: Some(config), layers, manifests: Vec::new() };
        let digest = images.client.write_blob(lease, text.as_bytes(), manifest.labels()).await?;
        let target =
            Descriptor { media_type: MANIFEST.into(), digest, size: text.len() as u64, ..Descriptor::default() };
        let mut names = Vec::new();
        for tag in image.repo_tags.unwrap_or_default() {
            names.push(normalise(&tag)?.whole());
        }
        plans.push(Plan { names, target, manifest });
    }
    Ok(plans)
}

/// OCI layout: blobs by digest, an index of what they are.
async fn layout(images: &Arc<Images>, lease: &str, path: &Path, contents: &Contents) -> Result<Vec<Plan>> {
    let index: Manifest = contents.json("index.json")?;
    let mut plans = Vec::new();
    for entry in &index.manifests {
        let names = contents.names(entry)?;
        if names.is_empty() {
            continue;
        }
        let mut documents = vec![entry.digest.clone()];
        let mut manifest: Manifest = contents.json(&blob_path(&entry.digest))?;
        if manifest.is_index() {
            let chosen = manifest.choose().ok_or_else(|| invalid("it has no image for this machine"))?.digest.clone();
            manifest = contents.json(&blob_path(&chosen))?;
            documents.push(chosen);
        }
        let config = manifest.config.as_ref().ok_or_else(|| invalid("a manifest has no configuration"))?;
        let blobs = manifest.layers.iter().chain([config]);
        let wanted = blobs.map(|blob| (blob_path(&blob.digest), Some(blob.digest.clone()))).collect();
        store(images, lease, path, wanted).await?;
        // Inner documents first: a label may only point at what is there.
        for digest in documents.iter().rev() {
            let document = contents.document(&blob_path(digest))?;
            let mut parsed: Manifest = contents.json(&blob_path(digest))?;
            parsed.manifests.retain(|inner| documents.contains(&inner.digest));
            if digest_of(document) != *digest {
                return Err(invalid(&format!("{digest} is damaged")));
            }
            images.client.write_blob(lease, document, parsed.labels()).await?;
        }
        plans.push(Plan { names, target: entry.clone(), manifest });
    }
    Ok(plans)
}

/// Streams the wanted files (path → expected digest) into the content store; returns digest and size by path.
async fn store(
    images: &Arc<Images>,
    lease: &str,
    path: &Path,
    wanted: HashMap<String, Option<String>>,
) -> Result<HashMap<String, (String, u64)>> {
    let (images, lease, path) = (Arc::clone(images), lease.to_owned(), path.to_owned());
    let handle = Handle::current();
    blocking(move || {
        let mut stored = HashMap::new();
        let mut archive = open(&path)?;
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let name = clean(&entry.path().map_err(broken)?);
            let Some(expected) = wanted.get(&name) else { continue };
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let size = entry.size();
            let upload_name = format!("sluice-{lease}-{name}");
            let blob = handle.block_on(async {
                let mut upload = Upload::start(&images.client, &lease, upload_name, size, expected.clone());
                let mut chunk = vec![0; limits::CONTENT_CHUNK];
                loop {
                    let length = fill(&mut entry, &mut chunk).map_err(broken)?;
                    // An upload that ended early says why at its commit.
                    if length == 0 || upload.send(Bytes::copy_from_slice(&chunk[..length])).await.is_err() {
                        break;
                    }
                }
                upload.commit(HashMap::new()).await
            })?;
            stored.insert(name, blob);
        }
        Ok(stored)
    })
    .await
}

impl Contents {
    fn document(&self, name: &str) -> Result<&[u8]> {
        let document = self.documents.get(&self.real(name));
        document.map(Vec::as_slice).ok_or_else(|| invalid(&format!("{name} is missing")))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(self.document(name)?).map_err(|error| invalid(&format!("{name}: {error}")))
    }

    /// The file that a name leads to.
    fn real(&self, name: &str) -> String {
        let mut name = clean(Path::new(name));
        // Archives have chains of one link; anything longer is not followed for ever.
        for _ in 0..8 {
            match self.links.get(&name) {
                Some(target) => name.clone_from(target),
                None => break,
            }
        }
        name
    }

    /// Names of an entry of the index: annotations, else the tags that `docker save` gave the same configuration.
    fn names(&self, entry: &Descriptor) -> Result<Vec<String>> {
        let full = entry.annotations.get("io.containerd.image.name");
        let short = entry.annotations.get("org.opencontainers.image.ref.name");
        let named = full.or_else(|| short.filter(|name| name.contains(['/', ':'])));
        if let Some(name) = named {
            return Ok(vec![normalise(name)?.whole()]);
        }
        let Some(table) = self.documents.get("manifest.json") else { return Ok(Vec::new()) };
        let table: Vec<Saved> = serde_json::from_slice(table).map_err(|error| invalid(&error.to_string()))?;
        let manifest: Manifest = self.json(&blob_path(&entry.digest))?;
        let Some(config) = manifest.config else { return Ok(Vec::new()) };
        let same = table.into_iter().filter(|saved| saved.config == blob_path(&config.digest));
        let tags = same.flat_map(|saved| saved.repo_tags.unwrap_or_default());
        tags.map(|tag| normalise(&tag).map(|name| name.whole())).collect()
    }
}

fn scan(path: &Path) -> Result<Contents> {
    let mut contents = Contents::default();
    let mut kept = 0;
    let mut archive = open(path)?;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = clean(&entry.path().map_err(broken)?);
        if let Some(target) = entry.link_name().map_err(broken)? {
            let base = if entry.header().entry_type().is_symlink() { parent(&name) } else { PathBuf::new() };
            contents.links.insert(name, clean(&base.join(target)));
            continue;
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let size = entry.size();
        let mut start = [0; 2];
        let length = fill(&mut entry, &mut start).map_err(broken)?;
        if start == [0x1f, 0x8b] {
            contents.gzipped.insert(name);
        } else if size <= limits::IMAGE_JSON && matches!(start[0], b'{' | b'[') {
            kept += size;
            if kept > limits::ARCHIVE_JSON {
                return Err(invalid("it has too many documents"));
            }
            let mut document = start[..length].to_vec();
            entry.read_to_end(&mut document).map_err(broken)?;
            contents.documents.insert(name, document);
        }
    }
    Ok(contents)
}

fn open(path: &Path) -> Result<tar::Archive<Box<dyn Read>>> {
    let mut file = File::open(path).map_err(|error| invalid(&format!("{}: {error}", path.display())))?;
    let mut start = [0; 2];
    let length = fill(&mut file, &mut start).map_err(broken)?;
    file.seek(SeekFrom::Start(0)).map_err(broken)?;
    let file = BufReader::new(file);
    let gzipped = length == 2 && start == [0x1f, 0x8b];
    let reader: Box<dyn Read> =
        if gzipped { Box::new(flate2::read::MultiGzDecoder::new(file)) } else { Box::new(file) };
    Ok(tar::Archive::new(reader))
}

/// Reads until the buffer is full or the input ends.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// A path without `.`, `..` and a leading slash, as archives name the same file in several ways.
fn clean(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

fn parent(name: &str) -> PathBuf {
    Path::new(name).parent().map(Path::to_owned).unwrap_or_default()
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn invalid(why: &str) -> Error {
    Error::Import(why.to_owned())
}

fn broken(error: io::Error) -> Error {
    Error::Import(error.to_string())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Import(error.to_string()))?
}
