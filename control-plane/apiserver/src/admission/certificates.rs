//! Certificate signing requests: stamped with who asks; approved and signed only by those who may
//! for the request's signer; never for `system:masters` (upstream's CertificateApproval,
//! CertificateSigning and CertificateSubjectRestriction).

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use serde_json::{Value, json};
use sluice_api::status::Status;
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use super::{forbid, text};
use crate::{
    auth::MASTERS,
    authz::{Authorizer, node::node_name},
    context::{Admit, Attributes, Decision, Operation},
};

/// `spec.username` and the like are the requester's, whatever the object says.
pub(super) fn stamp_requester(admit: &Admit<'_>, csr: &mut Value) {
    let user = admit.attributes.user;
    let spec = &mut csr["spec"];
    spec["username"] = json!(user.username);
    spec["groups"] = json!(user.groups);
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("uid");
        spec.remove("extra");
        if !user.uid.is_empty() {
            spec.insert("uid".into(), json!(user.uid));
        }
        if !user.extra.is_empty() {
            spec.insert("extra".into(), json!(user.extra));
        }
    }
}

pub(super) fn check(authorizer: &Authorizer, admit: &Admit<'_>, csr: &Value) -> Result<(), Status> {
    let signer = text(&csr["spec"], "signerName");
    match (admit.attributes.subresource, admit.operation) {
        ("", Operation::Create) => check_new(admit, csr, signer),
        ("approval", Operation::Update) => may(authorizer, admit, csr, "approve", signer),
        ("status", Operation::Update)
            if admit.old.is_some_and(|old| old["status"]["certificate"] != csr["status"]["certificate"]) =>
        {
            may(authorizer, admit, csr, "sign", signer)
        }
        _ => Ok(()),
    }
}

/// The verb on `signers`, for the signer by name or for its whole domain (`example.org/*`).
fn may(authorizer: &Authorizer, admit: &Admit<'_>, csr: &Value, verb: &str, signer: &str) -> Result<(), Status> {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    let allowed = [signer.to_owned(), format!("{domain}/*")].iter().any(|name| {
        let attributes = Attributes {
            verb,
            group: "certificates.k8s.io",
            version: "*",
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
            ..admit.attributes
        };
        authorizer.authorize(&attributes) == Decision::Allow
    });
    if allowed {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(forbid(admit, Some(csr), why))
}

fn check_new(admit: &Admit<'_>, csr: &Value, signer: &str) -> Result<(), Status> {
    let Some((name, groups)) = subject(text(&csr["spec"], "request")) else {
        return Ok(());
    };
    if signer == "kubernetes.io/kube-apiserver-client" && groups.iter().any(|g| g == MASTERS) {
        let why = format!("use of {signer} signer with {MASTERS} group is not allowed");
        return Err(forbid(admit, Some(csr), why));
    }
    let node_signer = matches!(signer, "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet");
    let user = &admit.attributes.user.username;
    if node_signer && node_name(admit.attributes.user).is_some() && name != *user {
        return Err(forbid(admit, Some(csr), format!("can only create a node CSR with CN={user}")));
    }
    Ok(())
}

/// CN and O of a base64 PEM request; `None` when it cannot be read, which validation reports.
fn subject(request: &str) -> Option<(String, Vec<String>)> {
    let pem = BASE64.decode(request).ok()?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem).ok()?;
    let (_, csr) = X509CertificationRequest::from_der(&der).ok()?;
    let subject = &csr.certification_request_info.subject;
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect();
    Some((name, groups))
}
