//! Who a client of the node's API is, and whether it may do what it asks for: members of `system:masters` may
//! everything, for others the API server is asked by SubjectAccessReview on `nodes/<subresource>`, as upstream.

use std::collections::HashMap;
use std::time::Instant;

use http::Method;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::limits;

/// An authenticated client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
}

impl User {
    /// From a client certificate that TLS has verified: common name and organizations.
    pub(super) fn of(chain: Option<&[CertificateDer<'_>]>) -> Option<User> {
        let (_, cert) = X509Certificate::from_der(chain?.first()?).ok()?;
        let subject = cert.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        Some(User { name, groups })
    }
}

/// Who wants to do what to which subresource.
type Question = (User, String, &'static str);

/// Answers of the API server, remembered for a while.
pub(super) struct Authorizer {
    client: Client,
    node: String,
    cache: Mutex<HashMap<Question, (Instant, bool)>>,
}

impl Authorizer {
    pub(super) fn new(client: Client, node: String) -> Authorizer {
        Authorizer { client, node, cache: Mutex::new(HashMap::new()) }
    }

    /// Refuses with upstream's sentence.
    pub(super) async fn allows(&self, user: &User, method: &Method, first: &str) -> Result<(), String> {
        if user.groups.iter().any(|g| g == "system:masters") {
            return Ok(());
        }
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        let subresources = subresources(first);
        for subresource in subresources {
            if self.may(user, verb, subresource).await? {
                return Ok(());
            }
        }
        let names = subresources.join(" ");
        Err(format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{names}])", user.name))
    }

    async fn may(&self, user: &User, verb: &str, subresource: &'static str) -> Result<bool, String> {
        let key = (user.clone(), verb.to_owned(), subresource);
        if let Some((at, allowed)) = self.cache.lock().get(&key)
            && at.elapsed() < limits::AUTHZ_TTL
        {
            return Ok(*allowed);
        }
        let allowed = self.ask(user, verb, subresource).await?;
        let mut cache = self.cache.lock();
        if cache.len() >= limits::AUTHZ_CACHE {
            cache.retain(|_, (at, _)| at.elapsed() < limits::AUTHZ_TTL);
            if cache.len() >= limits::AUTHZ_CACHE {
                cache.clear();
            }
        }
        cache.insert(key, (Instant::now(), allowed));
        Ok(allowed)
    }

    async fn ask(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, String> {
        let mut groups = user.groups.clone();
        groups.push("system:authenticated".to_owned());
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
            "spec": {
                "user": user.name, "groups": groups,
                "resourceAttributes": {
                    "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": self.node,
                },
            },
        });
        let review: SubjectAccessReview = serde_json::from_value(review).map_err(|e| e.to_string())?;
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|e| format!("Authorization error: the API server was not reached: {e}"))?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }
}

/// Who may any of these may do it (upstream's `KubeletFineGrainedAuthz`, on by default).
fn subresources(first: &str) -> &'static [&'static str] {
    match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "flows" => &["flows", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_certificate_names_its_user() {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "someone");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let user = User::of(Some(&[cert.der().clone()])).unwrap();
        assert_eq!(user, User { name: "someone".into(), groups: vec!["system:masters".into()] });
        assert_eq!(User::of(None), None);
        assert_eq!(User::of(Some(&[CertificateDer::from(vec![1, 2])])), None);
    }

    #[test]
    fn paths_have_subresources() {
        let table: [(&str, &[&str]); 9] = [
            ("exec", &["proxy"]),
            ("stats", &["stats"]),
            ("metrics", &["metrics"]),
            ("pods", &["pods", "proxy"]),
            ("runningpods", &["pods", "proxy"]),
            ("healthz", &["healthz", "proxy"]),
            ("configz", &["configz", "proxy"]),
            ("logs", &["log"]),
            ("flows", &["flows", "proxy"]),
        ];
        for (path, expected) in table {
            assert_eq!(subresources(path), expected);
        }
    }
}
