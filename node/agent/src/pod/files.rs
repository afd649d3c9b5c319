//! Keeps a pod's volumes in step with the objects they come from: set up once, then written again when a referenced
//! object, the pod's own metadata or a token's age says so. Event-driven; one task per pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use super::images::{self, Wanted};
use super::machine::StartError;
use crate::fields::Facts;
use crate::limits;
use crate::model::{Pod, TokenProjection, Volume};
use crate::node_context::NodeContext;
use crate::references::PodObjects;
use crate::seams::{PodName, Token};
use crate::volumes::{self, payload};

/// What the task works on.
pub(super) struct Files {
    pub(super) node: Arc<NodeContext>,
    pub(super) pod: watch::Receiver<Arc<Pod>>,
    pub(super) objects: Arc<PodObjects>,
    pub(super) refresh: Arc<Notify>,
}

/// By audience and asked-for life.
type Tokens = HashMap<(Option<String>, Option<i64>), Cached>;

struct Cached {
    token: Token,
    renew: Timestamp,
}

impl Files {
    /// Sets the volumes up, says how that went, and keeps them fresh if it went well.
    pub(super) async fn run(mut self, ready: impl FnOnce(Result<(), String>) + Send) {
        self.objects.loaded().await;
        let mut tokens = HashMap::new();
        let first = self.pass(&mut tokens).await;
        let failed = first.is_err();
        ready(first);
        if failed {
            return;
        }
        loop {
            let renew = tokens.values().map(|c: &Cached| c.renew).min();
            let nap = renew.map(|t| Duration::try_from(t.duration_since(Timestamp::now())).unwrap_or_default());
            tokio::select! {
                () = self.refresh.notified() => {}
                changed = self.pod.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(nap.unwrap_or_default()), if nap.is_some() => {}
            }
            if let Err(message) = self.pass(&mut tokens).await {
                let pod = self.pod.borrow().clone();
                self.node.recorder.pod(&pod, None, true, "FailedMount", &message);
                // Not in a tight circle: what failed is tried again at the next change, or after a while.
                for cached in tokens.values_mut() {
                    cached.renew = cached.renew.max(Timestamp::now() + limits::SETUP_RETRY_MAX);
                }
            }
        }
    }

    async fn pass(&mut self, tokens: &mut Tokens) -> Result<(), String> {
        let pod = self.pod.borrow_and_update().clone();
        if let Some(v) = pod.spec.volumes.iter().find(|v| !volumes::is_supported(v)) {
            return Err(format!(
                "MountVolume.SetUp failed for volume \"{}\" : this kind of volume is not supported by this node",
                v.name
            ));
        }
        for volume in &pod.spec.volumes {
            self.mount_image(&pod, volume).await?;
            for projection in payload::tokens(volume) {
                self.renew(&pod, &volume.name, projection, tokens).await?;
            }
        }
        let work = self.payloads(&pod, tokens)?;
        let dir = self.node.dir(pod.uid());
        let task = tokio::task::spawn_blocking(move || {
            for (volume, files) in pod.spec.volumes.iter().zip(&work) {
                volumes::set_up(&dir, &pod, volume, files.as_ref())?;
            }
            Ok(())
        });
        task.await.map_err(|e| e.to_string())?
    }

    /// An image volume is pulled and mounted once.
    async fn mount_image(&self, pod: &Pod, volume: &Volume) -> Result<(), String> {
        let Some(source) = &volume.image else { return Ok(()) };
        let target = self.node.dir(pod.uid()).volume(volume);
        if target.exists() && volumes::is_mount_point(&target).map_err(|e| e.to_string())? {
            return Ok(());
        }
        let failed = |e: String| format!("MountVolume.SetUp failed for volume \"{}\" : {e}", volume.name);
        let wanted = Wanted { image: &source.reference, policy: &source.pull_policy, container: None, present: None };
        images::ensure(&self.node, pod, wanted, &self.objects).await.map_err(|e| match e {
            StartError::Image { reason, message, .. } => failed(format!("{reason}: {message}")),
            other => failed(format!("{other:?}")),
        })?;
        let key = volumes::image_key(pod.uid(), &volume.name);
        let mounted = self.node.runtime.mount_image(&source.reference, &key, &target).await;
        mounted.map_err(|e| failed(e.to_string()))
    }

    fn payloads(&self, pod: &Pod, tokens: &Tokens) -> Result<Vec<Option<payload::Files>>, String> {
        let facts = Facts {
            host_ips: self.node.identity.ips.clone(),
            allocatable: self.node.identity.allocatable.clone(),
            ..Facts::default()
        };
        let token = |p: &TokenProjection| tokens.get(&token_key(p)).map(|c| c.token.token.clone());
        let inputs = payload::Inputs { pod, facts: &facts, objects: &*self.objects, token: &token };
        let failed = |name: &str, e: String| format!("MountVolume.SetUp failed for volume \"{name}\" : {e}");
        let volumes = pod.spec.volumes.iter();
        volumes.map(|v| payload::files(v, &inputs).transpose().map_err(|e| failed(&v.name, e))).collect()
    }

    async fn renew(
        &self,
        pod: &Pod,
        volume: &str,
        projection: &TokenProjection,
        tokens: &mut Tokens,
    ) -> Result<(), String> {
        let key = token_key(projection);
        let now = Timestamp::now();
        if tokens.get(&key).is_some_and(|c| c.renew > now) {
            return Ok(());
        }
        let name = pod_name(pod);
        let seconds = projection.expiration_seconds.unwrap_or(limits::TOKEN_SECONDS);
        let account = &pod.spec.service_account_name;
        let token = self.node.api.token(&name, account, projection.audience.as_deref(), seconds).await;
        match token {
            Ok(token) => {
                let life = Duration::try_from(token.expires.duration_since(now)).unwrap_or_default();
                // Upstream: at 80 % of its life, at the latest after a day.
                let renew = now + life.mul_f64(0.8).min(Duration::from_secs(86_400));
                tokens.insert(key, Cached { token, renew });
                Ok(())
            }
            // An old token that still works is kept.
            Err(_) if tokens.get(&key).is_some_and(|c| c.token.expires > now) => {
                if let Some(c) = tokens.get_mut(&key) {
                    c.renew = now + limits::SETUP_RETRY_MAX;
                }
                Ok(())
            }
            Err(e) => Err(format!("MountVolume.SetUp failed for volume \"{volume}\" : failed to fetch token: {e}")),
        }
    }
}

/// The pod's identity for requests.
pub(super) fn pod_name(pod: &Pod) -> PodName {
    PodName { uid: pod.uid().to_owned(), namespace: pod.namespace().to_owned(), name: pod.name().to_owned() }
}

fn token_key(p: &TokenProjection) -> (Option<String>, Option<i64>) {
    (p.audience.clone(), p.expiration_seconds)
}
