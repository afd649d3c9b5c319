//! IPv4 TCP frames as the wrapper programs restore them. Pure.

use sluice_ebpf_common::bench::Round;

/// Offsets of what differs between flows.
const SOURCE: usize = 26;
const DESTINATION: usize = 30;
const PORTS: usize = 34;
const TCP: u8 = 6;
const ETHERNET: usize = 14;
const IP: usize = 20;

/// TCP flags.
pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;

/// A frame from some client to one destination.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// The first client's address.
    pub(super) client: [u8; 4],
    pub(super) destination: [u8; 4],
    pub(super) port: u16,
}

impl Frame {
    /// The bytes of the first client's packet; its transport checksum is not right, as no program looks at it.
    pub(super) fn bytes(&self, flags: u8) -> Vec<u8> {
        let mut bytes = vec![0; Round::RESTORED];
        bytes[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        bytes[12..14].copy_from_slice(&[8, 0]);
        bytes[ETHERNET] = 0x45;
        #[expect(clippy::cast_possible_truncation)]
        let length = (bytes.len() - ETHERNET) as u16;
        bytes[16..18].copy_from_slice(&length.to_be_bytes());
        bytes[22..24].copy_from_slice(&[64, TCP]);
        bytes[SOURCE..DESTINATION].copy_from_slice(&self.client);
        bytes[DESTINATION..PORTS].copy_from_slice(&self.destination);
        let sum = checksum(&bytes[ETHERNET..ETHERNET + IP]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        bytes[PORTS..PORTS + 2].copy_from_slice(&Round::FIRST_PORT.to_be_bytes());
        bytes[PORTS + 2..PORTS + 4].copy_from_slice(&self.port.to_be_bytes());
        bytes[46..48].copy_from_slice(&[0x50, flags]);
        bytes
    }

    /// What the wrapper restores before each run, with flows by `mask`.
    pub(super) fn round(&self, flags: u8, mask: u32) -> Round {
        let padded = [&[0; Round::PAD], self.bytes(flags).as_slice()].concat();
        let mut template = [0; Round::WORDS];
        for (word, bytes) in template.iter_mut().zip(padded.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let word = |offset: usize| u32::try_from((offset + Round::PAD) / 4).unwrap_or_default();
        Round {
            template,
            length: u32::try_from(Round::RESTORED).unwrap_or_default(),
            address: word(SOURCE),
            ports: word(PORTS),
            first: u32::from_be_bytes(self.client),
            mask,
            random: 0,
            next: 0,
            mark: 0,
        }
    }
}

/// Source and destination address of a frame.
pub(super) fn ends(frame: &[u8]) -> Option<([u8; 4], [u8; 4])> {
    Some((frame.get(SOURCE..DESTINATION)?.try_into().ok()?, frame.get(DESTINATION..PORTS)?.try_into().ok()?))
}

fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks_exact(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation)]
    let sum = sum as u16;
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame { client: [198, 18, 0, 0], destination: [10, 1, 0, 1], port: 30080 };

    #[test]
    fn the_template_is_the_frame_after_two_bytes() {
        let round = FRAME.round(SYN, 0);
        let bytes: Vec<u8> = round.template.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes[Round::PAD..], FRAME.bytes(SYN));
        assert_eq!(round.template[round.address as usize].to_ne_bytes(), FRAME.client);
        assert_eq!(round.template[round.ports as usize].to_ne_bytes()[..2], Round::FIRST_PORT.to_be_bytes());
        assert_eq!(ends(&FRAME.bytes(ACK)), Some((FRAME.client, FRAME.destination)));
    }

    #[test]
    fn the_ip_header_sums_up() {
        let bytes = FRAME.bytes(ACK);
        assert_eq!(checksum(&bytes[ETHERNET..ETHERNET + IP]), 0);
    }
}
