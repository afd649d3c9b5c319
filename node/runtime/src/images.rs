//! Present images: records, configurations, unpacked layers. Data comes from containerd alone.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, CreateImageRequest, CreateRequest, DeleteImageRequest, DeleteRequest, GetImageRequest, Image,
    ListImagesRequest, UpdateImageRequest,
};
use oci_client::Reference;
use parking_lot::Mutex;
use serde::Deserialize;

use crate::client::Client;
use crate::content::{Descriptor, Labels, digest_of};
use crate::error::or_gone;
use crate::{Error, ImageConfig, ImageInfo, Result, labels, limits, reference};

/// The images of one containerd namespace.
pub(crate) struct Images {
    pub(crate) client: Client,
    pub(crate) snapshotter: String,
    cache: Mutex<HashMap<String, Arc<Unpacked>>>,
}

/// An image as far as containers need it. Content is immutable, so it is cached by digest.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) target: Descriptor,
    pub(crate) config_digest: String,
    pub(crate) config: ImageConfig,
    /// Name of the snapshot with all layers applied.
    pub(crate) chain_id: String,
    pub(crate) size: u64,
}

/// A manifest or an index: one has `layers`, the other `manifests`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) config: Option<Descriptor>,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<HashMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Where an image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It can be had from there again.
    Registry,
    Archive,
}

/// Completes a name as every client does: `nginx` is `docker.io/library/nginx:latest`.
pub(crate) fn normalise(name: &str) -> Result<Reference> {
    reference::parse(name)
        .map_err(|reason| Error::InvalidImageName { image: name.to_owned(), reason: reason.to_owned() })
}

impl ImageConfig {
    /// Reads an image's configuration file.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let file: ConfigFile = serde_json::from_slice(json)?;
        let run = file.config.unwrap_or_default();
        let mut volumes: Vec<_> = run.volumes.unwrap_or_default().into_keys().collect();
        volumes.sort();
        Ok(Self {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            volumes,
            diff_ids: file.rootfs.diff_ids,
        })
    }
}

impl Manifest {
    /// Whether this chooses between platforms.
    pub(crate) fn is_index(&self) -> bool {
        self.config.is_none() && !self.manifests.is_empty()
    }

    /// The manifest for this machine; one without a platform will do.
    pub(crate) fn choose(&self) -> Option<&Descriptor> {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let fits = |platform: &crate::content::Platform| platform.os == "linux" && platform.architecture == arch;
        let exact = self.manifests.iter().find(|entry| entry.platform.as_ref().is_some_and(fits));
        exact.or_else(|| self.manifests.iter().find(|entry| entry.platform.is_none()))
    }

    /// What the manifest's blob keeps alive.
    pub(crate) fn labels(&self) -> Labels {
        let config = self.config.iter().map(|config| ("config".to_owned(), config));
        let layers = self.layers.iter().enumerate().map(|(at, layer)| (format!("l.{at}"), layer));
        let manifests = self.manifests.iter().enumerate().map(|(at, entry)| (format!("m.{at}"), entry));
        config
            .chain(layers)
            .chain(manifests)
            .map(|(part, blob)| (format!("containerd.io/gc.ref.content.{part}"), blob.digest.clone()))
            .collect()
    }
}

/// Name of the snapshot of the first `n` layers, for every `n` (OCI image specification, "Layer ChainID").
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()),
            None => diff_id.clone(),
        };
        chain.push(next);
    }
    chain
}

impl Images {
    pub(crate) fn new(client: Client, snapshotter: String) -> Self {
        Self { client, snapshotter, cache: Mutex::default() }
    }

    /// The present image of this name, or [`Error::ImageMissing`].
    pub(crate) async fn resolve(&self, name: &str) -> Result<Arc<Unpacked>> {
        let missing = || Error::ImageMissing(name.to_owned());
        if let Some(id) = as_image_id(name) {
            let image = self.all().await?.into_iter().find(|(_, image)| image.config_digest == id);
            return image.map(|(_, image)| image).ok_or_else(missing);
        }
        let full = normalise(name)?.whole();
        let request = self.client.call(GetImageRequest { name: full.clone() });
        let image = match self.client.images().get(request).await {
            Ok(answer) => answer.into_inner().image.and_then(|image| image.target).ok_or_else(missing)?,
            Err(status) if status.code() == tonic::Code::NotFound => return Err(missing()),
            Err(status) => return Err(self.client.failed(&full)(status)),
        };
        self.read(image.into()).await
    }

    /// Every image record with its image.
    pub(crate) async fn all(&self) -> Result<Vec<(String, Arc<Unpacked>)>> {
        self.records(Vec::new()).await
    }

    /// The image records that fit one of containerd's filters, with their images; records that are not whole (or for
    /// other machines) are left out.
    async fn records(&self, filters: Vec<String>) -> Result<Vec<(String, Arc<Unpacked>)>> {
        let request = self.client.call(ListImagesRequest { filters });
        let answer = self.client.images().list(request).await.map_err(self.client.failed("images"))?;
        let mut images = Vec::new();
        for record in answer.into_inner().images {
            let Some(target) = record.target else { continue };
            match self.read(target.into()).await {
                Ok(image) => images.push((record.name, image)),
                Err(error) => tracing::debug!(image = record.name, %error, "not usable here"),
            }
        }
        Ok(images)
    }

    /// One image with all its names.
    pub(crate) async fn info(&self, name: &str) -> Result<Option<ImageInfo>> {
        let image = match self.resolve(name).await {
            Ok(image) => image,
            Err(Error::ImageMissing(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        self.named(name, &image).await.map(Some)
    }

    /// What is told of an image that was found by this name.
    pub(crate) async fn named(&self, name: &str, image: &Unpacked) -> Result<ImageInfo> {
        let names = match as_image_id(name) {
            None => vec![normalise(name)?.whole()],
            Some(_) => {
                let all = self.all().await?.into_iter();
                all.filter(|(_, other)| other.config_digest == image.config_digest).map(|(name, _)| name).collect()
            }
        };
        Ok(image.info(names))
    }

    /// Every image with all its names, sorted by the first name.
    pub(crate) async fn infos(&self) -> Result<Vec<ImageInfo>> {
        self.infos_of(Vec::new()).await
    }

    /// The images that came from a registry, with the names under which they came.
    pub(crate) async fn pulled(&self) -> Result<Vec<ImageInfo>> {
        self.infos_of(vec![format!("labels.\"{}\"", labels::PULLED)]).await
    }

    async fn infos_of(&self, filters: Vec<String>) -> Result<Vec<ImageInfo>> {
        let mut images: HashMap<String, (Arc<Unpacked>, Vec<String>)> = HashMap::new();
        for (name, image) in self.records(filters).await? {
            images.entry(image.config_digest.clone()).or_insert((image, Vec::new())).1.push(name);
        }
        let mut infos: Vec<_> = images.into_values().map(|(image, names)| image.info(names)).collect();
        infos.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(infos)
    }

    /// Makes every layer a snapshot and points the configuration's blob at the last, so that it is kept.
    pub(crate) async fn unpack(&self, lease: &str, manifest: &Manifest, config: &Descriptor) -> Result<()> {
        let file = self.client.read_blob(&config.digest).await?;
        let parsed = ImageConfig::parse(&file)
            .map_err(|error| Error::Containerd(format!("image configuration {}: {error}", config.digest)))?;
        if parsed.diff_ids.len() != manifest.layers.len() {
            return Err(Error::Containerd(format!(
                "the image has {} layers, its configuration says {}",
                manifest.layers.len(),
                parsed.diff_ids.len()
            )));
        }
        let chain = chain_ids(&parsed.diff_ids);
        for (at, layer) in manifest.layers.iter().enumerate() {
            let parent = if at == 0 { "" } else { &chain[at - 1] };
            self.apply(lease, layer, &parsed.diff_ids[at], parent, &chain[at]).await?;
        }
        let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        let last = chain.last().cloned().unwrap_or_default();
        self.client.label_blob(&config.digest, HashMap::from([(label, last)])).await
    }

    async fn apply(&self, lease: &str, layer: &Descriptor, diff_id: &str, parent: &str, chain_id: &str) -> Result<()> {
        let client = &self.client;
        let stat = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: chain_id.to_owned() };
        if client.snapshots().stat(client.call(stat)).await.is_ok() {
            return Ok(());
        }
        let key = format!("extract-{:016x} {chain_id}", rand::random::<u64>());
        let prepare = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let prepared = client.snapshots().prepare(client.leased(lease, prepare)).await;
        let mounts = prepared.map_err(client.failed(chain_id))?.into_inner().mounts;
        let extracted = self.extract(lease, layer, diff_id, mounts).await;
        let finished = match extracted {
            Ok(()) => {
                let commit = CommitSnapshotRequest {
                    snapshotter: self.snapshotter.clone(),
                    name: chain_id.to_owned(),
                    key: key.clone(),
                    labels: HashMap::new(),
                };
                let committed = client.snapshots().commit(client.leased(lease, commit)).await;
                committed.map(drop).map_err(client.failed(chain_id))
            }
            Err(error) => Err(error),
        };
        if finished.is_err() {
            self.remove_snapshot(&key).await?;
        }
        match finished {
            // Somebody else unpacked the same layer meanwhile.
            Err(Error::AlreadyExists(_)) => Ok(()),
            other => other,
        }
    }

    async fn extract(
        &self,
        lease: &str,
        layer: &Descriptor,
        diff_id: &str,
        mounts: Vec<containerd_client::types::Mount>,
    ) -> Result<()> {
        let request = ApplyRequest { diff: Some(layer.into()), mounts, ..ApplyRequest::default() };
        let answer = self.client.diff().apply(self.client.leased(lease, request)).await;
        let applied = answer.map_err(self.client.failed(&layer.digest))?.into_inner().applied;
        let got = applied.map(|applied| applied.digest).unwrap_or_default();
        if got == diff_id {
            Ok(())
        } else {
            Err(Error::Containerd(format!("layer {}: its content is {got}, not {diff_id}", layer.digest)))
        }
    }

    pub(crate) async fn remove_snapshot(&self, key: &str) -> Result<()> {
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let answer = self.client.snapshots().remove(self.client.call(request)).await;
        or_gone(answer.map(drop).map_err(self.client.failed(key)))
    }

    /// Points a name at an image.
    pub(crate) async fn name(&self, name: &str, target: &Descriptor, origin: Origin) -> Result<()> {
        let labels = match origin {
            Origin::Registry => HashMap::from([(labels::PULLED.to_owned(), "true".to_owned())]),
            Origin::Archive => HashMap::new(),
        };
        let image = Some(Image { name: name.to_owned(), target: Some(target.into()), labels, ..Image::default() });
        let create = CreateImageRequest { image: image.clone(), source_date_epoch: None };
        match self.client.images().create(self.client.call(create)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                let update = UpdateImageRequest { image, ..UpdateImageRequest::default() };
                let answer = self.client.images().update(self.client.call(update)).await;
                answer.map(drop).map_err(self.client.failed(name))
            }
            Err(status) => Err(self.client.failed(name)(status)),
        }
    }

    /// Removes a name.
    pub(crate) async fn unname(&self, name: &str) -> Result<()> {
        let request = DeleteImageRequest { name: normalise(name)?.whole(), ..DeleteImageRequest::default() };
        let answer = self.client.images().delete(self.client.call(request)).await;
        or_gone(answer.map(drop).map_err(self.client.failed(name)))
    }

    /// Runs something whose new content must not be collected before it is referenced.
    pub(crate) async fn leased<T, F: Future<Output = Result<T>>>(&self, work: impl FnOnce(String) -> F) -> Result<T> {
        let id = format!("sluice-{:016x}", rand::random::<u64>());
        let expires = jiff::Timestamp::now() + limits::LEASE;
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]);
        let create = self.client.call(CreateRequest { id: id.clone(), labels });
        self.client.leases().create(create).await.map_err(self.client.failed("lease"))?;
        let done = work(id.clone()).await;
        let delete = self.client.call(DeleteRequest { id: id.clone(), sync: false });
        if let Err(status) = self.client.leases().delete(delete).await {
            tracing::debug!(lease = id, %status, "a lease is left to expire");
        }
        done
    }

    async fn read(&self, target: Descriptor) -> Result<Arc<Unpacked>> {
        if let Some(image) = self.cache.lock().get(&target.digest) {
            return Ok(Arc::clone(image));
        }
        let invalid = |what: &str, error: &dyn std::fmt::Display| Error::Containerd(format!("{what}: {error}"));
        let mut blob = self.client.read_blob(&target.digest).await?;
        let mut manifest: Manifest = serde_json::from_slice(&blob).map_err(|error| invalid(&target.digest, &error))?;
        if manifest.is_index() {
            let chosen = manifest.choose().ok_or_else(|| invalid(&target.digest, &"no manifest for this machine"))?;
            blob = self.client.read_blob(&chosen.digest).await?;
            manifest = serde_json::from_slice(&blob).map_err(|error| invalid(&target.digest, &error))?;
        }
        let descriptor = manifest.config.as_ref().ok_or_else(|| invalid(&target.digest, &"no configuration"))?;
        let file = self.client.read_blob(&descriptor.digest).await?;
        let config = ImageConfig::parse(&file).map_err(|error| invalid(&descriptor.digest, &error))?;
        let image = Arc::new(Unpacked {
            chain_id: chain_ids(&config.diff_ids).pop().unwrap_or_default(),
            config_digest: descriptor.digest.clone(),
            size: manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + descriptor.size,
            config,
            target,
        });
        let mut cache = self.cache.lock();
        if cache.len() >= limits::IMAGE_CACHE {
            cache.clear();
        }
        cache.insert(image.target.digest.clone(), Arc::clone(&image));
        Ok(image)
    }
}

impl Unpacked {
    fn info(&self, mut names: Vec<String>) -> ImageInfo {
        names.sort();
        let repository = names.first().and_then(|name| Reference::try_from(name.as_str()).ok());
        let repo_digest = repository.map_or_else(
            || self.target.digest.clone(),
            |name| format!("{}/{}@{}", name.registry(), name.repository(), self.target.digest),
        );
        ImageInfo {
            names,
            id: self.config_digest.clone(),
            digest: self.target.digest.clone(),
            repo_digest,
            size: self.size,
            config: self.config.clone(),
        }
    }
}

/// `sha256:<64 hex>` or the 64 alone name an image by its configuration.
fn as_image_id(name: &str) -> Option<String> {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| format!("sha256:{hex}"))
}
