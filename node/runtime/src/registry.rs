//! Images from registries: manifest, configuration, layers, streamed into containerd's content store.
//!
//! Blobs that are there are not fetched again; one that was interrupted goes on where it stopped. Every digest is checked by
//! containerd at the commit, so nothing unchecked ever becomes visible.

use std::collections::HashMap;
use std::net::IpAddr;

use futures::{StreamExt, TryStreamExt};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use parking_lot::Mutex;

use crate::content::{Descriptor, Upload, digest_of};
use crate::images::{Images, Manifest, Origin, normalise};
use crate::turns::Turns;
use crate::{Credentials, Error, Progress, Result, limits};

const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One pull with one set of credentials.
struct Pull<'a, P> {
    images: &'a Images,
    turns: &'a Turns,
    registry: Client,
    reference: Reference,
    lease: String,
    progress: &'a P,
    state: Mutex<Progress>,
}

/// See [`crate::Runtime::pull`].
pub(crate) async fn pull(
    images: &Images,
    turns: &Turns,
    plain_http: &[String],
    name: &str,
    credentials: &[Credentials],
    progress: &(impl Fn(Progress) + Send + Sync),
) -> Result<()> {
    // More than one TLS provider may be compiled in; installed already is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let reference = normalise(name)?;
    let ways = credentials.iter().map(auth).chain([RegistryAuth::Anonymous]);
    let mut first = None;
    for auth in ways {
        let registry = connect(&reference, plain_http);
        let tried = images.leased(|lease| {
            let (reference, registry) = (reference.clone(), registry);
            async move {
                let state = Mutex::default();
                let pull = Pull { images, turns, registry, reference, lease, progress, state };
                pull.run(&auth).await
            }
        });
        match tried.await {
            // Others may be let in; the first refusal says most.
            Err(error @ (Error::ImageUnauthorized { .. } | Error::ImageNotFound { .. })) => {
                first.get_or_insert(error);
            }
            other => return other,
        }
    }
    Err(first.unwrap_or_else(|| Error::ImageNotFound { image: reference.whole() }))
}

fn auth(credentials: &Credentials) -> RegistryAuth {
    match credentials {
        Credentials::Basic { username, password } => RegistryAuth::Basic(username.clone(), password.clone()),
        Credentials::Bearer(token) => RegistryAuth::Bearer(token.clone()),
    }
}

fn connect(reference: &Reference, plain_http: &[String]) -> Client {
    let registry = reference.resolve_registry();
    let plain = is_loopback(registry) || plain_http.iter().any(|plain| plain == registry);
    Client::new(ClientConfig {
        protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(limits::REGISTRY_CONNECT),
        read_timeout: Some(limits::REGISTRY_SILENCE),
        user_agent: concat!("sluice/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

/// `localhost`, `127.0.0.0/8`, `[::1]`, each with or without a port.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl<P: Fn(Progress) + Send + Sync> Pull<'_, P> {
    async fn run(&self, auth: &RegistryAuth) -> Result<()> {
        let client = &self.images.client;
        let (top, top_blob) = self.manifest(&self.reference, auth).await?;
        let mut manifest = self.parse(&top_blob)?;
        let mut inner = None;
        if manifest.is_index() {
            let chosen = manifest.choose().ok_or_else(|| {
                self.failed("no match for platform in manifest: the image is not made for this machine")
            })?;
            let reference = self.reference.clone_with_digest(chosen.digest.clone());
            let (_, blob) = self.manifest(&reference, auth).await?;
            if digest_of(&blob) != chosen.digest {
                return Err(self.failed("the registry's manifest does not have the digest its index says"));
            }
            // The index keeps alive only what is fetched.
            manifest.manifests = vec![chosen.clone()];
            inner = Some(self.parse(&blob)?);
            let (index, own) = (manifest, inner.as_ref().map(Manifest::labels).unwrap_or_default());
            client.write_blob(&self.lease, &blob, own).await?;
            client.write_blob(&self.lease, &top_blob, index.labels()).await?;
            manifest = inner.clone().unwrap_or_default();
        }
        let config = manifest
            .config
            .clone()
            .filter(|_| !manifest.layers.is_empty())
            .ok_or_else(|| self.failed("the manifest is not that of a container image"))?;
        self.blobs(&manifest, &config).await?;
        if inner.is_none() {
            client.write_blob(&self.lease, &top_blob, manifest.labels()).await?;
        }
        self.images.unpack(&self.lease, &manifest, &config).await?;
        self.images.name(&self.reference.whole(), &top, Origin::Registry).await?;
        let repository = format!("{}/{}", self.reference.registry(), self.reference.repository());
        self.images.name(&format!("{repository}@{}", top.digest), &top, Origin::Registry).await
    }

    async fn manifest(&self, reference: &Reference, auth: &RegistryAuth) -> Result<(Descriptor, Vec<u8>)> {
        let answer = self.registry.pull_manifest_raw(reference, auth, &ACCEPTED).await;
        let (blob, digest) = answer.map_err(|error| self.refused(error))?;
        if blob.len() as u64 > limits::IMAGE_JSON {
            return Err(self.failed("its manifest is too large"));
        }
        let typed: serde_json::Value =
            serde_json::from_slice(&blob).map_err(|error| self.failed(&error.to_string()))?;
        let kind = match (typed["mediaType"].as_str(), typed["manifests"].is_array()) {
            (Some(kind), _) => kind.to_owned(),
            (None, true) => ACCEPTED[0].to_owned(),
            (None, false) => ACCEPTED[2].to_owned(),
        };
        // Ours, not the registry's word: it names the content that is stored.
        let own = digest_of(&blob);
        if digest.starts_with("sha256:") && digest != own {
            return Err(self.failed("the registry's manifest does not have the digest it says"));
        }
        let size = blob.len() as u64;
        Ok((Descriptor { media_type: kind, digest: own, size, ..Descriptor::default() }, blob.to_vec()))
    }

    fn parse(&self, blob: &[u8]) -> Result<Manifest> {
        serde_json::from_slice(blob).map_err(|error| self.failed(&format!("its manifest: {error}")))
    }

    /// Fetches what is missing, a few at a time.
    async fn blobs(&self, manifest: &Manifest, config: &Descriptor) -> Result<()> {
        let mut wanted: Vec<&Descriptor> = Vec::new();
        for blob in manifest.layers.iter().chain([config]) {
            if wanted.iter().all(|other| other.digest != blob.digest) {
                wanted.push(blob);
            }
        }
        self.report(|progress| {
            progress.layers = wanted.len();
            progress.bytes = wanted.iter().map(|blob| blob.size).sum();
        });
        futures::stream::iter(wanted.into_iter().map(Ok))
            .try_for_each_concurrent(limits::PULL_PARALLEL, |blob| self.blob(blob))
            .await
    }

    async fn blob(&self, blob: &Descriptor) -> Result<()> {
        // Another pull may be writing the same blob.
        let _turn = self.turns.take(&blob.digest).await;
        if !self.images.client.has_blob(&blob.digest).await? {
            let mut attempt = 1;
            // A connection that breaks costs what was on its way, not the layer.
            while let Err(error) = self.fetch(blob).await {
                if attempt == limits::PULL_ATTEMPTS || !matches!(error, Error::RegistryUnreachable { .. }) {
                    return Err(error);
                }
                tracing::debug!(digest = blob.digest, %error, attempt, "download interrupted");
                attempt += 1;
            }
        }
        self.report(|progress| {
            progress.layers_done += 1;
            progress.bytes_done += blob.size;
        });
        Ok(())
    }

    async fn fetch(&self, blob: &Descriptor) -> Result<()> {
        let client = &self.images.client;
        let name = format!("sluice-{}", blob.digest);
        let mut offset = client.upload_offset(&name).await?;
        if offset > blob.size {
            client.abort_upload(&name).await;
            offset = 0;
        }
        let mut stream = if offset == 0 {
            let answer = self.registry.pull_blob_stream(&self.reference, blob.digest.as_str()).await;
            answer.map_err(|error| self.refused(error))?
        } else {
            let answer =
                self.registry.pull_blob_stream_partial(&self.reference, blob.digest.as_str(), offset, None).await;
            match answer.map_err(|error| self.refused(error))? {
                BlobResponse::Partial(stream) => stream,
                BlobResponse::Full(stream) => {
                    client.abort_upload(&name).await;
                    offset = 0;
                    stream
                }
            }
        };
        let mut upload = Upload::start(client, &self.lease, name, blob.size, Some(blob.digest.clone())).from(offset);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| self.interrupted(&error))?;
            for part in chunk.chunks(limits::CONTENT_CHUNK) {
                if upload.send(chunk.slice_ref(part)).await.is_err() {
                    return upload.commit(HashMap::new()).await.map(drop);
                }
            }
        }
        upload.commit(HashMap::new()).await.map(drop).map_err(|error| self.failed(&error.to_string()))
    }

    fn report(&self, change: impl FnOnce(&mut Progress)) {
        let now = {
            let mut state = self.state.lock();
            change(&mut state);
            *state
        };
        (self.progress)(now);
    }

    fn failed(&self, reason: &str) -> Error {
        Error::Pull { image: self.reference.whole(), reason: reason.to_owned() }
    }

    /// A body that broke off; a digest that is wrong will not get better by asking again.
    fn interrupted(&self, error: &std::io::Error) -> Error {
        let text = chain(error);
        if text.contains("digest") {
            return self.failed(&text);
        }
        Error::RegistryUnreachable { image: self.reference.whole(), reason: text }
    }

    fn refused(&self, error: OciDistributionError) -> Error {
        use OciDistributionError as Oci;
        let image = self.reference.whole();
        match error {
            Oci::ImageManifestNotFoundError(_) | Oci::ServerError { code: 404, .. } => Error::ImageNotFound { image },
            Oci::UnauthorizedError { .. } => {
                Error::ImageUnauthorized { image, reason: "authorization failed: no basic auth credentials".into() }
            }
            Oci::AuthenticationFailure(reason) => Error::ImageUnauthorized { image, reason: reason.trim().to_owned() },
            Oci::ServerError { code: 401 | 403, message, .. } => Error::ImageUnauthorized { image, reason: message },
            Oci::RegistryError { envelope, .. } => {
                let said = |code: OciErrorCode| envelope.errors.iter().any(|error| error.code == code);
                let reason = envelope.to_string();
                if said(OciErrorCode::ManifestUnknown) || said(OciErrorCode::NameUnknown) {
                    Error::ImageNotFound { image }
                } else if said(OciErrorCode::Unauthorized) || said(OciErrorCode::Denied) {
                    Error::ImageUnauthorized { image, reason }
                } else {
                    Error::Pull { image, reason }
                }
            }
            Oci::RequestError(error) => Error::RegistryUnreachable { image, reason: chain(&error) },
            other => Error::Pull { image, reason: other.to_string() },
        }
    }
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_spoken_to_without_tls() {
        for (registry, want) in [
            ("localhost:5000", true),
            ("localhost", true),
            ("127.0.0.1:5000", true),
            ("127.8.9.1", true),
            ("[::1]:5000", true),
            ("registry.example:5000", false),
            ("128.0.0.1:5000", false),
            ("localhost.example", false),
        ] {
            assert_eq!(is_loopback(registry), want, "{registry}");
        }
    }
}
