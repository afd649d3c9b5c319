//! Does a socket of this node take what comes to an address and port? By the kernel's own lists.

use std::net::IpAddr;

use crate::End;
use crate::model::Protocol;

/// State of a listening TCP socket, and of a UDP socket without a peer.
const LISTENS: &str = "0A";
const UNCONNECTED: &str = "07";

/// `None` where the kernel's lists do not say.
pub(super) fn listens(to: End, protocol: Protocol) -> Option<bool> {
    let (name, state) = match protocol {
        Protocol::Tcp => ("tcp", LISTENS),
        Protocol::Udp => ("udp", UNCONNECTED),
        Protocol::Sctp => return None,
    };
    let read = |family: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}{family}"));
    let own = if to.address.is_ipv4() { read("").ok()? } else { String::new() };
    // A machine without IPv6 has no such list.
    let both = read("6").unwrap_or_default();
    Some(takes(&own, to, state) || takes(&both, to, state))
}

fn takes(list: &str, to: End, state: &str) -> bool {
    list.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().and_then(end);
        let found = words.nth(1) == Some(state);
        // A socket on every IPv6 address hears IPv4, too.
        found
            && local.is_some_and(|(address, port)| {
                port == to.port && (address.is_unspecified() || address.to_canonical() == to.address)
            })
    })
}

/// `0100007F:1F90`: words as they stand in memory.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::from(word(0)?),
        _ => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let mut octets = [0; 16];
            octets.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word));
            IpAddr::from(octets)
        }
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn who_listens_takes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let datagrams = UdpSocket::bind("[::]:0").unwrap();
        let (tcp, udp) = (listener.local_addr().unwrap().port(), datagrams.local_addr().unwrap().port());
        let cases = [
            ("127.0.0.1", tcp, Protocol::Tcp, true),
            ("127.0.0.2", tcp, Protocol::Tcp, false),
            ("::1", tcp, Protocol::Tcp, false),
            ("127.0.0.2", udp, Protocol::Udp, true),
            ("::1", udp, Protocol::Udp, true),
        ];
        for (address, port, protocol, expected) in cases {
            let to = End { address: address.parse().unwrap(), port };
            assert_eq!(listens(to, protocol), Some(expected), "{address} {protocol:?}");
        }
        assert_eq!(listens(End { address: "::1".parse().unwrap(), port: 9 }, Protocol::Sctp), None);
    }
}
