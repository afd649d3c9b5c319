//! One pod: what is known of it ([`state`]), how it changes ([`machine`], [`order`]), how it looks from outside
//! ([`status`]) and how it is found again after a restart ([`adopt`]). All of that is pure; the worker is the only
//! place where a pod meets IO.

pub mod adopt;
mod early;
mod files;
mod hooks;
mod images;
pub mod machine;
pub mod messages;
mod order;
mod resize;
pub mod spec;
mod start;
pub mod state;
pub mod status;
#[cfg(test)]
mod tests;
pub mod worker;
