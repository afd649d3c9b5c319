//! Addresses of both families in one form.

/// An IP address in network order. An IPv4 address has its IPv6-mapped form (`::ffff:a.b.c.d`), so that one key serves
/// both families and a socket of either one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Network order, most significant word first.
    pub words: [u32; 4],
}

impl Address {
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// Every IPv4 address of the node, as a frontend's address.
    pub const ANY_V4: Address = Address::v4(0);
    /// Every IPv6 address of the node, as a frontend's address.
    pub const ANY_V6: Address = Address { words: [0; 4] };

    /// From an IPv4 address in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Address {
        Address { words: [0, 0, Self::MAPPED, word] }
    }

    /// Is it an IPv4 address?
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] | self.words[1] | (self.words[2] ^ Self::MAPPED) == 0
    }

    /// The IPv4 address, or an IPv6 address's last word.
    #[inline(always)]
    pub const fn last(&self) -> u32 {
        self.words[3]
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [high, next, middle, low] = self.words;
        let v4 = (middle ^ Self::MAPPED) | ((low & 0xff00_0000_u32.to_be()) ^ 0x7f00_0000_u32.to_be());
        let v6 = middle | (low ^ 1_u32.to_be());
        high | next | v4 == 0 || high | next | v6 == 0
    }

    /// The address that stands for every address of the same family.
    #[inline(always)]
    pub const fn any(&self) -> Address {
        if self.is_v4() { Self::ANY_V4 } else { Self::ANY_V6 }
    }

    /// Is it in that network? An empty mask contains nothing.
    #[inline(always)]
    pub const fn within(&self, network: &Address, mask: &Address) -> bool {
        mask.words[0] != 0
            && ((self.words[0] & mask.words[0]) ^ network.words[0])
                | ((self.words[1] & mask.words[1]) ^ network.words[1])
                | ((self.words[2] & mask.words[2]) ^ network.words[2])
                | ((self.words[3] & mask.words[3]) ^ network.words[3])
                == 0
    }

    /// Word by word: a derived comparison becomes a call that programs do not have. As elsewhere here, one branch for all
    /// words, because the kernel's verifier walks every branch of a program.
    #[inline(always)]
    pub const fn same(&self, other: &Address) -> bool {
        (self.words[0] ^ other.words[0])
            | (self.words[1] ^ other.words[1])
            | (self.words[2] ^ other.words[2])
            | (self.words[3] ^ other.words[3])
            == 0
    }
}

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
