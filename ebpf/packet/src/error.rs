//! ICMP errors on their way to a service's client: about a packet as the backend got it, which the client sent to the service
//! (a port that nobody listens on, a smaller path MTU behind this node). Errors about answers are for `ingress`.

use sluice_ebpf_common::{FlowKey, FlowKind, Reason};

use crate::header::{End, Header, Kind, parse_quote, rewrite_error};
use crate::{Maps, Packet, Scratch};

/// Makes the error one about the packet that the client sent. Rare, and so a function of its own in the kernel, where the
/// stack is small.
#[inline(never)]
pub(crate) fn from_backend<P: Packet, M: Maps>(packet: &mut P, maps: &M, header: &Header) -> Result<(), Reason> {
    let done = maps.scratch(
        #[inline(always)]
        |Scratch { key, quote, .. }| {
            if parse_quote(packet, header, quote).is_none() || quote.kind != Kind::Ports {
                return Ok(());
            }
            // The quoted packet went to the backend: the answers' direction has its ends swapped.
            *key = FlowKey {
                source: quote.destination,
                destination: quote.source,
                source_port: quote.destination_port,
                destination_port: quote.source_port,
                protocol: quote.protocol,
                kind: FlowKind::ServiceReply as u8,
                reserved: 0,
            };
            let Some(service) = maps.flow(key, |flow| (flow.address, flow.port)) else { return Ok(()) };
            rewrite_error(packet, header, quote, End::Source, &service).ok_or(Reason::Rewrite)
        },
    );
    done.unwrap_or(Ok(()))
}
