//! Addresses of Services as objects: the ranges they are from ([`ranges`], ServiceCIDRs) and the addresses themselves
//! ([`repair`], IPAddresses), and what is wrong with node ports ([`ports`]). The API server gives the addresses out and writes both kinds; nothing here does.

pub(crate) mod ports;
pub(crate) mod ranges;
pub(crate) mod repair;

/// The label that says whose business an IPAddress is, with the API server's own value.
const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
