//! What a cluster is made of before anyone asks: certificates and keys, default objects.

pub mod claim;
pub mod encryption;
pub(crate) mod endpoints;
pub(crate) mod keep;
pub mod objects;
pub mod pki;
mod range;
pub mod roles;
