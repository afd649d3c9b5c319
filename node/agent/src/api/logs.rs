//! `/containerLogs`: a container's log as `kubectl logs` shows it.

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use sluice_runtime::logs::{LogOptions, LogStream, read};

use super::exec::view;
use super::reply::{Reply, error};
use super::{Shared, flag, query};
use crate::dispatch::Workers;

/// Streams the log.
pub(super) fn serve(shared: &Arc<Shared>, namespace: &str, pod: &str, container: &str, text: &str) -> Response<Reply> {
    let options = match options(text, Timestamp::now()) {
        Ok(options) => options,
        Err(message) => return error(StatusCode::BAD_REQUEST, &message),
    };
    let view = match view(shared, namespace, pod) {
        Ok(view) => view,
        Err((status, message)) => return error(status, &message),
    };
    let Some(found) = view.containers.iter().find(|c| c.name == container) else {
        let message = format!("container {container} is not valid for pod {pod}");
        return error(StatusCode::BAD_REQUEST, &message);
    };
    let attempt = if flag(text, &["previous"]) {
        match found.attempt.and_then(|a| a.checked_sub(1)) {
            Some(attempt) => attempt,
            None => {
                let message = format!("previous terminated container \"{container}\" in pod \"{pod}\" not found");
                return error(StatusCode::BAD_REQUEST, &message);
            }
        }
    } else {
        match found.attempt {
            Some(attempt) => attempt,
            None => {
                let why = waiting(&view.status, container);
                let message = format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}");
                return error(StatusCode::BAD_REQUEST, &message);
            }
        }
    };
    let path = shared.node.log_path(&view.pod, container, attempt);
    let ended = ended(shared.workers.clone(), namespace.to_owned(), pod.to_owned(), container.to_owned(), attempt);
    let chunks = read(&path, options, ended);
    let body = stream::unfold(chunks, |mut chunks| async move {
        let chunk = chunks.recv().await?;
        let frame = chunk.map(Frame::data).map_err(|e| std::io::Error::other(e.to_string()));
        Some((frame, chunks))
    });
    let mut response = Response::new(StreamBody::new(body).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

/// Resolves when that attempt of the container no longer runs.
async fn ended(workers: Workers, namespace: String, pod: String, container: String, attempt: u32) {
    let Some(handle) = workers.by_name(&namespace, &pod) else { return };
    let mut view = handle.view;
    drop(handle.queue);
    // An error means that the worker is gone, and the container with it.
    let _ = view
        .wait_for(|v| {
            v.containers
                .iter()
                .find(|c| c.name == container)
                .is_none_or(|c| c.attempt != Some(attempt) || c.id.is_none())
        })
        .await;
}

fn waiting(status: &k8s_openapi::api::core::v1::PodStatus, container: &str) -> String {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|c| c.name == container);
    let reason = found.and_then(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone());
    reason.unwrap_or_else(|| "ContainerCreating".to_owned())
}

fn options(text: &str, now: Timestamp) -> Result<LogOptions, String> {
    let number = |name: &str| -> Result<Option<i64>, String> {
        match query(text, name).next().filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(v) => v.parse().map(Some).map_err(|_| format!("{name}: \"{v}\" is not a number")),
        }
    };
    let since = match (number("sinceSeconds")?, query(text, "sinceTime").next()) {
        (Some(seconds), _) => Some(now - Duration::from_secs(seconds.max(0).unsigned_abs().min(1 << 31))),
        (None, Some(time)) => Some(time.parse().map_err(|_| format!("sinceTime: \"{time}\" is not an RFC 3339 time"))?),
        (None, None) => None,
    };
    Ok(LogOptions {
        follow: flag(text, &["follow"]),
        tail: number("tailLines")?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        since,
        limit: number("limitBytes")?.map(i64::unsigned_abs),
        timestamps: flag(text, &["timestamps"]),
        stream: match query(text, "stream").next().as_deref() {
            Some("Stdout") => LogStream::Stdout,
            Some("Stderr") => LogStream::Stderr,
            _ => LogStream::Both,
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parameters() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let o =
            options("follow=true&tailLines=5&sinceSeconds=60&timestamps=true&limitBytes=9&stream=Stderr", now).unwrap();
        assert!(o.follow && o.timestamps && o.tail == Some(5) && o.limit == Some(9) && o.stream == LogStream::Stderr);
        assert_eq!(o.since.unwrap().to_string(), "2026-01-01T00:00:00Z");
        let o = options("sinceTime=2026-01-01T00%3A00%3A30Z&tailLines=", now).unwrap();
        assert_eq!((o.since.unwrap().to_string().as_str(), o.tail), ("2026-01-01T00:00:30Z", None));
        assert_eq!(options("tailLines=x", now).unwrap_err(), "tailLines: \"x\" is not a number");
        assert!(options("sinceTime=yesterday", now).is_err());
    }
}
