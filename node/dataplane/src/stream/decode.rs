//! What the programs tell, as events. Pure: names are asked for, the bytes come from the ring.

use std::net::IpAddr;

use sluice_ebpf_common::stream::{Told, ToldLost};
use sluice_ebpf_common::{Address, Allowed, FlowKind, Reason, protocol};

use super::event::{Figures, FlowEvent, Party, Seen, Step};
use crate::flows::{End, end, protocol_name};
use crate::lost;

/// Who has an address, and which Service a number or address is.
pub(crate) trait Names {
    /// This node.
    fn node(&self) -> &str;
    /// The pod with an address.
    fn pod(&self, address: IpAddr) -> Option<String>;
    /// The pod behind a link.
    fn link(&self, link: u32) -> Option<String>;
    /// The Service port with a number.
    fn service(&self, id: u32) -> Option<String>;
    /// The Service port that is asked for at an address; the port is in network order.
    fn service_at(&self, address: &Address, port: u16, protocol: u8) -> Option<String>;
}

/// An end of a connection by address.
pub(crate) fn party(names: &impl Names, end: End) -> Party {
    Party { end, pod: names.pod(end.address) }
}

/// As [`party`], of the pod behind a link where no pod is known by the address.
fn own(names: &impl Names, end: End, link: u32) -> Party {
    let mut party = party(names, end);
    if party.pod.is_none() && link != 0 {
        party.pod = names.link(link);
    }
    party
}

/// A number that has no name here is written as it is.
fn protocol_text(number: u8) -> String {
    match number {
        protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMP6 => {
            protocol_name(number).to_owned()
        }
        number => number.to_string(),
    }
}

fn reason(number: u16) -> Option<Reason> {
    Reason::ALL.get(usize::from(number)).copied()
}

fn with_reason(mut event: FlowEvent, number: u16) -> FlowEvent {
    let reason = reason(number);
    event.reason = reason.map(|reason| reason.name().to_owned());
    event.text = reason.map(|reason| reason.text().to_owned());
    event
}

/// A connection or a verdict.
pub(crate) fn told(told: &Told, names: &impl Names) -> Option<FlowEvent> {
    let (source, destination) =
        (end(&told.ends.source, told.ends.source_port), end(&told.ends.destination, told.ends.destination_port));
    let step = match told.kind {
        Told::FLOW | Told::OPENED | Told::ACCEPTED | Told::DATAGRAMS => Step::First,
        Told::FAILED => Step::Failed,
        Told::CLOSED => Step::Last,
        Told::ALLOWED => Step::Allowed,
        Told::REFUSED => Step::Refused,
        _ => return None,
    };
    let mut event = FlowEvent {
        protocol: Some(protocol_text(told.ends.protocol)),
        seen_by: Some(Seen::Packets),
        ..FlowEvent::new(names.node(), step)
    };
    match told.kind {
        Told::FLOW => {
            event.source = Some(party(names, source));
            event.destination = Some(party(names, destination));
            let to = end(&told.address, told.port);
            if told.ends.kind == FlowKind::Service as u8 {
                event.service = names.service(told.service);
                event.backend = Some(party(names, to));
            } else {
                event.leaves_as = Some(to);
            }
        }
        Told::ALLOWED if told.flags == Allowed::BY_PEER as u16 => {
            event.source = Some(party(names, destination));
            event.destination = Some(own(names, source, told.link));
        }
        Told::ALLOWED => {
            event.source = Some(own(names, source, told.link));
            event.destination = Some(party(names, destination));
        }
        Told::REFUSED => {
            event = with_reason(event, told.reason);
            event.seen_by = Some(Seen::Client);
            event.source = Some(own(names, source, told.link));
            event.destination = Some(party(names, destination));
            event.service = names.service_at(&told.ends.destination, told.ends.destination_port, told.ends.protocol);
        }
        _ => socket(&mut event, told, names, [source, destination]),
    }
    Some(event)
}

/// The own end of a socket is the source of what is told.
fn socket(event: &mut FlowEvent, told: &Told, names: &impl Names, [here, there]: [End; 2]) {
    let took = Some(told.took).filter(|took| *took != 0);
    let (here, there) = (own(names, here, told.link), party(names, there));
    let opened = opener(told);
    let carried = if told.kind == Told::CLOSED { Some((told.sent, told.received)) } else { None };
    let (from_client, to_client) = match carried {
        Some((sent, received)) if opened => (Some(sent), Some(received)),
        Some((sent, received)) => (Some(received), Some(sent)),
        None => (None, None),
    };
    event.figures = Figures { bytes: from_client, answer_bytes: to_client, ..Figures::default() };
    match told.kind {
        Told::OPENED => event.figures.connect_microseconds = Some(told.took),
        Told::CLOSED => event.figures.round_trip_microseconds = took,
        _ => {}
    }
    if !opened {
        event.seen_by = Some(Seen::Server);
        (event.source, event.destination) = (Some(there), Some(here));
        return;
    }
    event.seen_by = Some(Seen::Client);
    event.source = Some(here);
    if told.port == 0 {
        event.destination = Some(there);
        return;
    }
    event.destination = Some(party(names, end(&told.address, told.port)));
    event.service = names.service_at(&told.address, told.port, told.ends.protocol);
    event.backend = Some(there);
}

/// Did the socket open the connection?
pub(crate) fn opener(told: &Told) -> bool {
    match told.kind {
        Told::ACCEPTED => false,
        Told::CLOSED => told.flags & Told::OPENER != 0,
        _ => true,
    }
}

/// A packet that was lost, or that was answered as nobody else does.
pub(crate) fn lost(told: &ToldLost, names: &impl Names) -> FlowEvent {
    let head = &told.head[..ToldLost::HEAD.min(told.length as usize)];
    let (mut event, ends) = if told.kind == Told::LOST_BY_KERNEL {
        let mut event = FlowEvent::new(names.node(), Step::Drop);
        let (reason, text) = lost::by_number(told.reason);
        (event.reason, event.text, event.seen_by) = (Some(reason), Some(text), Some(Seen::Kernel));
        (event, packet_ends(head))
    } else {
        let refused = reason(told.reason) == Some(Reason::NoEndpoint);
        let event = FlowEvent::new(names.node(), if refused { Step::Refused } else { Step::Drop });
        (FlowEvent { seen_by: Some(Seen::Packets), ..with_reason(event, told.reason) }, frame_ends(head))
    };
    event.figures.bytes = Some(told.bytes.into());
    if let Some(ends) = ends {
        event.protocol = Some(protocol_text(ends.protocol));
        event.service = names.service_at(&ends.destination, ends.ports[1], ends.protocol);
        event.source = Some(inside(names, end(&ends.source, ends.ports[0]), told.link));
        event.destination = Some(inside(names, end(&ends.destination, ends.ports[1]), told.link));
    }
    event
}

/// As [`party`]; a loopback address in a pod is the pod's.
fn inside(names: &impl Names, end: End, link: u32) -> Party {
    if end.address.is_loopback() { own(names, end, link) } else { party(names, end) }
}

/// Both ends of a packet.
#[derive(Debug, PartialEq, Eq)]
struct Ends {
    source: Address,
    destination: Address,
    /// Network order; 0 where they cannot be seen.
    ports: [u16; 2],
    protocol: u8,
}

/// Reads the ends from a frame's first bytes; `None` when it is not of IP.
fn frame_ends(frame: &[u8]) -> Option<Ends> {
    const ETHERNET: usize = 14;
    match frame.get(12..ETHERNET)? {
        [0x08, 0x00] | [0x86, 0xdd] => packet_ends(&frame[ETHERNET..]),
        _ => None,
    }
}

/// Reads the ends from a packet's first bytes.
fn packet_ends(packet: &[u8]) -> Option<Ends> {
    let word = |at: usize| Some(u32::from_ne_bytes(packet.get(at..at + 4)?.try_into().ok()?));
    match packet.first()? >> 4 {
        4 => {
            let start = usize::from(*packet.first()?);
            let protocol = *packet.get(9)?;
            let part = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?);
            let later = part & 0x1fff != 0;
            let (source, destination) = (Address::v4(word(12)?), Address::v4(word(16)?));
            let ports = if later { [0; 2] } else { ports(packet, (start & 15) * 4, protocol) };
            Some(Ends { source, destination, ports, protocol })
        }
        6 => {
            let address =
                |at: usize| Some(Address { words: [word(at)?, word(at + 4)?, word(at + 8)?, word(at + 12)?] });
            let protocol = *packet.get(6)?;
            let (source, destination) = (address(8)?, address(24)?);
            Some(Ends { source, destination, ports: ports(packet, 40, protocol), protocol })
        }
        _ => None,
    }
}

fn ports(packet: &[u8], at: usize, number: u8) -> [u16; 2] {
    if !matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return [0; 2];
    }
    let port = |at: usize| Some(u16::from_ne_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    [port(at).unwrap_or(0), port(at + 2).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::SocketAddr;

    use sluice_ebpf_common::FlowKey;

    use super::*;
    use crate::range::wire;

    struct Book;

    impl Names for Book {
        fn node(&self) -> &str {
            "here"
        }
        fn pod(&self, address: IpAddr) -> Option<String> {
            (address == IpAddr::from([10, 244, 0, 5])).then(|| "shop/web-1".to_owned())
        }
        fn link(&self, link: u32) -> Option<String> {
            Some(format!("shop/link-{link}"))
        }
        fn service(&self, id: u32) -> Option<String> {
            Some(format!("shop/web:{id}"))
        }
        fn service_at(&self, address: &Address, port: u16, _: u8) -> Option<String> {
            (*address == wire([10, 96, 0, 10])).then(|| format!("shop/web:{}", u16::from_be(port)))
        }
    }

    fn place(text: &str) -> (Address, u16) {
        let at: SocketAddr = text.parse().unwrap();
        (wire(at.ip()), at.port().to_be())
    }

    fn event(kind: u16, from: &str, to: &str, more: Told) -> FlowEvent {
        let ((source, source_port), (destination, destination_port)) = (place(from), place(to));
        let ends = FlowKey { source, destination, source_port, destination_port, protocol: 6, ..more.ends };
        told(&Told { kind, ends, ..more }, &Book).unwrap()
    }

    /// As `step seen source(pod) > destination(pod) service > backend`.
    fn said(event: &FlowEvent) -> String {
        let party = |party: &Option<Party>| {
            let party = party.as_ref()?;
            let pod = party.pod.as_ref().map(|pod| format!("({pod})")).unwrap_or_default();
            Some(format!("{}{pod}", SocketAddr::new(party.end.address, party.end.port)))
        };
        let seen = format!("{:?}", event.seen_by.unwrap()).to_lowercase();
        let mut text = format!("{} {seen}", event.event.name());
        text += &format!(" {} > {}", party(&event.source).unwrap(), party(&event.destination).unwrap());
        text += &event.service.as_ref().map(|service| format!(" {service}")).unwrap_or_default();
        text + &party(&event.backend).map(|backend| format!(" > {backend}")).unwrap_or_default()
    }

    #[test]
    fn a_connection_is_told_from_who_opened_it() {
        let (web, far, cluster) = ("10.244.0.5:4000", "192.0.2.9:80", place("10.96.0.10:80"));
        let asked = Told { address: cluster.0, port: cluster.1, link: 7, ..Told::default() };
        let by_peer = Told { flags: Allowed::BY_PEER as u16, ..Told::default() };
        let backend = place("10.244.0.5:8080");
        let served = Told { address: backend.0, port: backend.1, service: 3, ..Told::default() };
        let opener = Told { flags: Told::OPENER, ..Told::default() };
        let cases = [
            (
                Told::FLOW,
                far,
                "10.1.0.1:30080",
                served,
                "first packets 192.0.2.9:80 > 10.1.0.1:30080 shop/web:3 > 10.244.0.5:8080(shop/web-1)",
            ),
            (
                Told::OPENED,
                web,
                far,
                asked,
                "first client 10.244.0.5:4000(shop/web-1) > 10.96.0.10:80 shop/web:80 > 192.0.2.9:80",
            ),
            (
                Told::OPENED,
                "10.244.0.9:1",
                far,
                Told { link: 7, ..Told::default() },
                "first client 10.244.0.9:1(shop/link-7) > 192.0.2.9:80",
            ),
            (
                Told::DATAGRAMS,
                "0.0.0.0:0",
                far,
                asked,
                "first client 0.0.0.0:0(shop/link-7) > 10.96.0.10:80 shop/web:80 > 192.0.2.9:80",
            ),
            (Told::ACCEPTED, web, far, Told::default(), "first server 192.0.2.9:80 > 10.244.0.5:4000(shop/web-1)"),
            (Told::FAILED, web, far, Told::default(), "failed client 10.244.0.5:4000(shop/web-1) > 192.0.2.9:80"),
            (Told::CLOSED, web, far, opener, "last client 10.244.0.5:4000(shop/web-1) > 192.0.2.9:80"),
            (Told::CLOSED, web, far, Told::default(), "last server 192.0.2.9:80 > 10.244.0.5:4000(shop/web-1)"),
            (Told::ALLOWED, web, far, Told::default(), "allowed packets 10.244.0.5:4000(shop/web-1) > 192.0.2.9:80"),
            (Told::ALLOWED, web, far, by_peer, "allowed packets 192.0.2.9:80 > 10.244.0.5:4000(shop/web-1)"),
            (
                Told::REFUSED,
                "0.0.0.0:0",
                "10.96.0.10:80",
                Told { link: 7, ..Told::default() },
                "refused client 0.0.0.0:0(shop/link-7) > 10.96.0.10:80 shop/web:80",
            ),
        ];
        for (kind, from, to, more, expected) in cases {
            assert_eq!(said(&event(kind, from, to, more)), expected);
        }
        assert_eq!(told(&Told { kind: 99, ..Told::default() }, &Book), None);
    }

    #[test]
    fn what_was_carried_is_told_as_the_client_sees_it() {
        let carried = Told { sent: 10, received: 900, took: 44, ..Told::default() };
        for (flags, expected) in [(Told::OPENER, [Some(10), Some(900)]), (0, [Some(900), Some(10)])] {
            let last = event(Told::CLOSED, "10.244.0.5:1", "192.0.2.9:80", Told { flags, ..carried });
            assert_eq!([last.figures.bytes, last.figures.answer_bytes], expected);
            assert_eq!(last.figures.round_trip_microseconds, Some(44));
        }
        let first = event(Told::OPENED, "10.244.0.5:1", "192.0.2.9:80", Told { took: 120, ..Told::default() });
        assert_eq!(first.figures, Figures { connect_microseconds: Some(120), ..Figures::default() });
    }

    fn frame(hex: &[(usize, &[u8])], length: usize) -> ToldLost {
        let mut head = [0; ToldLost::HEAD];
        for (at, bytes) in hex {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        let reason = Reason::PolicyIngress as u16;
        ToldLost { kind: Told::LOST, reason, link: 4, length: length as u32, bytes: 1000, head }
    }

    #[test]
    fn a_lost_packet_is_told_by_its_headers_alone() {
        let four: &[(usize, &[u8])] =
            &[(12, &[8, 0, 0x46]), (23, &[17]), (26, &[10, 244, 0, 5, 192, 0, 2, 9]), (38, &[0, 53, 0x1f, 0x90])];
        let six: &[(usize, &[u8])] =
            &[(12, &[0x86, 0xdd, 0x60]), (20, &[6]), (37, &[1]), (53, &[2]), (54, &[0, 7, 0, 8])];
        let later: &[(usize, &[u8])] = &[(12, &[8, 0, 0x45]), (20, &[0, 9]), (23, &[6]), (34, &[1, 1, 1, 1])];
        let cases = [
            (frame(four, 96), Some("drop packets 10.244.0.5:53(shop/web-1) > 192.0.2.9:8080")),
            (frame(six, 96), Some("drop packets [::1]:7(shop/link-4) > [::2]:8")),
            (frame(later, 96), Some("drop packets 0.0.0.0:0 > 0.0.0.0:0")),
            // Cut before the ports; before the addresses; nothing of it.
            (frame(four, 40), Some("drop packets 10.244.0.5:53(shop/web-1) > 192.0.2.9:0")),
            (frame(four, 33), None),
            (frame(&[], 0), None),
        ];
        for (told, expected) in cases {
            let event = lost(&told, &Book);
            let text = event.source.is_some().then(|| said(&event));
            assert_eq!(text.as_deref(), expected);
            assert_eq!(event.reason.as_deref(), Some("PolicyIngress"));
            assert_eq!(event.figures.bytes, Some(1000));
        }
        // The kernel's begin at the IP header.
        let packet: Vec<(usize, &[u8])> =
            four.iter().map(|(at, bytes)| (at.saturating_sub(14), &bytes[if *at < 14 { 2 } else { 0 }..])).collect();
        let told = ToldLost { kind: Told::LOST_BY_KERNEL, reason: 255, ..frame(&packet, 28) };
        let event = lost(&told, &Book);
        assert_eq!(said(&event), "drop kernel 10.244.0.5:53(shop/web-1) > 192.0.2.9:8080");
        assert_eq!(event.reason.as_deref(), Some("SUBSYSTEM"));
        let nobody = ToldLost { reason: Reason::NoEndpoint as u16, ..frame(four, 96) };
        assert_eq!(lost(&nobody, &Book).event, Step::Refused);
    }
}
