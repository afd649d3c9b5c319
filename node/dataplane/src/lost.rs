//! Every packet that was dropped, and why: by the programs here, and by the kernel anywhere on the machine.

use std::fs::File;
use std::path::Path;
use std::sync::LazyLock;

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use aya::programs::raw_trace_point::RawTracePointLink;
use aya::programs::{ProgramError, RawTracePoint};
use serde::Serialize;
use sluice_ebpf_common::{Reason, SCHEMA, limits, maps};

use crate::pins::Pins;
use crate::store::typed;
use crate::{Error, btf};

const PROGRAM: &str = "kernel_drop";
const TRACEPOINT: &str = "kfree_skb";
const ENUM: &str = "skb_drop_reason";
const PREFIX: &str = "SKB_DROP_REASON_";

/// Who dropped packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The programs of this data plane.
    Sluice,
    /// The kernel.
    Kernel,
}

/// Packets that were dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DropRow {
    /// Who dropped them.
    pub by: By,
    /// The reason's name: stable for ours, the kernel's own for the others.
    pub reason: String,
    /// For people.
    pub text: String,
    /// How many.
    pub packets: u64,
}

/// What was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drops {
    /// The most frequent reason first; those that never happened are left out.
    pub rows: Vec<DropRow>,
    /// Why the kernel's reasons are not among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Counts what the kernel drops as long as the link lives. A kernel without reasons does without.
pub(crate) fn attach(ebpf: &mut Ebpf) -> Option<RawTracePointLink> {
    let attached = names().as_ref().map_err(Clone::clone).and_then(|_| attach_program(ebpf, PROGRAM));
    attached.inspect_err(|why| tracing::warn!("what the kernel drops is not counted: {why}")).ok()
}

/// Lets a program see what the kernel drops, as long as the link lives.
pub(crate) fn attach_program(ebpf: &mut Ebpf, name: &str) -> Result<RawTracePointLink, String> {
    let program: Option<&mut RawTracePoint> = ebpf.program_mut(name).and_then(|found| found.try_into().ok());
    let program = program.ok_or_else(|| format!("the embedded object has no program {name}"))?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(error) => return Err(format!("the kernel refused the program: {error}")),
    }
    let link = program.attach(TRACEPOINT).and_then(|id| program.take_link(id));
    link.map_err(|error| format!("the kernel refused to attach the program: {error}"))
}

/// The kernel's names for its reasons, read once.
pub(crate) fn names() -> &'static Result<Vec<(u32, String)>, String> {
    static NAMES: LazyLock<Result<Vec<(u32, String)>, String>> = LazyLock::new(read_names);
    &NAMES
}

fn read_names() -> Result<Vec<(u32, String)>, String> {
    let file = File::open(btf::VMLINUX);
    let values =
        file.and_then(|file| btf::values(&file, ENUM)).map_err(|error| format!("{}: {error}", btf::VMLINUX))?;
    values.ok_or_else(|| format!("this kernel gives no reasons (no enum {ENUM}); Linux 5.17 and newer do"))
}

/// What was dropped since the maps under a pin directory were made, and by the kernel while the node's daemon ran.
pub fn drops(pin_dir: &Path) -> Result<Drops, Error> {
    let mut drops = all(&Pins::new(pin_dir, SCHEMA))?;
    drops.rows.retain(|row| row.packets > 0);
    drops.rows.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.reason.cmp(&b.reason)));
    Ok(drops)
}

/// How often each of our reasons came about, by its number.
pub(crate) fn reasons(pins: &Pins) -> Result<Vec<u64>, Error> {
    counts(pins, maps::REASONS, Reason::COUNT)
}

/// As [`drops`], in the order of the reasons: all of ours, and those of the kernel's that ever happened.
pub(crate) fn all(pins: &Pins) -> Result<Drops, Error> {
    let own = reasons(pins)?;
    let mut rows: Vec<DropRow> = Reason::ALL
        .iter()
        .filter(|reason| reason.drops())
        .map(|reason| DropRow {
            by: By::Sluice,
            reason: reason.name().to_owned(),
            text: reason.text().to_owned(),
            packets: own[*reason as usize],
        })
        .collect();
    let missing = match names() {
        Ok(names) => {
            let counted = counts(pins, maps::LOST, limits::KERNEL_REASONS)?;
            rows.extend(kernels(names, &counted).into_iter().filter(|row| row.packets > 0));
            None
        }
        Err(why) => Some(why.clone()),
    };
    Ok(Drops { rows, missing })
}

fn counts(pins: &Pins, map: &str, entries: u32) -> Result<Vec<u64>, Error> {
    let counts: PerCpuArray<MapData, u64> = typed(pins, map)?;
    let total = |index| counts.get(&index, 0).map(|values| values.iter().sum());
    (0..entries).map(total).collect::<Result<_, _>>().map_err(|error| Error::ebpf(format!("read the map {map}"), error))
}

fn kernels(names: &[(u32, String)], counts: &[u64]) -> Vec<DropRow> {
    let row = |(number, packets): (usize, &u64)| {
        let (reason, text) = said(names, number, counts.len());
        DropRow { by: By::Kernel, text, reason, packets: *packets }
    };
    counts.iter().enumerate().map(row).collect()
}

/// One of so many of the kernel's reasons, for programs and for people.
fn said(names: &[(u32, String)], number: usize, of: usize) -> (String, String) {
    let known = names.iter().find(|(value, _)| *value as usize == number);
    let reason = match known {
        Some((_, name)) => without_prefix(name).to_owned(),
        None if number + 1 == of => "SUBSYSTEM".to_owned(),
        None => format!("UNKNOWN_{number}"),
    };
    let text = explain(&reason);
    (reason, text)
}

/// The kernel's reason with a number, for programs and for people.
pub(crate) fn by_number(number: u16) -> (String, String) {
    said(names().as_deref().unwrap_or_default(), number.into(), limits::KERNEL_REASONS as usize)
}

/// A reason's name as it is said here.
pub(crate) fn without_prefix(name: &str) -> &str {
    name.trim_start_matches(PREFIX)
}

/// Says what a reason means; those without a sentence here by their names.
fn explain(reason: &str) -> String {
    let known = TEXTS.iter().find(|(name, _)| *name == reason).map(|(_, text)| (*text).to_owned());
    known.unwrap_or_else(|| reason.to_lowercase().replace('_', " "))
}

/// By the documentation of `enum skb_drop_reason`.
const TEXTS: &[(&str, &str)] = &[
    ("NOT_SPECIFIED", "the code that dropped it gives no reason"),
    ("NO_SOCKET", "no socket is open on the port"),
    ("SOCKET_CLOSE", "the socket was closed with it in its queue"),
    ("SOCKET_FILTER", "a filter on the socket refused it"),
    ("SOCKET_RCVBUFF", "the socket's receive buffer is full: its program reads too slowly"),
    ("SOCKET_BACKLOG", "the socket's backlog is full: its program reads too slowly"),
    ("PKT_TOO_SMALL", "it is shorter than its headers say"),
    ("PKT_TOO_BIG", "it is larger than the link or path can carry"),
    ("TCP_CSUM", "its TCP checksum is wrong"),
    ("UDP_CSUM", "its UDP checksum is wrong"),
    ("IP_CSUM", "its IP checksum is wrong"),
    ("IP_INHDR", "its IP header is malformed"),
    ("IP_RPFILTER", "its source is not reached by the link it came by (rp_filter)"),
    ("IP_NOPROTO", "nobody takes its IP protocol"),
    ("IP_OUTNOROUTES", "there is no route to its destination"),
    ("IP_INADDRERRORS", "there is no route for its addresses, or its source may not be one"),
    ("IP_INNOROUTES", "there is no route back to its source"),
    ("IP_LOCAL_SOURCE", "it came from outside with an address of this node as its source"),
    ("OTHERHOST", "it is for another machine on the same link"),
    ("UNICAST_IN_L2_MULTICAST", "it was sent to all on the link, and is for one"),
    ("NETFILTER_DROP", "a firewall rule (nftables, iptables) dropped it"),
    ("BPF_CGROUP_EGRESS", "a program on a cgroup refused it"),
    ("TC_INGRESS", "a program or filter on a link refused what came in"),
    ("TC_EGRESS", "a program or filter on a link refused what goes out"),
    ("XDP", "a program in the driver refused it"),
    ("QDISC_DROP", "a link's queue was full, or its limit reached"),
    ("FULL_RING", "a ring between kernel and program or card was full"),
    ("CPU_BACKLOG", "a processor's backlog was full: packets came faster than it could take them"),
    ("NEIGH_FAILED", "the next hop does not answer (ARP, neighbour discovery)"),
    ("NEIGH_QUEUEFULL", "too many packets waited for the next hop's answer"),
    ("NEIGH_DEAD", "the next hop's entry was removed"),
    ("NOMEM", "there was no memory for it"),
    ("DEV_HDR", "the link's headers could not be made"),
    ("DEV_READY", "the link was down"),
    ("TCP_INVALID_SEQUENCE", "its TCP sequence number is outside of what is expected"),
    ("TCP_INVALID_ACK_SEQUENCE", "it acknowledges what was never sent"),
    ("TCP_RESET", "it reset a connection"),
    ("TCP_INVALID_SYN", "it opens a connection that is open"),
    ("TCP_CLOSE", "its connection is closed"),
    ("TCP_OLD_DATA", "its data came before"),
    ("TCP_OLD_ACK", "what it acknowledges was acknowledged before"),
    ("TCP_OVERWINDOW", "its data is beyond the window"),
    ("TCP_OFOMERGE", "its data is in the queue already"),
    ("TCP_ZEROWINDOW", "the receiver takes no data: its program reads too slowly"),
    ("TCP_FLAGS", "its TCP flags make no sense for the connection's state"),
    ("TCP_LISTEN_OVERFLOW", "a listening socket's queue is full: its program accepts too slowly"),
    ("TCP_RFC7323_PAWS", "its time stamp is older than what came before"),
    ("TCP_TOO_OLD_ACK", "it acknowledges too old data"),
    ("ICMP_CSUM", "its ICMP checksum is wrong"),
    ("INVALID_PROTO", "it is of a protocol that the link does not take"),
    ("UNHANDLED_PROTO", "nobody takes its protocol"),
    ("ARP_PVLAN_DISABLE", "an ARP question that a private VLAN does not let through"),
    ("BRIDGE_INGRESS_STP_STATE", "the bridge's port does not forward (spanning tree)"),
    ("CAKE_FLOOD", "the link's queue (cake) drops a flood"),
    ("CAN_RX_INVALID_FRAME", "it is no valid CAN frame"),
    ("CANFD_RX_INVALID_FRAME", "it is no valid CAN FD frame"),
    ("CANXL_RX_INVALID_FRAME", "it is no valid CAN XL frame"),
    ("DUALPI2_STEP_DROP", "the link's queue (dualpi2) is above its threshold"),
    ("DUP_FRAG", "this fragment came before"),
    ("FQ_BAND_LIMIT", "a band of the link's queue (fq) was full"),
    ("FQ_FLOW_LIMIT", "the flow has too much in the link's queue (fq)"),
    ("FQ_HORIZON_LIMIT", "its time to be sent is too far ahead (fq)"),
    ("FRAG_REASM_TIMEOUT", "its other fragments did not come in time"),
    ("FRAG_TOO_FAR", "its other fragments are too far behind"),
    ("HDR_TRUNC", "its headers are cut short"),
    ("IPV6DISABLED", "IPv6 is off on the link"),
    ("IPV6_BAD_EXTHDR", "its IPv6 extension headers are wrong"),
    ("IPV6_NDISC_BAD_CODE", "a message of neighbour discovery with a wrong code"),
    ("IPV6_NDISC_BAD_OPTIONS", "a message of neighbour discovery with wrong options"),
    ("IPV6_NDISC_FRAG", "a message of neighbour discovery in fragments"),
    ("IPV6_NDISC_HOP_LIMIT", "a message of neighbour discovery from beyond the link"),
    ("IPV6_NDISC_NS_OTHERHOST", "it asks for another machine's neighbour address"),
    ("IP_INVALID_DEST", "its destination is no address that may be one"),
    ("IP_INVALID_SOURCE", "its source is no address that may be one"),
    ("IP_LOCALNET", "a loopback address outside of the machine (127.0.0.0/8)"),
    ("IP_TUNNEL_ECN", "its congestion marks inside and outside of the tunnel do not fit"),
    ("LOCAL_MAC", "its source is this machine's own link address"),
    ("MAC_IEEE_MAC_CONTROL", "a control frame of the link itself"),
    ("MAC_INVALID_SOURCE", "its source is no link address that may be one"),
    ("NEIGH_CREATEFAIL", "no entry for the next hop could be made: the neighbour table is full"),
    ("NEIGH_HH_FILLFAIL", "the link's header for the next hop could not be made"),
    ("NO_TX_TARGET", "no port of the link's device could send it"),
    ("PACKET_SOCK_ERROR", "a capture's socket could not take it"),
    ("PFMEMALLOC", "memory is so short that it is kept for other sockets"),
    ("PROTO_MEM", "the protocol's memory is used up (udp_mem, tcp_mem)"),
    ("PSP_INPUT", "what came in is not as its encryption (PSP) has it"),
    ("PSP_OUTPUT", "what goes out is not as its encryption (PSP) has it"),
    ("QDISC_CONGESTED", "the link's queue drops early, as it fills"),
    ("QDISC_OVERLIMIT", "the link's queue was full"),
    ("QUEUE_PURGE", "the queue that it was in was emptied"),
    ("RECURSION_LIMIT", "it went through too many devices within one another"),
    ("SECURITY_HOOK", "a security module (SELinux, AppArmor) refused it"),
    ("SKB_CSUM", "its checksum could not be made, or is wrong"),
    ("SKB_GSO_SEG", "it could not be cut into packets"),
    ("SKB_UCOPY_FAULT", "its data could not be copied from or to the program"),
    ("TAP_FILTER", "a filter on the tap device refused it"),
    ("TAP_TXFILTER", "the tap device's addresses do not include it"),
    ("TCP_ABORT_ON_DATA", "data came for a connection that its program has closed"),
    ("TCP_ACK_UNSENT_DATA", "it acknowledges what was not sent yet"),
    ("TCP_AOFAILURE", "its TCP-AO signature is wrong"),
    ("TCP_AOKEYNOTFOUND", "its TCP-AO key is unknown"),
    ("TCP_AONOTFOUND", "it has no TCP-AO signature, and needs one"),
    ("TCP_AOUNEXPECTED", "it has a TCP-AO signature that nobody expects"),
    ("TCP_AUTH_HDR", "its TCP signatures are malformed"),
    ("TCP_FASTOPEN", "its data came with fast open, and is there already"),
    ("TCP_INVALID_END_SEQUENCE", "its data ends beyond the window"),
    ("TCP_MD5FAILURE", "its TCP-MD5 signature is wrong"),
    ("TCP_MD5NOTFOUND", "it has no TCP-MD5 signature, and needs one"),
    ("TCP_MD5UNEXPECTED", "it has a TCP-MD5 signature that nobody expects"),
    ("TCP_MINTTL", "it came from farther away than the socket allows"),
    ("TCP_OFO_DROP", "out of order, and there was no memory to keep it"),
    ("TCP_OFO_QUEUE_PRUNE", "what came out of order was dropped, as memory is short"),
    ("TCP_OLD_SEQUENCE", "its TCP sequence number is before what is expected"),
    ("TCP_RFC7323_PAWS_ACK", "its time stamp is older than what came before, as late acknowledgements' are"),
    ("TCP_RFC7323_TSECR", "it echoes a time stamp that was not sent"),
    ("TCP_RFC7323_TW_PAWS", "its time stamp is older than that of the connection which ended there"),
    ("TC_CHAIN_NOTFOUND", "a filter on a link points to a chain that is not there"),
    ("TC_COOKIE_ERROR", "filters on a link lost what they kept about it"),
    ("TC_RECLASSIFY_LOOP", "filters on a link sent it in a circle"),
    ("TUNNEL_TXINFO", "nobody said where the tunnel should send it"),
    ("UNIX_DISCONNECT", "the other end of the Unix socket is gone"),
    ("UNIX_SKIP_OOB", "an urgent byte of a Unix socket was passed over"),
    ("VXLAN_ENTRY_EXISTS", "the VXLAN device knows its sender behind another tunnel"),
    ("VXLAN_INVALID_HDR", "its VXLAN header is malformed"),
    ("VXLAN_VNI_NOT_FOUND", "nobody takes its VXLAN network"),
    ("XFRM_POLICY", "an IPsec policy refused it"),
    ("SUBSYSTEM", "a subsystem (wireless, Open vSwitch, …) dropped it for a reason of its own"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_reasons_are_said_by_name_and_for_people() {
        let names = [(2, "SKB_DROP_REASON_NO_SOCKET".to_owned()), (3, "SKB_DROP_REASON_A_NEW_ONE".to_owned())];
        let rows = kernels(&names, &[0, 0, 7, 1, 2, 5]);
        let said: Vec<_> = rows.iter().map(|row| (row.reason.as_str(), row.text.as_str(), row.packets)).collect();
        assert_eq!(
            said[2..5],
            [
                ("NO_SOCKET", "no socket is open on the port", 7),
                ("A_NEW_ONE", "a new one", 1),
                ("UNKNOWN_4", "unknown 4", 2),
            ]
        );
        assert_eq!((said[5].0, said[5].2), ("SUBSYSTEM", 5));
    }

    #[test]
    fn sentences_are_of_reasons_that_this_kernel_has() {
        let names = names().as_ref().unwrap();
        let known =
            |name: &str| name == "SUBSYSTEM" || names.iter().any(|(_, own)| own.trim_start_matches(PREFIX) == name);
        let unknown: Vec<_> = TEXTS.iter().map(|(name, _)| *name).filter(|name| !known(name)).collect();
        // Kernels come and go with some of them; a misspelt one would be unknown everywhere.
        assert!(unknown.len() * 4 < TEXTS.len(), "{unknown:?}");
    }

    #[test]
    fn the_kernels_reasons_have_sentences() {
        let names = names().as_ref().unwrap();
        let own = names.iter().map(|(_, name)| name.trim_start_matches(PREFIX));
        // Numbers of subsystems and of the end are no reasons.
        let reasons: Vec<&str> = own.filter(|name| *name != "MAX" && !name.starts_with("SUBSYS")).collect();
        let dumb: Vec<_> = reasons.iter().filter(|name| !TEXTS.iter().any(|(known, _)| known == *name)).collect();
        // A later kernel has some of its own.
        assert!(dumb.len() * 10 < reasons.len(), "{dumb:?}");
    }
}
