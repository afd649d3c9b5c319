//! What the packet bench tells its wrapper programs.

/// One measurement: how the packet looks before each run, and which of many flows it belongs to.
///
/// A flow is a client's address and port: the flow's number is added to both, low bits first to the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// The first bytes of the frame, after two bytes that put the IP header on a word.
    pub template: [u32; Self::WORDS],
    /// Length of the frame.
    pub length: u32,
    /// Word of the template that holds the client's address, or its last part.
    pub address: u32,
    /// Word of the template that begins with the client's port.
    pub ports: u32,
    /// The client's address of flow 0, host order.
    pub first: u32,
    /// The flow's number is a counter (or a random word) with this mask: 0 is one flow, all ones are flows without end.
    pub mask: u32,
    /// 1: flows come in random order.
    pub random: u32,
    /// The next flow's number.
    pub next: u32,
    /// The packet's mark.
    pub mark: u32,
}

impl Round {
    /// Words of the template.
    pub const WORDS: usize = 21;
    /// Bytes of a frame that are restored before each run; a frame is at least as long.
    pub const RESTORED: usize = Self::WORDS * 4 - Self::PAD;
    /// Bytes before the frame.
    pub const PAD: usize = 2;
    /// Bits of a flow's number that count in the address.
    pub const ADDRESS_BITS: u32 = 12;
    /// The rest counts in the port, from this one on.
    pub const FIRST_PORT: u16 = 1024;
}

/// Entries of the floor programs' tables.
pub const FLOOR_ENTRIES: u32 = 1_024;

/// The key that the floor programs look up.
pub const FLOOR_KEY: [u32; 4] = [1, 2, 3, 4];

const _: () = assert!(size_of::<Round>() == 116 && align_of::<Round>() == 4);
