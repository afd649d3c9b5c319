//! Why a packet or a connection was refused.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a packet or a connection was refused. Each has a counter.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])* $name = $number,)* }

        impl Reason {
            /// Every reason, in order of its number.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// For people.
            pub const fn text(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// A service without endpoints was asked for; the kernel answers as for a closed port.
    NoEndpoint = 0, "the service has no ready endpoint";
    /// A later fragment that came before the first one, or after it was forgotten; only the first one has the ports.
    Fragment = 1, "a later fragment came before the first one, which alone has the ports";
    /// The flow map is full.
    FlowsFull = 2, "the flow map is full";
    /// Every probed masquerade port towards that destination is taken.
    PortsExhausted = 3, "no masquerade port is free towards that destination";
    /// A list names a backend that is not there.
    Inconsistent = 4, "a backend list named a missing backend";
    /// The kernel refused to change the packet.
    Rewrite = 5, "the kernel refused to change the packet";
    /// A pod's packet to the outside in a protocol that cannot be masqueraded.
    Protocol = 6, "the protocol cannot be masqueraded";
    /// The traffic policy is Local, and all endpoints are on other nodes.
    NotHere = 7, "the service's endpoints are all on other nodes, and its traffic policy is Local";
    /// The client is in none of the service's source ranges.
    SourceRange = 8, "the client is in none of the service's source ranges";
    /// A program wanted to listen on a service's node port.
    NodePortTaken = 9, "the port belongs to a service as its node port";
    /// The port of a fragmented SCTP packet would have to change: its checksum covers what is in the other fragments.
    SctpFragment = 10, "the ports of fragmented SCTP packets cannot be translated";
}

impl Reason {
    /// Number of reasons, the size of the counter array.
    pub const COUNT: u32 = 11;
}

const _: () = assert!(Reason::ALL.len() == Reason::COUNT as usize);
