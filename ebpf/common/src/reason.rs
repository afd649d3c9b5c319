//! Why a packet or a connection was refused.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a packet or a connection was refused, or not served as it should be. Each has a counter.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])* $name = $number,)* }

        impl Reason {
            /// Every reason, in order of its number.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// For programs.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)* }
            }

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
    /// Not refused: new connections came faster than they are remembered, or the flow map was full. Their packets go to a
    /// backend by the table alone.
    Unremembered = 11, "a connection was not remembered (too many at once, or the flow map is full); it goes by the table";
    /// An encapsulated packet for a service came from an address that is no node's.
    Stranger = 12, "an encapsulated packet for a service came from an address that is no node's";
    /// A node encapsulated a packet for a pod of this node, and no service here has its destination.
    NotServed = 13, "an encapsulated packet was for no service that this node knows";
    /// The kernel has no route to the backend that an encapsulated packet is for.
    NoWay = 14, "the kernel has no route to the backend's node";
    /// Not lost: a packet was too long together with an outer header, and its sender was told.
    TooBig = 15, "a packet was too long to be encapsulated; its sender was told the right length";
    /// No network policy allows what a pod sent.
    PolicyEgress = 16, "no network policy allows what the pod sent";
    /// No network policy allows what came for a pod.
    PolicyIngress = 17, "no network policy allows what came for the pod";
    /// A limited pod's packet would have to wait for longer than packets may.
    Late = 18, "a pod with an egress limit sent more than its link lets wait";
}

impl Reason {
    /// Number of reasons, the size of the counter array.
    pub const COUNT: u32 = 19;

    /// Was a packet lost? The others are told of for another cause.
    #[must_use]
    pub const fn drops(self) -> bool {
        !matches!(self, Reason::NodePortTaken | Reason::Unremembered | Reason::TooBig)
    }
}

const _: () = assert!(Reason::ALL.len() == Reason::COUNT as usize);
