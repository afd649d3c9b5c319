//! Network policies as the programs see them: which sets of rules hold for a pod, who its peers are, what is allowed, and
//! which connections were.

use crate::Address;

/// What holds for a pod, by the index of the node's side of its link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Set of rules for what comes to the pod, 0 when everything may.
    pub ingress: u32,
    /// The same for what the pod sends.
    pub egress: u32,
    /// Changes whenever something that was allowed may be denied: what is remembered is judged again.
    pub generation: u32,
    /// Zero.
    pub reserved: u32,
    /// A digest of the pod's namespace and name, for user space.
    pub pod: [u32; 4],
}

impl Guard {
    /// A set that has no rule: nothing is allowed.
    pub const CLOSED: u32 = u32::MAX;

    /// Does any policy hold for the pod?
    #[must_use]
    pub const fn isolates(&self) -> bool {
        self.ingress | self.egress != 0
    }
}

const _: () = assert!(size_of::<Guard>() == 32 && align_of::<Guard>() == 4);

/// Key of a rule: the prefixes [`RuleKey::ANY_PORT`], [`RuleKey::ANY_NUMBER`] and what lies between the latter and
/// [`RuleKey::BITS`], for ranges of ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleKey {
    /// Set of rules.
    pub set: u32,
    /// Who the peer is: [`RuleKey::ANYBODY`], a value of the map of peers, or one of the map of blocks.
    pub who: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, in network order.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: u8,
}

impl RuleKey {
    /// Every peer, known or not.
    pub const ANYBODY: u32 = 0;
    /// Bits of a rule for every protocol and port.
    pub const ANY_PORT: u32 = 64;
    /// Bits of a rule for every port of a protocol.
    pub const ANY_NUMBER: u32 = 72;
    /// Bits of a rule for one port; what is looked up.
    pub const BITS: u32 = 88;
    /// What a rule says: it may pass.
    pub const ALLOWS: u32 = 1;
    /// What a rule says: it is dropped, whatever less particular rules say.
    pub const DENIES: u32 = 2;
}

const _: () = assert!(size_of::<RuleKey>() == 12 && align_of::<RuleKey>() == 4);

/// Key of a connection that a pod's policies allowed, the same for both directions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowedKey {
    /// The pod's address.
    pub pod: Address,
    /// The other end's.
    pub peer: Address,
    /// The pod's port.
    pub pod_port: u16,
    /// The other end's.
    pub peer_port: u16,
    /// Index of the node's side of the pod's link.
    pub link: u32,
    /// IP protocol number.
    pub protocol: u32,
}

const _: () = assert!(size_of::<AllowedKey>() == 44 && align_of::<AllowedKey>() == 4);

/// A connection that a pod's policies allowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The guard's when it was judged.
    pub generation: u32,
    /// When its last packet came, in seconds of the coarse clock.
    pub seen: u32,
    /// Who opened it: [`Allowed::BY_POD`] or [`Allowed::BY_PEER`].
    pub opener: u32,
}

impl Allowed {
    /// The pod opened it: its egress rules were asked.
    pub const BY_POD: u32 = 1;
    /// The other end did: the pod's ingress rules were asked.
    pub const BY_PEER: u32 = 2;
}

const _: () = assert!(size_of::<Allowed>() == 12 && align_of::<Allowed>() == 4);
