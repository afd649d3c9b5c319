//! `/flows`: the connections of this node as they are, or, with `follow`, as they come and go. Headers' ends and figures alone are
//! told, never what connections carry.

use futures::stream::{self, BoxStream, StreamExt};
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use sluice_dataplane::{Dataplane, Filter};

use super::reply::{Reply, error};
use super::{Shared, decode, flag};

/// Lines of JSON; a refusal in words otherwise.
pub type Lines = Result<BoxStream<'static, String>, (StatusCode, String)>;

/// Streams what is asked for.
pub(super) async fn serve(shared: &Shared, query: &str) -> Response<Reply> {
    let Some(dataplane) = &shared.sources.dataplane else {
        return error(StatusCode::NOT_FOUND, "this node has no data plane");
    };
    let lines = match lines(dataplane, query).await {
        Ok(lines) => lines,
        Err((status, message)) => return error(status, &message),
    };
    let body = StreamBody::new(lines.map(|line| Ok(Frame::data(line.into()))));
    let mut response = Response::new(body.boxed_unsync());
    let lines = http::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, lines);
    response
}

/// Answers a query: `follow`, and filters by the names of [`Filter`]. Without `follow` one line for each connection in the flow
/// table.
pub async fn lines(dataplane: &Dataplane, query: &str) -> Lines {
    let filter = filter(query).map_err(|message| (StatusCode::BAD_REQUEST, message))?;
    if flag(query, &["follow"]) {
        let busy = "too many follow the connections of this node already";
        let follower = dataplane.follow(filter).ok_or((StatusCode::TOO_MANY_REQUESTS, busy.to_owned()))?;
        let events = stream::unfold(follower, |mut follower| async move {
            let event = follower.next().await;
            Some((line(&*event), follower))
        });
        return Ok(events.boxed());
    }
    let dataplane = dataplane.clone();
    // It reads maps of some megabytes.
    let rows = tokio::task::spawn_blocking(move || dataplane.flows_now(&filter)).await;
    let failed = |why: String| (StatusCode::INTERNAL_SERVER_ERROR, format!("the flow table: {why}"));
    let rows = rows.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
    Ok(stream::iter(rows).map(|row| line(&row)).boxed())
}

fn line(value: &impl serde::Serialize) -> String {
    // What is written has texts as keys, which is all that can fail.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

fn filter(query: &str) -> Result<Filter, String> {
    let mut filter = Filter::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name != "follow" {
            filter.set(name, &decode(value))?;
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_filters() {
        let parsed = filter("follow=true&pod=shop%2Fweb-1&port=80&verdict=dropped");
        let pairs = parsed.map(|filter| filter.pairs());
        let expected = [("pod", "shop/web-1"), ("verdict", "dropped"), ("port", "80")];
        assert_eq!(pairs, Ok(expected.map(|(name, value)| (name, value.to_owned())).to_vec()));
        assert_eq!(filter(""), Ok(Filter::default()));
        assert_eq!(filter("port=x").map(drop), Err("port: \"x\" is not a port number".to_owned()));
        assert_eq!(filter("colour=red").map(drop), Err("there is no filter \"colour\"".to_owned()));
    }
}
