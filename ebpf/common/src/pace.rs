//! When a pod with a limit may send.

/// The limit of a pod, and what it has used of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Bytes per second; 0 without a limit.
    pub rate: u64,
    /// When its next packet may leave, in nanoseconds of the kernel's monotonic clock.
    pub next: u64,
}

impl Pace {
    /// Says how many pods have a limit, in `rate`; no pod has this place.
    pub const ALL: u32 = 0;
    /// Above a place, in the queue that a packet is noted for: no network card has so many.
    pub const NOTE: u32 = 0xc000;
}

const _: () = assert!(size_of::<Pace>() == 16 && align_of::<Pace>() == 8);
