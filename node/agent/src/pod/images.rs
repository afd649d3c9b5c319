//! Gets the image of a container or a volume ready by its pull policy, with upstream's events and errors.

use std::sync::Arc;
use std::time::Instant;

use sluice_runtime::{Credentials, Error, ImageInfo};

use super::machine::StartError;
use crate::credentials::{Login, logins};
use crate::env::Objects;
use crate::model::Pod;
use crate::node_context::NodeContext;
use crate::references::PodObjects;

/// An image that is needed.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) image: &'a str,
    pub(super) policy: &'a str,
    /// Whose it is; none: a volume's.
    pub(super) container: Option<&'a str>,
    /// What is known of it already, if it is present.
    pub(super) present: Option<&'a ImageInfo>,
}

/// The image, pulled if the policy and its absence ask for it.
pub(super) async fn ensure(
    node: &NodeContext,
    pod: &Pod,
    wanted: Wanted<'_>,
    objects: &PodObjects,
) -> Result<ImageInfo, StartError> {
    let image = wanted.image;
    let fail = |reason, message: String| StartError::Image { reason, message, image: image.to_owned() };
    let event = |warning, reason: &str, message: &str| {
        node.recorder.pod(pod, wanted.container, warning, reason, message);
    };
    let invalid = |e: &Error| {
        let message = format!("Failed to apply default image tag \"{image}\": {e}");
        event(true, "InspectFailed", &message);
        fail("InvalidImageName", message)
    };
    let looked_up = match wanted.present {
        Some(known) => Ok(Some(known.clone())),
        None => node.runtime.image(image).await,
    };
    let present = match looked_up {
        Ok(present) => present,
        Err(e @ Error::InvalidImageName { .. }) => return Err(invalid(&e)),
        Err(e) => {
            let message = format!("Failed to inspect image \"{image}\": {e}");
            event(true, "InspectFailed", &message);
            return Err(fail("ImageInspectError", message));
        }
    };
    match (wanted.policy, present) {
        ("IfNotPresent" | "Never" | "", Some(info)) => {
            let message =
                format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
            event(false, "Pulled", &message);
            return Ok(info);
        }
        ("Never", None) => {
            let message = format!("Container image \"{image}\" is not present with pull policy of Never");
            event(true, "ErrImageNeverPull", &message);
            return Err(fail("ErrImageNeverPull", message));
        }
        _ => {}
    }
    event(false, "Pulling", &format!("Pulling image \"{image}\""));
    let asked = Instant::now();
    let permit = node.pulls.acquire().await;
    let begun = Instant::now();
    let credentials = credentials(pod, image, objects);
    let result = node.runtime.pull(image, &credentials).await;
    drop(permit);
    match result {
        Ok(info) => {
            let message = format!(
                "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
                millis(begun),
                millis(asked),
                info.size
            );
            event(false, "Pulled", &message);
            Ok(info)
        }
        Err(e @ Error::InvalidImageName { .. }) => Err(invalid(&e)),
        Err(e) => {
            event(true, "Failed", &format!("Failed to pull image \"{image}\": {e}"));
            Err(fail("ErrImagePull", e.to_string()))
        }
    }
}

fn credentials(pod: &Pod, image: &str, objects: &PodObjects) -> Vec<Credentials> {
    let secrets: Vec<Arc<_>> = pod.spec.image_pull_secrets.iter().filter_map(|s| objects.secret(&s.name)).collect();
    logins(image, &secrets)
        .into_iter()
        .map(|login| match login {
            Login::Basic { username, password } => Credentials::Basic { username, password },
            Login::Token(token) => Credentials::Bearer(token),
        })
        .collect()
}

/// A time span as Go prints it with three digits.
fn millis(since: Instant) -> String {
    let d = since.elapsed();
    if d.as_secs() > 0 { format!("{:.3}s", d.as_secs_f64()) } else { format!("{}ms", d.as_millis()) }
}
