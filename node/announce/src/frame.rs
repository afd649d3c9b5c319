//! Ethernet frames of ARP (RFC 826) and neighbour discovery (RFC 4861), written and read. Pure; reads nothing beyond a
//! frame's end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ETHERNET: usize = 14;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Target link-layer address, and source link-layer address.
const TARGET_OPTION: u8 = 2;
const SOURCE_OPTION: u8 = 1;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// This address is at this place.
    pub(crate) tells: Option<(IpAddr, Mac)>,
    /// Where is this address?
    pub(crate) asks: Option<Question>,
}

/// A question for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) target: IpAddr,
    /// Who asks; nobody yet has the address of one that looks whether it is free.
    pub(crate) asker: Option<IpAddr>,
    pub(crate) mac: Mac,
}

/// Reads a frame; `None` for everything that is neither.
pub(crate) fn read(frame: &[u8]) -> Option<Message> {
    let (header, body) = frame.split_at_checked(ETHERNET)?;
    let source: Mac = header[6..12].try_into().ok()?;
    match u16::from_be_bytes([header[12], header[13]]) {
        ARP => read_arp(body),
        IPV6 => read_discovery(body, source),
        _ => None,
    }
}

fn read_arp(body: &[u8]) -> Option<Message> {
    let body = body.first_chunk::<28>()?;
    // Ethernet and IPv4, with addresses of six and four bytes.
    if body[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let operation = u16::from_be_bytes([body[6], body[7]]);
    let mac: Mac = body[8..14].try_into().ok()?;
    let address = |at: usize| Ipv4Addr::new(body[at], body[at + 1], body[at + 2], body[at + 3]);
    let (sender, target) = (address(14), address(24));
    let tells = (!sender.is_unspecified()).then_some((IpAddr::V4(sender), mac));
    let asker = tells.map(|(address, _)| address);
    let asks = operation == 1 && sender != target;
    Some(Message { tells, asks: asks.then_some(Question { target: target.into(), asker, mac }) })
}

fn read_discovery(body: &[u8], source_mac: Mac) -> Option<Message> {
    let (header, rest) = body.split_at_checked(40)?;
    let message = rest.first_chunk::<24>()?;
    // Only from this link: routers lower the hop limit.
    if header[6] != ICMPV6 || header[7] != 255 || message[1] != 0 {
        return None;
    }
    let address = |bytes: &[u8]| bytes.try_into().map(|octets: [u8; 16]| Ipv6Addr::from(octets)).ok();
    let (source, target) = (address(&header[8..24])?, address(&message[8..24])?);
    match message[0] {
        SOLICITATION => {
            let asker = (!source.is_unspecified()).then_some(IpAddr::V6(source));
            let question = Question { target: target.into(), asker, mac: source_mac };
            Some(Message { tells: asker.map(|asker| (asker, source_mac)), asks: Some(question) })
        }
        ADVERTISEMENT => Some(Message { tells: Some((target.into(), source_mac)), asks: None }),
        _ => None,
    }
}

/// Asks who has `target`, in the name of an address that the link has: everybody, or one place alone.
pub(crate) fn question(mac: Mac, own: IpAddr, target: IpAddr, place: Option<Mac>) -> Option<Vec<u8>> {
    Some(match (own, target) {
        (IpAddr::V4(own), IpAddr::V4(target)) => arp(1, mac, own, place.unwrap_or(BROADCAST), [0; 6], target),
        (IpAddr::V6(own), IpAddr::V6(target)) => {
            // To the group even for one place: its kernel does not have the address and would send the packet on.
            let group = solicited_node(target);
            let to = (place.unwrap_or(multicast_mac(group)), group);
            discovery(SOLICITATION, 0, (mac, own), to, target, SOURCE_OPTION)
        }
        _ => return None,
    })
}

/// Says that `question`'s target is here.
pub(crate) fn answer(mac: Mac, question: &Question) -> Option<Vec<u8>> {
    Some(match (question.target, question.asker) {
        (IpAddr::V4(target), Some(IpAddr::V4(asker))) => arp(2, mac, target, question.mac, question.mac, asker),
        // Somebody looks whether the address is free (RFC 5227): it is not.
        (IpAddr::V4(target), None) => arp(2, mac, target, question.mac, question.mac, Ipv4Addr::UNSPECIFIED),
        (IpAddr::V6(target), Some(IpAddr::V6(asker))) => {
            let to = (question.mac, asker);
            discovery(ADVERTISEMENT, SOLICITED | OVERRIDE, (mac, target), to, target, TARGET_OPTION)
        }
        (IpAddr::V6(_), None) => return Some(claim(mac, question.target)),
        _ => return None,
    })
}

/// Tells the whole link that an address is here: an ARP announcement, or an unsolicited advertisement.
pub(crate) fn claim(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(1, mac, address, BROADCAST, [0; 6], address),
        IpAddr::V6(address) => {
            let to = (multicast_mac(ALL_NODES), ALL_NODES);
            discovery(ADVERTISEMENT, OVERRIDE, (mac, address), to, address, TARGET_OPTION)
        }
    }
}

/// The group that those who ask for an address send to.
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let octets = address.octets();
    let tail = u16::from_be_bytes([octets[14], octets[15]]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(octets[13]), tail)
}

fn multicast_mac(group: Ipv6Addr) -> Mac {
    let octets = group.octets();
    [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + 72);
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame
}

fn arp(operation: u8, mac: Mac, sender: Ipv4Addr, to: Mac, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(to, mac, ARP);
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&sender.octets());
    frame.extend_from_slice(&target_mac);
    frame.extend_from_slice(&target.octets());
    frame
}

fn discovery(
    kind: u8,
    flags: u8,
    (mac, source): (Mac, Ipv6Addr),
    (to_mac, to): (Mac, Ipv6Addr),
    target: Ipv6Addr,
    option: u8,
) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[option, 1]);
    message.extend_from_slice(&mac);
    let sum = checksum(source, to, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(to_mac, mac, IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    frame.extend_from_slice(&source.octets());
    frame.extend_from_slice(&to.octets());
    frame.extend_from_slice(&message);
    frame
}

/// ICMPv6's: over the addresses, length and protocol, and the message.
fn checksum(source: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
    };
    let mut sum = words(&source.octets()) + words(&to.octets()) + message.len() as u32 + u32::from(ICMPV6);
    sum += words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const HERE: Mac = [2, 0, 0, 0, 0, 1];
    const THERE: Mac = [2, 0, 0, 0, 0, 2];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_question_is_answered() {
        for (own, target) in [("192.0.2.1", "192.0.2.7"), ("2001:db8::1", "2001:db8::12:3456")] {
            let heard = read(&question(THERE, ip(own), ip(target), None).unwrap()).unwrap();
            assert_eq!(heard.tells, Some((ip(own), THERE)));
            let asked = heard.asks.unwrap();
            assert_eq!((asked.target, asked.asker, asked.mac), (ip(target), Some(ip(own)), THERE));
            let reply = answer(HERE, &asked).unwrap();
            assert_eq!(reply[..6], THERE, "to who asked alone");
            assert_eq!(read(&reply), Some(Message { tells: Some((ip(target), HERE)), asks: None }));
        }
        assert_eq!(question(HERE, ip("192.0.2.1"), ip("2001:db8::1"), None), None);
        for (own, target) in [("192.0.2.1", "192.0.2.7"), ("2001:db8::1", "2001:db8::7")] {
            let frame = question(HERE, ip(own), ip(target), Some(THERE)).unwrap();
            assert_eq!(frame[..6], THERE);
            assert_eq!(read(&frame), read(&question(HERE, ip(own), ip(target), None).unwrap()));
        }
    }

    #[test]
    fn a_claim_goes_to_everybody_and_asks_nothing() {
        let claimed = |address: &str| (ip(address), claim(HERE, ip(address)));
        for ((address, frame), to) in
            [(claimed("192.0.2.7"), BROADCAST), (claimed("2001:db8::7"), [0x33, 0x33, 0, 0, 0, 1])]
        {
            assert_eq!(frame[..6], to);
            assert_eq!(read(&frame), Some(Message { tells: Some((address, HERE)), asks: None }));
        }
    }

    #[test]
    fn who_looks_whether_an_address_is_free_learns_that_it_is_not() {
        let probe = arp(1, THERE, Ipv4Addr::UNSPECIFIED, BROADCAST, [0; 6], Ipv4Addr::new(192, 0, 2, 7));
        let asked = read(&probe).unwrap();
        assert_eq!(asked.tells, None);
        let reply = answer(HERE, &asked.asks.unwrap()).unwrap();
        assert_eq!(read(&reply).unwrap().tells, Some((ip("192.0.2.7"), HERE)));
        let asked = Question { target: ip("2001:db8::7"), asker: None, mac: THERE };
        assert_eq!(answer(HERE, &asked), Some(claim(HERE, ip("2001:db8::7"))));
    }

    #[test]
    fn the_checksum_is_right() {
        let frame = claim(HERE, ip("2001:db8::7"));
        let (source, to) = ("2001:db8::7".parse().unwrap(), ALL_NODES);
        // Summed with itself in place a right one gives zero.
        assert_eq!(checksum(source, to, &frame[54..]), 0);
        let mut wrong = frame[54..].to_vec();
        wrong[20] ^= 1;
        assert_ne!(checksum(source, to, &wrong), 0);
    }

    #[test]
    fn groups_and_their_ethernet_addresses() {
        let group = solicited_node("2001:db8::12:3456".parse().unwrap());
        assert_eq!(group.to_string(), "ff02::1:ff12:3456");
        assert_eq!(multicast_mac(group), [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn messages_that_came_through_a_router_are_not_heard() {
        let mut frame = claim(HERE, ip("2001:db8::7"));
        frame[ETHERNET + 7] = 254;
        assert_eq!(read(&frame), None);
    }

    proptest! {
        #[test]
        fn no_frame_is_too_odd(frame in prop::collection::vec(any::<u8>(), 0..128), kind in 0..3usize, cut in 0..96usize) {
            let _ = read(&frame);
            let good = [
                question(HERE, ip("192.0.2.1"), ip("192.0.2.7"), None).unwrap(),
                question(HERE, ip("2001:db8::1"), ip("2001:db8::7"), None).unwrap(),
                claim(HERE, ip("2001:db8::7")),
            ];
            let mut mixed = good[kind][..cut.min(good[kind].len())].to_vec();
            mixed.extend(frame);
            let _ = read(&mixed);
        }
    }
}
