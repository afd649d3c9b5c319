//! What the kernel drops, by its own reasons, wherever it happens on the machine: counted always, and told of while somebody
//! follows (the loader attaches the other programs for as long).
#![allow(unsafe_code)]

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use sluice_ebpf_common::lost::LostFields;
use sluice_ebpf_common::stream::{Told, ToldLost};
use sluice_ebpf_common::{limits, protocol};

use crate::probe::owner_of;
use crate::{maps, stream};

/// Arguments of the tracepoint: the packet, the place in the code, the reason, the socket that it was for.
const PACKET: usize = 0;
const REASON: usize = 2;
const RECEIVER: usize = 3;

const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
/// Of an IPv4 header: the bits of a fragment's place.
const PLACE: u16 = 0x1fff;
/// An IPv6 header.
const IPV6_HEADER: u32 = 40;
/// Both ports.
const PORTS: u32 = 4;
/// The longest header of IPv4, and ports.
const MOST: u32 = 64;
const _: () = assert!(MOST as usize <= ToldLost::HEAD && MOST.is_power_of_two());

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kernel_drop(context: RawTracePointContext) -> i32 {
    if let Some(count) = maps::LOST.get_ptr_mut(number(context.arg(REASON))) {
        // SAFETY: this processor's own value; a packet that is dropped by an interrupt meanwhile may not be counted.
        unsafe { *count += 1 };
    }
    0
}

/// For kernels that do not say the socket.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kernel_lost(context: RawTracePointContext) -> i32 {
    tell(context.arg(PACKET), context.arg(REASON), 0);
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kernel_lost_for(context: RawTracePointContext) -> i32 {
    tell(context.arg(PACKET), context.arg(REASON), context.arg(RECEIVER));
    0
}

/// Reasons of subsystems (wireless, Open vSwitch) have large numbers, and share the last place.
#[inline(always)]
fn number(reason: u32) -> u32 {
    reason.min(limits::KERNEL_REASONS - 1)
}

/// Tells of a packet of IP that the node or one of its pods lost: its ends, and nothing that it carries.
#[inline(always)]
fn tell(packet: u64, reason: u32, receiver: u64) -> Option<()> {
    let (fields, settings) = (maps::LOST_FIELDS.get(0)?, maps::SETTINGS.get(0)?);
    let reason = number(reason);
    if !fields.tells(reason) {
        return None;
    }
    let kind: u16 = at(packet, fields.protocol)?;
    let version = match kind {
        IPV4 => 4,
        IPV6 => 6,
        _ => return None,
    };
    let link = link_of(packet, receiver, fields)?;
    let (head, network): (u64, u16) = (at(packet, fields.head)?, at(packet, fields.network)?);
    let (data, tail): (u64, u32) = (at(packet, fields.data)?, at(packet, fields.tail)?);
    let start = head + u64::from(network);
    // What the kernel has in one piece: headers nearly always are.
    let piece = tail.wrapping_sub(network.into());
    let first: [u8; 10] = at(start, 0)?;
    if first[0] >> 4 != version {
        return None;
    }
    let (header, carries, later) = if version == 4 {
        let place = u16::from_be_bytes([first[6], first[7]]) & PLACE;
        (u32::from(first[0] & 15) * 4, first[9], place != 0)
    } else {
        (IPV6_HEADER, first[6], false)
    };
    let has_ports = matches!(carries, protocol::TCP | protocol::UDP | protocol::SCTP) && !later;
    let ends = header + if has_ports { PORTS } else { 0 };
    if ends > MOST || piece == 0 {
        return None;
    }
    // Older kernels' verifiers believe a mask, where they have lost sight of a comparison.
    let length = (maps::hide(ends.min(piece) - 1) & (MOST - 1)) + 1;
    let mut entry = stream::lend::<ToldLost>(settings, maps::TELLING_LOST.get_ptr_mut(reason)?)?;
    let told = entry.as_mut_ptr();
    let whole: u32 = at(packet, fields.length).unwrap_or(0);
    // SAFETY: the ring lends a whole place; the helper writes as many bytes as it is told, and zeroes where it fails.
    unsafe {
        ((*told).kind, (*told).reason, (*told).link) = (Told::LOST_BY_KERNEL, reason as u16, link);
        // What is left of it begins behind some of its headers, or before them.
        (*told).bytes = whole.wrapping_add(data.wrapping_sub(start) as u32);
        (*told).length = length;
        if generated::bpf_probe_read_kernel(addr_of_mut!((*told).head).cast(), length, start as *const _) != 0 {
            (*told).length = 0;
        }
    }
    stream::give(entry);
    Some(())
}

/// Whose packet it is: the pod's link, or the one that the node has it on. A stranger's is nobody's, as one of which nobody
/// knows: by its link, by the socket that it was for, or by the one that sent it.
#[inline(always)]
fn link_of(packet: u64, receiver: u64, fields: &LostFields) -> Option<u32> {
    // Sockets' queues keep other things in the packet's pointer to its link: then nothing known stands there.
    let device: u64 = at(packet, fields.device)?;
    if let Some(owner) = owner_at(device, fields.of_device, fields) {
        return if owner == 0 { at(device, fields.index) } else { Some(owner) };
    }
    owner_at(receiver, fields.of_socket, fields)
        .or_else(|| owner_at(at(packet, fields.socket)?, fields.of_socket, fields))
}

/// Whose network namespace a link or socket is in.
#[inline(always)]
fn owner_at(structure: u64, namespace: u32, fields: &LostFields) -> Option<u32> {
    if structure == 0 {
        return None;
    }
    owner_of(at(at::<u64>(structure, namespace)?, fields.cookie)?).map(|(link, _)| link)
}

/// What stands there in the kernel's memory; nothing where there is none.
#[inline(always)]
fn at<T>(structure: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper reads what can be read, and fails at the rest.
    unsafe { bpf_probe_read_kernel((structure + u64::from(offset)) as *const T) }.ok()
}
