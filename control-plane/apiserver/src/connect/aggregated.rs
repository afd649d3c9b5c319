//! Requests for what an extension server serves: passed on with the client's name in headers that the front proxy's
//! certificate vouches for. Upstream: kube-aggregator's `pkg/apiserver/handler_proxy.go`.

use http::{HeaderMap, HeaderName, HeaderValue, Response, request::Parts};
use sluice_api::status::Status;

use super::{
    Connect,
    forward::{self, Outgoing},
};
use crate::{
    admission::webhook::by_service,
    aggregation::{Extension, Extensions},
    context::{Body, UserInfo},
};

const OURS: &str = "x-remote-";

impl Connect {
    /// Has an extension server answer.
    ///
    /// # Errors
    /// 503 when it cannot be asked.
    pub(crate) async fn aggregated(
        &self,
        extensions: &Extensions,
        extension: &Extension,
        user: &UserInfo,
        mut parts: Parts,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        if !extension.available {
            return Err(Status::unavailable("service unavailable"));
        }
        let tls = extension.tls.as_ref().map_err(|_| Status::unavailable("service unavailable"))?;
        let (target, _) = by_service(&*self.view, &extension.service)
            .inspect_err(|_| extensions.doubt())
            .map_err(|_| Status::unavailable("service unavailable"))?;
        let mut headers = forward::proxied_headers(&parts.headers);
        let claimed: Vec<HeaderName> = headers.keys().filter(|k| k.as_str().starts_with(OURS)).cloned().collect();
        claimed.iter().for_each(|name| drop(headers.remove(name)));
        vouch(&mut headers, user)?;
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let upgrade = forward::is_upgrade(&parts.headers);
        let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>().filter(|_| upgrade);
        let stream = forward::dial(&target, Some(tls)).await.map_err(|status| {
            extensions.doubt();
            Status::unavailable(format!("error trying to reach service: {}", status.message))
        })?;
        let outgoing = Outgoing { method: parts.method, path, headers, body };
        match client {
            Some(client) => forward::upgrade(&target, stream, outgoing, client, self.permit()?).await,
            None => forward::send(&target, stream, outgoing).await.map(forward::plain),
        }
    }
}

/// Says who asks.
fn vouch(headers: &mut HeaderMap, user: &UserInfo) -> Result<(), Status> {
    let mut say = |name: &str, value: &str| {
        let bad = |e: &dyn std::fmt::Display| Status::bad_request(format!("the user cannot be named in headers: {e}"));
        let name = HeaderName::from_bytes(format!("{OURS}{name}").as_bytes()).map_err(|e| bad(&e))?;
        headers.append(name, HeaderValue::from_str(value).map_err(|e| bad(&e))?);
        Ok(())
    };
    say("user", &user.username)?;
    if !user.uid.is_empty() {
        say("uid", &user.uid)?;
    }
    user.groups.iter().try_for_each(|group| say("group", group))?;
    for (key, values) in &user.extra {
        let key = format!("extra-{}", escaped(key));
        values.iter().try_for_each(|value| say(&key, value))?;
    }
    Ok(())
}

/// A key as a part of a header's name: what cannot stand there, and the percent sign, as `%2F`.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_asks_is_said_in_headers() {
        let mut user = UserInfo { uid: "u-1".into(), ..UserInfo::new("jane", &["a", "b"]) };
        user.extra.insert("example.com/50%".into(), vec!["x".into()]);
        let mut headers = HeaderMap::new();
        vouch(&mut headers, &user).unwrap();
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("x-remote-user"), all("x-remote-uid")), (vec!["jane"], vec!["u-1"]));
        assert_eq!(all("x-remote-group"), ["a", "b"]);
        assert_eq!(all("x-remote-extra-example.com%2F50%25"), ["x"]);
        assert!(vouch(&mut HeaderMap::new(), &UserInfo::new("two\nlines", &[])).is_err());
    }
}
