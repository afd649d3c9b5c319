//! Fragments: only the first one of a datagram has the ports, and the others go where it goes. A fragment that comes before
//! the first one is not kept: that would need memory for packets.

use sluice_ebpf_common::{FragmentKey, FragmentPorts};

use crate::Maps;
use crate::header::{Header, Kind};

/// Remembers the ports of a first fragment, and gives a later one those of its first. Rare, and so a function of its own in
/// the kernel, where the stack is small.
#[inline(never)]
pub(crate) fn complete<M: Maps>(maps: &M, header: &mut Header) {
    let key = FragmentKey {
        source: header.source,
        destination: header.destination,
        identification: header.identification,
        protocol: header.protocol,
        reserved: [0; 5],
    };
    if header.part.is_first() {
        let (source_port, destination_port) = (header.source_port, header.destination_port);
        let echo_reply = u32::from(header.kind == Kind::EchoReply);
        maps.keep_fragment(&key, &FragmentPorts { source_port, destination_port, echo_reply });
        return;
    }
    if let Some(ports) = maps.fragment(&key) {
        header.source_port = ports.source_port;
        header.destination_port = ports.destination_port;
        header.kind = if ports.echo_reply == 1 { Kind::EchoReply } else { Kind::Ports };
    }
}
