//! The program that tells of what the kernel drops: attached while somebody follows, with the places of the running kernel's
//! fields. A kernel that lacks something loses this, with a sentence, and nothing else.

use std::fs::File;
use std::sync::LazyLock;

use aya::maps::{Array, MapData};
use aya::programs::raw_trace_point::RawTracePointLink;
use sluice_ebpf_common::lost::LostFields;
use sluice_ebpf_common::{limits, maps};

use crate::dataplane::Inner;
use crate::{Error, btf, lost, sys};

/// The better one first: of kernels that say which socket a packet was for.
const PROGRAMS: [&str; 2] = ["kernel_lost_for", "kernel_lost"];

/// The members that the program reads, in the order of [`LostFields`].
const FIELDS: [(&str, &str); 12] = [
    ("sk_buff", "len"),
    ("sk_buff", "protocol"),
    ("sk_buff", "head"),
    ("sk_buff", "data"),
    ("sk_buff", "tail"),
    ("sk_buff", "network_header"),
    ("sk_buff", "dev"),
    ("sk_buff", "sk"),
    ("net_device", "ifindex"),
    ("net_device", "nd_net"),
    ("sock_common", "skc_net"),
    ("net", "net_cookie"),
];

/// Reasons that are not told, by the kernel's names without their prefix.
const QUIET: [&str; 18] = [
    // Nobody knows whether that is a loss: sockets that end give up what they have with it, too.
    "NOT_SPECIFIED",
    "QUEUE_PURGE",
    "SOCKET_CLOSE",
    // It did what it came for.
    "TCP_RESET",
    // It came before.
    "TCP_OLD_DATA",
    "TCP_OLD_ACK",
    "TCP_OLD_SEQUENCE",
    "TCP_OFOMERGE",
    "TCP_FASTOPEN",
    "DUP_FRAG",
    // It was for somebody else, who gets it.
    "OTHERHOST",
    "IPV6_NDISC_NS_OTHERHOST",
    "PACKET_SOCK_ERROR",
    // Programs on links: those of this data plane tell their own losses.
    "TC_INGRESS",
    "TC_EGRESS",
    "XDP",
    // No reasons.
    "NOT_DROPPED_YET",
    "CONSUMED",
];

/// Where this kernel has what is read, and which of its reasons are told; found once.
fn fields() -> Result<LostFields, String> {
    static FOUND: LazyLock<Result<LostFields, String>> = LazyLock::new(|| {
        let told = told(lost::names().as_deref()?);
        let failed = |error: std::io::Error| format!("{}: {error}", btf::VMLINUX);
        fields_of(btf::offsets(&File::open(btf::VMLINUX).map_err(failed)?, FIELDS).map_err(failed)?, told)
    });
    FOUND.clone()
}

fn fields_of(offsets: [Option<u32>; FIELDS.len()], told: [u32; 8]) -> Result<LostFields, String> {
    let [length, protocol, head, data, tail, network, device, socket, index, of_device, of_socket, cookie] =
        btf::all(&FIELDS, offsets)?;
    Ok(LostFields {
        length,
        protocol,
        head,
        data,
        tail,
        network,
        device,
        socket,
        index,
        of_device,
        of_socket,
        cookie,
        told,
    })
}

/// A bit for each reason that is told. One without a name is told by its number.
fn told(names: &[(u32, String)]) -> [u32; limits::KERNEL_REASONS as usize / 32] {
    let mut told = [u32::MAX; _];
    let quiet = names.iter().filter(|(_, name)| QUIET.contains(&lost::without_prefix(name)));
    for number in quiet.map(|(number, _)| *number).filter(|number| *number < limits::KERNEL_REASONS) {
        told[number as usize / 32] &= !(1 << (number % 32));
    }
    told
}

/// Tells of what the kernel drops, as long as this lives.
pub(super) struct Telling {
    _link: RawTracePointLink,
}

impl Inner {
    /// Puts the program to work. Takes some milliseconds, and blocks: call it where that is allowed.
    pub(super) fn tell_kernel_losses(&self) -> Option<Telling> {
        let attached = fields().and_then(|fields| self.attach_telling(fields));
        attached.inspect_err(|why| tracing::warn!("what the kernel drops is not told to those who follow: {why}")).ok()
    }

    fn attach_telling(&self, fields: LostFields) -> Result<Telling, String> {
        let mut ebpf = self.ebpf.lock();
        let map = ebpf.map_mut(maps::LOST_FIELDS).ok_or("the embedded object has no map for it")?;
        let mut map: Array<&mut MapData, LostFields> = map.try_into().map_err(|error| format!("{error}"))?;
        map.set(0, fields, 0).map_err(|error| Error::ebpf("write where the kernel's fields are", error).to_string())?;
        let [best, other] = PROGRAMS;
        let link = lost::attach_program(&mut ebpf, best).or_else(|_| lost::attach_program(&mut ebpf, other))?;
        sys::give_memory_back();
        Ok(Telling { _link: link })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Dataplane;
    use crate::common::isolated;

    #[test]
    fn a_kernel_that_lacks_a_field_is_named_with_it() {
        let mut offsets: [Option<u32>; FIELDS.len()] = std::array::from_fn(|at| Some(at as u32));
        let told = told(&[]);
        let all = fields_of(offsets, told).unwrap();
        assert_eq!((all.length, all.network, all.cookie), (0, 5, 11));
        (offsets[1], offsets[9]) = (None, None);
        let why = fields_of(offsets, told).unwrap_err();
        assert_eq!(why, "this kernel has no sk_buff.protocol, net_device.nd_net");
    }

    #[test]
    fn what_is_no_loss_is_not_told() {
        let name = |number: u32, name: &str| (number, format!("SKB_DROP_REASON_{name}"));
        let told = told(&[name(2, "NOT_SPECIFIED"), name(3, "NO_SOCKET"), name(72, "XDP"), name(0x10000, "TCP_RESET")]);
        let fields = LostFields { told, ..LostFields::default() };
        let asked = [(2, false), (3, true), (71, true), (72, false), (255, true), (256, false)];
        for (reason, expected) in asked {
            assert_eq!(fields.tells(reason), expected, "{reason}");
        }
    }

    /// Kernels that do not say the socket take the second one alone.
    #[test]
    fn every_kernel_takes_the_second_program() {
        isolated("stream::kernel::tests::every_kernel_takes_the_second_program", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            lost::attach_program(&mut dataplane.inner.ebpf.lock(), PROGRAMS[1]).unwrap();
        });
    }

    #[test]
    fn the_running_kernel_has_all_of_it() {
        let found = fields().unwrap();
        // The second one may stand at 0; the others are behind something else.
        assert!([found.length, found.head, found.tail, found.network, found.cookie].iter().all(|at| *at > 0));
        let names = lost::names().as_ref().unwrap();
        let known = |quiet: &&str| names.iter().any(|(_, name)| lost::without_prefix(name) == *quiet);
        assert!(QUIET.iter().filter(|quiet| known(quiet)).count() * 4 > QUIET.len() * 3, "{QUIET:?}");
    }
}
