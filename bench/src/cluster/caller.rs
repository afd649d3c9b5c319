//! The client of the loads: any kubeconfig's way of identifying itself, whole answers as bytes. It reads no more of an answer
//! than a bench needs, so that the client's own work does not hide the server's.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::limits;

/// A user with connections of its own.
#[derive(Clone)]
pub(crate) struct Caller(Client);

/// What a refusal says.
#[derive(Deserialize)]
struct Status {
    message: String,
}

impl Caller {
    pub(crate) fn new(config: &kube::Config) -> Result<Self> {
        Ok(Self(Client::try_from(config.clone())?))
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Bytes> {
        self.call(Method::GET, path, "", Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Bytes> {
        self.call(Method::POST, path, "application/json", serde_json::to_vec(object)?.into()).await
    }

    pub(crate) async fn merge(&self, path: &str, patch: &Value) -> Result<Bytes> {
        self.call(Method::PATCH, path, "application/merge-patch+json", serde_json::to_vec(patch)?.into()).await
    }

    /// One of the collections that a bench may have made; whatever is not there is as good as deleted.
    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        match self.answer(Method::DELETE, path, "", Bytes::new()).await? {
            (StatusCode::NOT_FOUND, _) => Ok(()),
            (status, body) => refused(status, &body, &Method::DELETE, path).map(drop),
        }
    }

    /// The same of a collection; false where the server deletes its objects one by one only.
    pub(crate) async fn delete_all(&self, path: &str) -> Result<bool> {
        match self.answer(Method::DELETE, path, "", Bytes::new()).await? {
            (StatusCode::METHOD_NOT_ALLOWED, _) => Ok(false),
            (StatusCode::NOT_FOUND, _) => Ok(true),
            (status, body) => refused(status, &body, &Method::DELETE, path).map(|()| true),
        }
    }

    /// A request and its whole answer; an answer that refuses is an error.
    pub(crate) async fn call(&self, method: Method, path: &str, content: &str, body: Bytes) -> Result<Bytes> {
        let (status, answer) = self.answer(method.clone(), path, content, body).await?;
        refused(status, &answer, &method, path)?;
        Ok(answer)
    }

    pub(crate) async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        serde_json::from_slice(&self.get(path).await?).with_context(|| format!("the answer to GET {path}"))
    }

    /// What is at a path, if anything is.
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        match self.answer(Method::GET, path, "", Bytes::new()).await? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => {
                refused(status, &body, &Method::GET, path)?;
                serde_json::from_slice(&body).map(Some).with_context(|| format!("the answer to GET {path}"))
            }
        }
    }

    /// The pieces of a long answer as they come; returns when it has begun.
    pub(crate) async fn stream(&self, path: &str) -> Result<impl Stream<Item = Result<Bytes>> + use<>> {
        let response = self.send(Method::GET, path, "", Bytes::new()).await?;
        let status = response.status();
        let body = response.into_body();
        if !status.is_success() {
            let said = body.collect_bytes().await?;
            return refused(status, &said, &Method::GET, path).and_then(|()| bail!("GET {path}: {status}"));
        }
        Ok(body.into_data_stream().map(|piece| piece.context("a watch broke off")))
    }

    pub(super) async fn version(&self) -> Result<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            git_version: String,
        }
        Ok(self.read::<Version>("/version").await.context("cannot ask the server for its version")?.git_version)
    }

    async fn answer(&self, method: Method, path: &str, content: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let whole = async {
            let response = self.send(method.clone(), path, content, body).await?;
            let status = response.status();
            Ok((status, response.into_body().collect_bytes().await?))
        };
        within(limits::LOAD_REQUEST, whole).await.with_context(|| format!("{method} {path}"))
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: Bytes) -> Result<Response<Body>> {
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header(CONTENT_TYPE, content);
        }
        Ok(self.0.send(request.body(Body::from(body))?).await?)
    }
}

async fn within<T>(time: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(time, work).await.unwrap_or_else(|_| bail!("no answer in {} s", time.as_secs()))
}

fn refused(status: StatusCode, body: &[u8], method: &Method, path: &str) -> Result<()> {
    if status.is_success() {
        return Ok(());
    }
    let said = serde_json::from_slice::<Status>(body).map(|status| status.message);
    let said = said.unwrap_or_else(|_| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned());
    Err(anyhow!("{method} {path}: {status}: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let check = |status, body: &str, expected: &str| {
            let error = refused(status, body.as_bytes(), &Method::GET, "/x").unwrap_err().to_string();
            assert_eq!(error, expected);
        };
        check(StatusCode::CONFLICT, r#"{"message":"it changed"}"#, "GET /x: 409 Conflict: it changed");
        check(StatusCode::BAD_GATEWAY, "<html>", "GET /x: 502 Bad Gateway: <html>");
        assert!(refused(StatusCode::CREATED, b"{}", &Method::POST, "/x").is_ok());
    }
}
