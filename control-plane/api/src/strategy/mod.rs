//! What a kind does beyond the generic path: defaults, preparation before a write, validation.
//!
//! Everything is keyed by (group, kind), works on JSON values, and does nothing for kinds it does
//! not know: their schema is then the only check. The server calls, in this order, `defaults`,
//! `prepare_*`, `validate_*`.

mod defaults;
mod path;
mod pod_defaults;
mod prepare;
mod validate;
mod warnings;

pub use defaults::defaults;
pub use prepare::{has_generation, prepare_create, prepare_status_update, prepare_update, qos_class};
pub use validate::{service_addresses, validate_create, validate_status_update, validate_update};
pub use warnings::warnings;
