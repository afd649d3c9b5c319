//! `/openapi/v2` and `/openapi/v3`: documents are made when they are first asked for, off the
//! request's thread, and kept compressed, since they are large and wanted rarely. They are written
//! into the compressor part by part: whole they would take tens of megabytes.

use std::{collections::HashMap, io::Read as _, sync::Arc};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, header};
use sluice_api::{openapi, resource::Registry, status::Status};
use tokio::sync::Mutex;

use crate::{
    context::{Body, full},
    core::Core,
    documents::{is_known, tag},
    negotiate,
    request::Query,
    respond, view,
};

const JSON: &str = "application/json";
/// Version 2 as protobuf: what upstream calls it now, and what kubectl before 1.27 asks for.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const PROTOBUF_BEFORE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// Where the protobuf form is kept.
const V2_PROTOBUF: &str = "v2.pb";

/// Compressed documents by path, with the ETag they were made for. As many as there are groups and
/// versions, and two.
#[derive(Default)]
pub(crate) struct Documents(Mutex<HashMap<String, (String, Bytes)>>);

/// `below` is what follows `/openapi/`.
pub(crate) async fn answer(
    core: &Core,
    headers: &HeaderMap,
    query: &Query,
    below: &[&str],
) -> Result<Response<Body>, Status> {
    let media = media(headers, below)?;
    let registry = core.registry.load_full();
    let path = if media == PROTOBUF { V2_PROTOBUF.to_owned() } else { below.join("/") };
    let hash = match below {
        ["v2"] => all_hash(&registry),
        ["v3"] => {
            let index = view::encode(&openapi::v3_index(&registry));
            return Ok(tag(headers, index, JSON));
        }
        ["v3", "api", version] => hash(&registry, "", version),
        ["v3", "apis", group, version] => hash(&registry, group, version),
        _ => None,
    };
    let Some(hash) = hash else {
        return Ok(respond::text(404, "404 page not found\n"));
    };
    let mut response = if is_known(headers, &hash) {
        respond::typed(304, media, full(Bytes::new()))
    } else {
        let compressed = core.openapi.get(&registry, path, &hash).await?;
        document(headers, media, compressed)?
    };
    let out = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        out.insert(header::ETAG, tag);
    }
    // The index names each document with its hash: under that address it never changes.
    if query.get("hash").is_some() {
        let for_ever = HeaderValue::from_static("public, immutable");
        out.insert(header::CACHE_CONTROL, for_ever);
    }
    Ok(response)
}

/// The form that the client likes best; protobuf exists of version 2 only.
fn media(headers: &HeaderMap, below: &[&str]) -> Result<&'static str, Status> {
    let liked = negotiate::clauses(headers).into_iter().find_map(|clause| match clause.media {
        JSON | "*/*" | "application/*" => Some(JSON),
        PROTOBUF | PROTOBUF_BEFORE if below == ["v2"] => Some(PROTOBUF),
        _ => None,
    });
    liked.ok_or_else(|| Status::not_acceptable(&[JSON, PROTOBUF]))
}

fn hash(registry: &Registry, group: &str, version: &str) -> Option<String> {
    let served = registry.in_version(group, version).next().is_some();
    served.then(|| openapi::document_hash(registry, group, version))
}

/// One hash over those of all documents.
fn all_hash(registry: &Registry) -> Option<String> {
    use sha2::Digest as _;
    let mut digest = sha2::Sha256::new();
    for (group, versions) in registry.groups() {
        for version in versions {
            digest.update(openapi::document_hash(registry, group, version));
        }
    }
    Some(digest.finalize()[..8].iter().map(|b| format!("{b:02X}")).collect())
}

impl Documents {
    /// The compressed document; made by one request while others wait for it.
    async fn get(&self, registry: &Arc<Registry>, path: String, hash: &str) -> Result<Bytes, Status> {
        let mut kept = self.0.lock().await;
        if let Some((made_for, bytes)) = kept.get(&path)
            && made_for == hash
        {
            return Ok(bytes.clone());
        }
        let (registry, wanted) = (Arc::clone(registry), path.clone());
        let made = tokio::task::spawn_blocking(move || {
            let mut packed = GzEncoder::new(Vec::new(), Compression::default());
            match wanted.strip_prefix("v3/") {
                None if wanted == V2_PROTOBUF => openapi::write_v2_protobuf(&registry, &mut packed),
                None => openapi::write_v2(&registry, &mut packed),
                Some(path) => openapi::write_v3(&registry, path, &mut packed).map(drop),
            }?;
            packed.finish().map(Bytes::from)
        });
        let bytes = made.await.map_err(Status::internal)?.map_err(Status::internal)?;
        kept.insert(path, (hash.to_owned(), bytes.clone()));
        Ok(bytes)
    }
}

/// The document as it is for those who take gzip, else unpacked.
fn document(headers: &HeaderMap, media: &'static str, compressed: Bytes) -> Result<Response<Body>, Status> {
    let takes_gzip = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|v| v.split(';').next().is_some_and(|coding| coding.trim() == "gzip"));
    let mut response = if takes_gzip {
        let mut response = respond::typed(200, media, full(compressed));
        let gzip = HeaderValue::from_static("gzip");
        response.headers_mut().insert(header::CONTENT_ENCODING, gzip);
        response
    } else {
        let mut plain = Vec::new();
        GzDecoder::new(&compressed[..]).read_to_end(&mut plain).map_err(Status::internal)?;
        respond::typed(200, media, full(plain))
    };
    let vary = HeaderValue::from_static("Accept, Accept-Encoding");
    response.headers_mut().insert(header::VARY, vary);
    Ok(response)
}
