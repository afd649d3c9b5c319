//! Limits of a pod's traffic: a token bucket filter at each end of its link, so that what is too much waits where it comes from.
//! Nothing here touches a link without a limit.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::packet_core::DefaultNla;

use crate::direct::Direct;
use crate::nl::is;
use crate::pods::link_name;
use crate::{Error, Network, limits, netns};

/// What a pod may receive and send, in bits per second; `None` without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

impl Network {
    /// Limits a pod that has its network. Idempotent; what flows goes on.
    ///
    /// # Errors
    /// A sentence when the kernel has no such filter: the pod's traffic is not limited then.
    pub async fn limit_pod(&self, uid: &str, bandwidth: Bandwidth) -> Result<(), Error> {
        if let Some(bits) = bandwidth.ingress {
            let (direct, name) = (std::sync::Arc::clone(&self.inner.direct), link_name(uid));
            let limited = tokio::task::spawn_blocking(move || limit(&mut direct.lock(), &name, bits));
            limited.await.map_err(|error| Error::Invalid(error.to_string()))??;
        }
        if let Some(bits) = bandwidth.egress {
            let inside = netns::Netns::open(&self.netns_path(uid))?;
            inside.run(move || limit(&mut Direct::open()?, "eth0", bits)).await?;
        }
        Ok(())
    }
}

fn limit(direct: &mut Direct, name: &str, bits: u64) -> Result<(), Error> {
    let link = direct.link(name)?.ok_or_else(|| Error::Invalid(format!("link {name} has vanished")))?;
    match direct.set_queue(filter(link.index, bits / 8), || format!("limiting link {name}")) {
        Err(error) if is(&error, &[libc::ENOENT, libc::EOPNOTSUPP]) => Err(Error::Invalid(
            "this kernel has no token bucket filter (sch_tbf), so the pod's traffic is not limited: load the module"
                .into(),
        )),
        other => other,
    }
}

/// Attributes of the filter (`linux/pkt_sched.h`).
const PARAMETERS: u16 = 1;
const RATE_64: u16 = 4;
const BURST: u16 = 6;
/// Packets are counted as long as they are on Ethernet, so that the kernel wants no table of lengths.
const ETHERNET: u8 = 1;

/// The link's whole queue; `rate` in bytes per second.
fn filter(link: u32, rate: u64) -> RouteNetlinkMessage {
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let share = |time: std::time::Duration| rate.saturating_mul(time.as_millis() as u64) / 1000;
    let burst = small(share(limits::BURST_TIME).max(limits::BURST_LEAST));
    let queue = small(u64::from(burst) + share(limits::QUEUE_TIME));
    // Rate, peak rate, bytes that may wait, bucket (told by an attribute of its own), peak's bucket.
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(small(rate).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(queue.to_ne_bytes());
    parameters.extend([0; 8]);
    let option = |kind, value| TcOption::Other(DefaultNla::new(kind, value));
    let options = vec![
        option(PARAMETERS, parameters),
        option(RATE_64, rate.to_ne_bytes().to_vec()),
        option(BURST, burst.to_ne_bytes().to_vec()),
    ];
    let mut message = TcMessage::with_index(i32::try_from(link).unwrap_or_default());
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![TcAttribute::Kind("tbf".into()), TcAttribute::Options(options)];
    RouteNetlinkMessage::NewQueueDiscipline(message)
}
