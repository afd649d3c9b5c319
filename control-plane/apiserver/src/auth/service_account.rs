//! Service-account tokens: ES256 JWTs bound to a ServiceAccount and, mostly, to a pod.
//!
//! Signing serves TokenRequest; verifying serves every request that shows one. A token is good
//! while its signature, issuer, times and audience are, and while everything it names is still
//! the same object in the store. Verified signatures are remembered (bounded); what the store
//! says is asked each time.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use rcgen::PublicKeyData as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::view::{View, alive};
use crate::{bootstrap::pki::Pki, context::UserInfo, limits};

/// The claims of a service-account token, as upstream writes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    pub nbf: i64,
    pub sub: String,
}

/// What a token is bound to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    /// When the holder should have renewed it; set when `exp` was extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

/// Signs and verifies with the cluster's service-account key.
pub struct ServiceAccountTokens {
    issuer: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    jwk: Value,
    view: Arc<dyn View>,
    verified: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

impl ServiceAccountTokens {
    pub fn new(pki: &Pki, view: Arc<dyn View>, cluster_domain: &str) -> anyhow::Result<Self> {
        let key = pki.service_account_key();
        let point = key.public_key_raw();
        anyhow::ensure!(point.len() == 65, "the service-account key is not an ECDSA P-256 key");
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()));
        Ok(Self {
            issuer: format!("https://kubernetes.default.svc.{cluster_domain}"),
            encoding: EncodingKey::from_ec_der(key.serialized_der()),
            decoding: DecodingKey::from_ec_components(&x, &y)?,
            jwk: json!({"use": "sig", "kty": "EC", "kid": key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}),
            key_id,
            view,
            verified: Mutex::default(),
        })
    }

    /// The issuer, which is also the API server's own audience.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({"keys": [self.jwk]})
    }

    /// `/.well-known/openid-configuration`; `address` is `host:port` of this server.
    pub fn openid_configuration(&self, address: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("https://{address}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// Signs claims as they are.
    pub fn sign(&self, claims: &Claims) -> anyhow::Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        Ok(jsonwebtoken::encode(&header, claims, &self.encoding)?)
    }

    /// Verifies a token for one of `audiences` and that what it names still lives. Returns the
    /// user and the shared audiences.
    ///
    /// # Errors
    /// The reason in words, for logs and TokenReview.
    pub fn authenticate(&self, token: &str, audiences: &[String]) -> Result<(UserInfo, Vec<String>), String> {
        self.authenticate_at(token, audiences, jiff::Timestamp::now())
    }

    fn authenticate_at(
        &self,
        token: &str,
        audiences: &[String],
        now: jiff::Timestamp,
    ) -> Result<(UserInfo, Vec<String>), String> {
        let claims = self.verify(token)?;
        check_times(&claims, now.as_second())?;
        let shared: Vec<String> = claims.aud.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if shared.is_empty() {
            return Err(format!("token audiences {:?} is invalid for the target audiences {audiences:?}", claims.aud));
        }
        self.check_bound(&claims, now)?;
        Ok((user(&claims), shared))
    }

    /// The claims of a token that this cluster signed, whatever its times and audience.
    fn verify(&self, token: &str) -> Result<Arc<Claims>, String> {
        if token.len() > limits::TOKEN_BYTES {
            return Err("the token is too long".into());
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(claims) = self.verified.lock().get(&digest) {
            return Ok(claims.clone());
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        validation.set_issuer(&[&self.issuer]);
        let data = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)
            .map_err(|e| format!("invalid bearer token: {e}"))?;
        let claims = Arc::new(data.claims);
        let mut verified = self.verified.lock();
        if verified.len() >= limits::VERIFIED_TOKENS {
            verified.clear();
        }
        verified.insert(digest, claims.clone());
        Ok(claims)
    }

    fn check_bound(&self, claims: &Claims, now: jiff::Timestamp) -> Result<(), String> {
        let bound = &claims.bound;
        let namespace = &bound.namespace;
        if claims.sub != format!("system:serviceaccount:{namespace}:{}", bound.serviceaccount.name) {
            return Err("the token's subject is not its service account".into());
        }
        let check = |plural: &str, namespace: &str, reference: &Reference| {
            self.view
                .get("", plural, namespace, &reference.name)
                .filter(|o| *o.uid == *reference.uid && alive(o, now))
                .map(drop)
                .ok_or_else(|| {
                    format!(
                        "service account token has been invalidated: {plural} {namespace}/{} is gone",
                        reference.name
                    )
                })
        };
        check("serviceaccounts", namespace, &bound.serviceaccount)?;
        if let Some(pod) = &bound.pod {
            return check("pods", namespace, pod);
        }
        if let Some(secret) = &bound.secret {
            return check("secrets", namespace, secret);
        }
        // A pod's node is only told; a token bound to the node itself dies with it.
        bound.node.as_ref().map_or(Ok(()), |n| check("nodes", "", n))
    }
}

fn check_times(claims: &Claims, now: i64) -> Result<(), String> {
    let leeway = limits::TOKEN_LEEWAY_SECONDS;
    if now - leeway > claims.exp {
        return Err("service account token has expired".into());
    }
    if now + leeway < claims.nbf {
        return Err("service account token is not valid yet".into());
    }
    Ok(())
}

fn user(claims: &Claims) -> UserInfo {
    let bound = &claims.bound;
    let mut user = UserInfo {
        username: claims.sub.clone(),
        uid: bound.serviceaccount.uid.clone(),
        groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{}", bound.namespace)],
        ..UserInfo::default()
    };
    let mut extra = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        extra("node-name", &node.name);
        extra("node-uid", &node.uid);
    }
    user
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{auth::view::fixed::Fixed, bootstrap::pki};

    const NOW: i64 = 1_800_000_000;

    fn names() -> pki::Names {
        pki::Names {
            advertise: Vec::new(),
            service: "10.96.0.1".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
            extra: Vec::new(),
        }
    }

    fn reference(name: &str) -> Reference {
        Reference { name: name.into(), uid: format!("uid-{name}") }
    }

    fn claims() -> Claims {
        Claims {
            aud: vec!["https://kubernetes.default.svc.cluster.local".into()],
            exp: NOW + 3600,
            iat: NOW,
            nbf: NOW,
            iss: "https://kubernetes.default.svc.cluster.local".into(),
            jti: "j".into(),
            sub: "system:serviceaccount:shop:web".into(),
            bound: Bound {
                namespace: "shop".into(),
                node: Some(reference("n1")),
                pod: Some(reference("web-0")),
                secret: None,
                serviceaccount: reference("web"),
                warnafter: None,
            },
        }
    }

    fn objects() -> Arc<Fixed> {
        let object =
            |ns: &str, name: &str| json!({"metadata": {"namespace": ns, "name": name, "uid": format!("uid-{name}")}});
        Fixed::new(&[
            ("", "serviceaccounts", object("shop", "web")),
            ("", "pods", object("shop", "web-0")),
            ("", "nodes", object("", "n1")),
        ])
    }

    #[test]
    fn a_good_token_names_its_account_and_pod() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), names()).unwrap();
        let tokens = ServiceAccountTokens::new(&pki, objects(), "cluster.local").unwrap();
        let token = tokens.sign(&claims()).unwrap();
        let now = jiff::Timestamp::from_second(NOW).unwrap();
        let own = [tokens.issuer().to_owned()];
        for _ in 0..2 {
            let (user, shared) = tokens.authenticate_at(&token, &own, now).unwrap();
            assert_eq!(shared, own);
            assert_eq!(user.username, "system:serviceaccount:shop:web");
            assert_eq!(user.uid, "uid-web");
            assert!(user.in_group("system:serviceaccounts:shop"));
            let pod = &user.extra["authentication.kubernetes.io/pod-name"];
            assert_eq!(pod, &["web-0".to_owned()]);
        }
        assert_eq!(tokens.jwks()["keys"][0]["kid"], tokens.key_id);
    }

    #[test]
    fn tokens_that_do_not_hold() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), names()).unwrap();
        let check = |change: &dyn Fn(&mut Claims), view: &dyn Fn(&Fixed), expected: &str| {
            let objects = objects();
            let tokens = ServiceAccountTokens::new(&pki, objects.clone(), "cluster.local").unwrap();
            let mut claims = claims();
            change(&mut claims);
            let token = tokens.sign(&claims).unwrap();
            view(&objects);
            let now = jiff::Timestamp::from_second(NOW).unwrap();
            let error = tokens.authenticate_at(&token, &[tokens.issuer().to_owned()], now).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        let same = |_: &mut Claims| {};
        let untouched = |_: &Fixed| {};
        check(&|c| c.exp = NOW - 61, &untouched, "has expired");
        check(&|c| c.nbf = NOW + 61, &untouched, "not valid yet");
        check(&|c| c.aud = vec!["vault".into()], &untouched, "audiences");
        check(&|c| c.iss = "https://elsewhere".into(), &untouched, "InvalidIssuer");
        check(&|c| c.sub = "system:serviceaccount:shop:admin".into(), &untouched, "subject");
        check(&same, &|v| v.remove("", "pods", "shop", "web-0"), "pods shop/web-0 is gone");
        check(&same, &|v| v.remove("", "serviceaccounts", "shop", "web"), "serviceaccounts shop/web is gone");
        let reborn = json!({"metadata": {"namespace": "shop", "name": "web-0", "uid": "another"}});
        check(&same, &|v| v.put("", "pods", reborn.clone()), "pods shop/web-0 is gone");
        check(&|c| c.bound.pod = None, &|v| v.remove("", "nodes", "", "n1"), "nodes /n1 is gone");
        let deleted = |seconds: i64| {
            let at = jiff::Timestamp::from_second(NOW - seconds).unwrap();
            json!({"metadata": {"namespace": "shop", "name": "web-0", "uid": "uid-web-0", "deletionTimestamp": at.to_string()}})
        };
        check(&same, &|v| v.put("", "pods", deleted(61)), "pods shop/web-0 is gone");
    }

    #[test]
    fn a_foreign_signature_is_refused() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |dir: &tempfile::TempDir| {
            let pki = Pki::open(dir.path(), names()).unwrap();
            ServiceAccountTokens::new(&pki, objects(), "cluster.local").unwrap()
        };
        let token = open(&theirs).sign(&claims()).unwrap();
        let tokens = open(&ours);
        let own = [tokens.issuer().to_owned()];
        let error = tokens.authenticate(&token, &own).unwrap_err();
        assert!(error.contains("InvalidSignature"), "{error}");
        assert!(tokens.authenticate("a.b.c", &own).is_err());
    }
}
