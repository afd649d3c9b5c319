//! Who asks: client certificates, service-account tokens, bootstrap tokens, else anonymous.
//!
//! [`Authenticator`] looks at the TLS peer and the headers alone, and reads the store through
//! [`view::View`] to see that what a credential is bound to still lives. It never decides what a
//! user may do. A credential that is shown and does not hold is a 401, never anonymous.

pub mod bootstrap_token;
pub mod impersonation;
pub mod refusal;
pub mod service_account;
pub mod view;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, header::AUTHORIZATION};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use sluice_api::status::Status;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use self::{service_account::ServiceAccountTokens, view::View};
use crate::{
    bootstrap::pki::Pki,
    context::{Certified, UserInfo},
};

/// Every authenticated user is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of anonymous requests.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user name of anonymous requests.
pub const ANONYMOUS: &str = "system:anonymous";
/// Members may do everything, whatever RBAC says.
pub const MASTERS: &str = "system:masters";

/// Turns credentials into a user.
pub struct Authenticator {
    tokens: Arc<ServiceAccountTokens>,
    view: Arc<dyn View>,
}

impl Authenticator {
    pub fn new(pki: &Pki, view: Arc<dyn View>, cluster_domain: &str) -> anyhow::Result<Self> {
        Ok(Self { tokens: Arc::new(ServiceAccountTokens::new(pki, view.clone(), cluster_domain)?), view })
    }

    /// The signer and verifier of service-account tokens, for TokenRequest and OpenID discovery.
    pub fn service_account_tokens(&self) -> &Arc<ServiceAccountTokens> {
        &self.tokens
    }

    /// `peer` is what the verified client certificate says.
    ///
    /// # Errors
    /// 401 when a bearer token is shown that no authenticator accepts.
    pub(crate) async fn authenticate(&self, peer: Option<&Certified>, headers: &HeaderMap) -> Result<UserInfo, Status> {
        if let Some(peer) = peer {
            if !peer.holds(SystemTime::now()) {
                tracing::debug!(user = peer.user.username, "a client certificate has expired");
                return Err(Status::unauthorized());
            }
            return Ok(authenticated(peer.user.clone()));
        }
        match bearer(headers) {
            Some(token) => match self.authenticate_token(token, &[]) {
                Ok((user, _)) => Ok(user),
                Err(why) => {
                    tracing::debug!(why, "a bearer token was refused");
                    Err(Status::unauthorized())
                }
            },
            None if headers.contains_key(AUTHORIZATION) => Err(Status::unauthorized()),
            None => Ok(UserInfo::new(ANONYMOUS, &[UNAUTHENTICATED])),
        }
    }

    /// Checks a bearer token for any of `audiences` (none stands for the API server's own) and
    /// returns the user and the audiences that both sides share.
    ///
    /// # Errors
    /// The reason in words, which is for logs and TokenReview, not for the bearer.
    pub fn authenticate_token(&self, token: &str, audiences: &[String]) -> Result<(UserInfo, Vec<String>), String> {
        let own = [self.tokens.issuer().to_owned()];
        let audiences = if audiences.is_empty() { &own[..] } else { audiences };
        if bootstrap_token::looks_like(token) {
            let user = bootstrap_token::authenticate(&*self.view, token, jiff::Timestamp::now())?;
            let shared: Vec<String> = audiences.iter().filter(|a| own.contains(a)).cloned().collect();
            if shared.is_empty() {
                return Err(format!("a bootstrap token is not for the audiences {audiences:?}"));
            }
            return Ok((authenticated(user), shared));
        }
        let (user, shared) = self.tokens.authenticate(token, audiences)?;
        Ok((authenticated(user), shared))
    }
}

fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

impl Certified {
    /// CN is the user, each O a group (upstream's `CommonNameUserConversion`); `None` without a CN.
    /// `der` is the leaf of a chain that the handshake checked.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let name = cert.subject().iter_common_name().next()?.as_str().ok().filter(|name| !name.is_empty())?;
        let groups = cert.subject().iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect();
        let fingerprint: String = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect();
        let id = vec![format!("X509SHA256={fingerprint}")];
        let extra = BTreeMap::from([("authentication.kubernetes.io/credential-id".to_owned(), id)]);
        let user = UserInfo { username: name.into(), groups, extra, ..UserInfo::default() };
        Some(Self { user, until: cert.validity().not_after.timestamp() })
    }

    fn holds(&self, now: SystemTime) -> bool {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
        seconds <= self.until
    }
}

/// The token of `Authorization: Bearer ...`; an empty one is none.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests;
