//! What numbers and addresses are called: by the kernel's maps and the API's objects.

use std::net::IpAddr;

use super::decide::Names;
use super::live::Live;
use crate::End;
use crate::model::Protocol;
use crate::policy::model::{Direction, Snapshot};
use crate::policy::named::{self, Asked, Named};

/// Names from the kernel's maps and the API's objects.
pub(super) struct Dictionary<'a> {
    pub(super) live: &'a Live,
    pub(super) cluster: Option<&'a Snapshot>,
    pub(super) protocol: Protocol,
}

impl Names for Dictionary<'_> {
    fn service(&self, id: u32) -> String {
        self.live.service_name(id).unwrap_or_else(|| "?".into())
    }

    fn pod(&self, address: IpAddr) -> Option<String> {
        let ((namespace, name), _) = named::pod_with(self.cluster?, address)?;
        Some(format!("{namespace}/{name}"))
    }

    fn policies(&self, direction: Direction, pod: End, peer: End) -> Named {
        let port = if direction == Direction::Egress { peer.port } else { pod.port };
        let asked = Asked { direction, pod: pod.address, peer: peer.address, protocol: self.protocol, port };
        self.cluster.and_then(|cluster| named::named(cluster, &asked)).unwrap_or_default()
    }
}
