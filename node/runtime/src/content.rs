//! Blobs in containerd's content store: streamed in with their digest checked, small ones read back whole.

use std::collections::HashMap;

use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, StatusRequest, UpdateRequest, WriteAction, WriteContentRequest,
};
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt};
use prost_types::FieldMask;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::{Error, Result, limits};

/// Labels of a blob; `containerd.io/gc.ref.*` say what it keeps alive.
pub(crate) type Labels = HashMap<String, String>;

/// Where a blob is: what manifests hold.
#[derive(Clone, Debug, Default, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub(crate) annotations: HashMap<String, String>,
}

/// What a manifest in an index is for.
#[derive(Clone, Debug, Default, Deserialize, serde::Serialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
}

impl From<&Descriptor> for containerd_client::types::Descriptor {
    fn from(from: &Descriptor) -> Self {
        Self {
            media_type: from.media_type.clone(),
            digest: from.digest.clone(),
            size: from.size.cast_signed(),
            annotations: HashMap::new(),
        }
    }
}

impl From<containerd_client::types::Descriptor> for Descriptor {
    fn from(from: containerd_client::types::Descriptor) -> Self {
        Self {
            media_type: from.media_type,
            digest: from.digest,
            size: from.size.max(0).cast_unsigned(),
            ..Self::default()
        }
    }
}

/// `sha256:<hex>` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    hex_digest(&Sha256::digest(bytes))
}

pub(crate) fn hex_digest(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

impl Client {
    /// Whether the blob is there, and whole.
    pub(crate) async fn has_blob(&self, digest: &str) -> Result<bool> {
        let request = self.call(InfoRequest { digest: digest.to_owned() });
        match self.content().info(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
            Err(status) => Err(self.failed(digest)(status)),
        }
    }

    /// How much of an unfinished upload is there already.
    pub(crate) async fn upload_offset(&self, name: &str) -> Result<u64> {
        let request = self.call(StatusRequest { r#ref: name.to_owned() });
        match self.content().status(request).await {
            Ok(answer) => Ok(answer.into_inner().status.unwrap_or_default().offset.max(0).cast_unsigned()),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(0),
            Err(status) => Err(self.failed(name)(status)),
        }
    }

    /// Reads a small blob (manifest, configuration).
    pub(crate) async fn read_blob(&self, digest: &str) -> Result<Vec<u8>> {
        let limit = limits::IMAGE_JSON.cast_signed();
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut parts = self.content().read(self.call(request)).await.map_err(self.failed(digest))?.into_inner();
        let mut blob = Vec::new();
        while let Some(part) = parts.message().await.map_err(self.failed(digest))? {
            blob.extend_from_slice(&part.data);
            if blob.len() as i64 > limit {
                return Err(Error::Containerd(format!("{digest} is larger than {limit} bytes")));
            }
        }
        Ok(blob)
    }

    /// Stores a small blob; present is fine, the labels are then added to it.
    pub(crate) async fn write_blob(&self, lease: &str, blob: &[u8], labels: Labels) -> Result<String> {
        let digest = digest_of(blob);
        let name = format!("sluice-{digest}");
        let mut upload = Upload::start(self, lease, name, blob.len() as u64, Some(digest.clone()));
        if upload.send(Bytes::copy_from_slice(blob)).await.is_ok() {
            upload.commit(labels).await?;
        } else {
            upload.present(labels).await?;
        }
        Ok(digest)
    }

    /// Adds labels to a blob.
    pub(crate) async fn label_blob(&self, digest: &str, labels: Labels) -> Result<()> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_owned(), labels, ..Info::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        self.content().update(self.call(request)).await.map_err(self.failed(digest))?;
        Ok(())
    }

    /// Drops what was written under this name and never committed.
    pub(crate) async fn abort_upload(&self, name: &str) {
        let request = AbortRequest { r#ref: name.to_owned() };
        if let Err(status) = self.content().abort(self.call(request)).await
            && status.code() != tonic::Code::NotFound
        {
            tracing::debug!(name, %status, "an unfinished upload stays in the content store");
        }
    }
}

/// A blob on its way into the content store.
pub(crate) struct Upload {
    client: Client,
    name: String,
    total: u64,
    expected: Option<String>,
    offset: u64,
    hash: Sha256,
    messages: mpsc::Sender<WriteContentRequest>,
    answers: JoinHandle<Result<(), tonic::Status>>,
}

impl Upload {
    /// `total` and `expected` are checked by containerd at the commit (0 and `None`: not known).
    pub(crate) fn start(client: &Client, lease: &str, name: String, total: u64, expected: Option<String>) -> Self {
        let (messages, queue) = mpsc::channel::<WriteContentRequest>(2);
        let request = client.leased(lease, queue);
        let mut content = client.content();
        let answers = tokio::spawn(async move {
            let mut answers = content.write(request).await?.into_inner();
            while let Some(answer) = answers.next().await {
                answer?;
            }
            Ok(())
        });
        Self { client: client.clone(), name, total, expected, offset: 0, hash: Sha256::new(), messages, answers }
    }

    /// Goes on where an earlier upload of this name stopped; the digest is then checked by containerd alone.
    pub(crate) fn from(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Sends the next bytes; an error says that containerd has ended the upload: ask [`Upload::commit`] why.
    pub(crate) async fn send(&mut self, data: Bytes) -> Result<(), mpsc::SendError> {
        self.hash.update(&data);
        let length = data.len() as u64;
        let mut message = self.message(WriteAction::Write);
        message.data = data.to_vec();
        self.messages.send(message).await?;
        self.offset += length;
        Ok(())
    }

    /// Makes the blob visible; returns its digest and size. A blob that was there already is fine.
    pub(crate) async fn commit(mut self, labels: Labels) -> Result<(String, u64)> {
        let digest = hex_digest(&self.hash.clone().finalize());
        let mut message = self.message(WriteAction::Commit);
        message.expected = self.expected.clone().unwrap_or_else(|| digest.clone());
        message.total = if self.total == 0 { self.offset } else { self.total }.cast_signed();
        message.labels = labels.clone();
        // A refusal is in the answers.
        let _ = self.messages.send(message).await;
        let size = self.offset;
        self.finish(&digest, labels).await?;
        Ok((digest, size))
    }

    /// For a blob that containerd said it has: checks that, adds the labels.
    async fn present(self, labels: Labels) -> Result<()> {
        let digest = self.expected.clone().unwrap_or_default();
        self.finish(&digest, labels).await
    }

    async fn finish(self, digest: &str, labels: Labels) -> Result<()> {
        drop(self.messages);
        let answer = self.answers.await.map_err(|error| Error::Containerd(error.to_string()))?;
        match answer {
            Ok(()) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => self.client.label_blob(digest, labels).await,
            Err(status) => {
                self.client.abort_upload(&self.name).await;
                Err(self.client.failed(digest)(status))
            }
        }
    }

    fn message(&self, action: WriteAction) -> WriteContentRequest {
        WriteContentRequest {
            action: action.into(),
            r#ref: self.name.clone(),
            total: self.total.cast_signed(),
            expected: self.expected.clone().unwrap_or_default(),
            offset: self.offset.cast_signed(),
            ..WriteContentRequest::default()
        }
    }
}
