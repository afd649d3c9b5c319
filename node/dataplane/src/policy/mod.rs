//! NetworkPolicies and those of the whole cluster: from the API's policies, pods and namespaces to what the programs look up.
//!
//! The compiler ([`compile`]) is pure and keeps what it worked out, so that a change costs what changed. Pods that no policy
//! tells apart are one peer; addresses that policies name are cut into blocks that are in or out as a whole; the policies of a
//! pod become one set of rules for each direction, which pods with the same policies share. The kernel's maps are the only
//! record of what is enforced: a process that starts goes on from them, and nothing is opened before it knows better.

pub(crate) mod compile;
pub(crate) mod driver;
mod follow;
pub mod model;
pub(crate) mod named;
mod painting;
mod ports;
pub(crate) mod rules;
pub(crate) mod store;
mod tier_views;
mod tiers;
mod views;

pub use driver::snapshot;
