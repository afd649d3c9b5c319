//! Plain packets of both versions of IP, whose headers stand at constant offsets: how they are read, and rewritten by a record
//! of the flow cache.

use sluice_ebpf_common::cache::{Bucket, Bucket4, Bucket6, Record};
use sluice_ebpf_common::{Address, protocol};

use crate::cache::Fast;
use crate::header::ETHERNET;
use crate::plain::{FRAGMENT, PLAIN_4, PLAIN_6, VERSION_4, VERSION_6};
use crate::{Bytes, Raw, encap};

/// What a plain packet's headers say.
#[derive(Clone, Copy)]
pub(crate) struct Plain<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) ports: u32,
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
    /// Length of the IP packet.
    pub(crate) length: u16,
    /// The first word of the IP header.
    pub(crate) start: u32,
    /// The word that holds the time to live.
    pub(crate) life: u32,
}

/// What differs between IPv4 and IPv6.
pub(crate) trait Family {
    type Address: Copy;
    type Spare: Copy + Default;
    /// Its part of the cache's buckets, as a shift: the larger a record, the fewer there are.
    const SHARE: u32;
    /// Offset of the transport header.
    const TRANSPORT: u32;
    fn bucket<M: Fast, R>(
        maps: &M,
        index: u32,
        with: impl FnOnce(&mut Bucket<Self::Address, Self::Spare>) -> R,
    ) -> Option<R>;
    fn parse<P: Bytes>(packet: &P) -> Option<Plain<Self::Address>>;
    fn widen(address: &Self::Address) -> Address;
    fn narrow(address: &Address) -> Self::Address;
    /// Nothing in common: 0 when they are the same.
    fn differ(one: &Self::Address, other: &Self::Address) -> u32;
    /// The sum of what changes between two addresses, not folded.
    fn change(from: &Self::Address, to: &Self::Address) -> u64;
    fn mix(address: &Self::Address) -> u32;
    fn life(word: u32) -> u8;
    /// Writes both addresses, and one hop less when the packet is sent on.
    fn write<P: Raw>(
        packet: &mut P,
        plain: &Plain<Self::Address>,
        record: &Record<Self::Address, Self::Spare>,
        hop: bool,
    ) -> Option<()>;
    /// What the outer header's checksum comes to, but for what differs between packets.
    fn rest(record: &Record<Self::Address, Self::Spare>) -> u16;
    /// Takes one hop off and puts the packet into another one.
    fn encapsulate<P: Raw>(
        packet: &mut P,
        plain: &Plain<Self::Address>,
        record: &Record<Self::Address, Self::Spare>,
    ) -> Option<()>;
}

pub(crate) struct V4;
pub(crate) struct V6;

/// Where the IP header begins.
pub(crate) const IP: u32 = ETHERNET;

impl Family for V4 {
    type Address = u32;
    type Spare = [u32; 0];
    const SHARE: u32 = 0;
    const TRANSPORT: u32 = IP + 20;

    #[inline(always)]
    fn bucket<M: Fast, R>(maps: &M, index: u32, with: impl FnOnce(&mut Bucket4) -> R) -> Option<R> {
        maps.bucket4(index, with)
    }

    #[inline(always)]
    fn parse<P: Bytes>(packet: &P) -> Option<Plain<u32>> {
        let [start, fragment, life, source, destination, ports] = packet.read_words::<6>(IP)?;
        let [_, protocol, ..] = life.to_ne_bytes();
        if start & VERSION_4 != PLAIN_4 || fragment & FRAGMENT != 0 {
            return None;
        }
        let tcp_flags = flags::<V4, P>(packet, protocol)?;
        let length = u32::from_be(start) as u16;
        Some(Plain { source, destination, ports, protocol, tcp_flags, length, start, life })
    }

    #[inline(always)]
    fn widen(address: &u32) -> Address {
        Address::v4(*address)
    }

    #[inline(always)]
    fn narrow(address: &Address) -> u32 {
        address.last()
    }

    #[inline(always)]
    fn differ(one: &u32, other: &u32) -> u32 {
        one ^ other
    }

    #[inline(always)]
    fn change(from: &u32, to: &u32) -> u64 {
        u64::from(!*from) + u64::from(*to)
    }

    #[inline(always)]
    fn mix(address: &u32) -> u32 {
        *address
    }

    #[inline(always)]
    fn life(word: u32) -> u8 {
        word.to_ne_bytes()[0]
    }

    #[inline(always)]
    fn write<P: Raw>(packet: &mut P, plain: &Plain<u32>, record: &Record<u32, [u32; 0]>, hop: bool) -> Option<()> {
        let [was, protocol, high, low] = plain.life.to_ne_bytes();
        let life = if hop { was.wrapping_sub(1) } else { was };
        let old = u64::from(u16::from_ne_bytes([high, low]));
        let total = (!old & 0xffff)
            + V4::change(&plain.source, &record.new_source)
            + V4::change(&plain.destination, &record.new_destination)
            + u64::from(!u16::from_ne_bytes([was, protocol]))
            + u64::from(u16::from_ne_bytes([life, protocol]));
        let [high, low] = (!fold(total)).to_ne_bytes();
        let word = u32::from_ne_bytes([life, protocol, high, low]);
        packet.write_ends(IP + 8, [word, record.new_source, record.new_destination, record.new_ports])
    }

    #[inline(always)]
    fn rest(record: &Record<u32, [u32; 0]>) -> u16 {
        encap::rest_of(record)
    }

    #[inline(always)]
    fn encapsulate<P: Raw>(packet: &mut P, plain: &Plain<u32>, record: &Record<u32, [u32; 0]>) -> Option<()> {
        encap::carry_v4(packet, plain, record)
    }
}

impl Family for V6 {
    type Address = [u32; 4];
    type Spare = [u32; 4];
    const SHARE: u32 = 1;
    const TRANSPORT: u32 = IP + 40;

    #[inline(always)]
    fn bucket<M: Fast, R>(maps: &M, index: u32, with: impl FnOnce(&mut Bucket6) -> R) -> Option<R> {
        maps.bucket6(index, with)
    }

    #[inline(always)]
    fn parse<P: Bytes>(packet: &P) -> Option<Plain<[u32; 4]>> {
        let words = packet.read_words::<11>(IP)?;
        let [length_high, length_low, protocol, _] = words[1].to_ne_bytes();
        if words[0] & VERSION_6 != PLAIN_6 {
            return None;
        }
        let tcp_flags = flags::<V6, P>(packet, protocol)?;
        Some(Plain {
            source: [words[2], words[3], words[4], words[5]],
            destination: [words[6], words[7], words[8], words[9]],
            ports: words[10],
            protocol,
            tcp_flags,
            length: u16::from_be_bytes([length_high, length_low]).saturating_add(40),
            start: words[0],
            life: words[1],
        })
    }

    #[inline(always)]
    fn widen(address: &[u32; 4]) -> Address {
        Address { words: *address }
    }

    #[inline(always)]
    fn narrow(address: &Address) -> [u32; 4] {
        address.words
    }

    #[inline(always)]
    fn differ(one: &[u32; 4], other: &[u32; 4]) -> u32 {
        (one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3])
    }

    #[inline(always)]
    fn change(from: &[u32; 4], to: &[u32; 4]) -> u64 {
        V4::change(&from[0], &to[0])
            + V4::change(&from[1], &to[1])
            + V4::change(&from[2], &to[2])
            + V4::change(&from[3], &to[3])
    }

    #[inline(always)]
    fn mix(address: &[u32; 4]) -> u32 {
        address[0] ^ address[1].rotate_left(7) ^ address[2].rotate_left(19) ^ address[3]
    }

    #[inline(always)]
    fn life(word: u32) -> u8 {
        word.to_ne_bytes()[3]
    }

    #[inline(always)]
    fn write<P: Raw>(
        packet: &mut P,
        plain: &Plain<[u32; 4]>,
        record: &Record<[u32; 4], [u32; 4]>,
        hop: bool,
    ) -> Option<()> {
        let [high, low, protocol, life] = plain.life.to_ne_bytes();
        let life = if hop { life.wrapping_sub(1) } else { life };
        let (from, to) = (&record.new_source, &record.new_destination);
        let word = u32::from_ne_bytes([high, low, protocol, life]);
        packet.write_ends(
            IP + 4,
            [word, from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3], record.new_ports],
        )
    }

    #[inline(always)]
    fn rest(_: &Record<[u32; 4], [u32; 4]>) -> u16 {
        0
    }

    #[inline(always)]
    fn encapsulate<P: Raw>(packet: &mut P, plain: &Plain<[u32; 4]>, record: &Record<[u32; 4], [u32; 4]>) -> Option<()> {
        encap::carry_v6(packet, plain, record)
    }
}

/// TCP flags, 0 for UDP, `None` for anything else.
#[inline(always)]
fn flags<F: Family, P: Bytes>(packet: &P, number: u8) -> Option<u8> {
    match number {
        protocol::TCP => packet.read::<1>(F::TRANSPORT + 13).map(|[flags]| flags),
        protocol::UDP => Some(0),
        _ => None,
    }
}

/// Folds a sum of words into the 16 bits that checksums are made of.
#[inline(always)]
pub(crate) fn fold(total: u64) -> u16 {
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    total as u16
}
