//! Server-side apply: who manages which fields of an object (`metadata.managedFields`), and the merge
//! of what a manager applies into what is there. Pure: the clock and the versions of a kind come in
//! with the [`Write`]. The rules are upstream's (KEP-555 and `structured-merge-diff`).
//!
//! A [`Set`] is a tree of path [`Element`]s; [`Type`] says which places are owned whole; `walk` finds
//! the fields of a value and the difference between two, `merge` puts a configuration into an object
//! and takes fields out of it, `managers` is the list as it is stored, `track` the two operations.

mod blank;
mod check;
mod conflict;
mod element;
mod managers;
mod merge;
mod options;
mod reset;
mod set;
mod track;
mod types;
mod walk;

pub use element::Element;
pub use managers::{Managers, same_but_times, validate as validate_managers};
pub use options::{manager_or_agent, validate_manager};
pub use reset::reset_fields;
pub use set::Set;
pub use track::{Versions, Write};
pub use types::Type;
pub use walk::{Diff, TypeError, compare, field_set};

#[cfg(test)]
mod tests;
