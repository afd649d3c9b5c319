//! The object model: the resource table, schemas, patches, selectors, defaults, validation and
//! printer columns of every kind. Pure: no IO, no clock, no global state but the immutable table.
//!
//! A built-in resource is a row ([`resource::Resource`]); a CRD makes the same row at run time.
//! Objects on the write path are `serde_json::Value`s; typed structs appear only where a rule
//! needs them.

pub mod apply;
pub mod block;
pub mod cel;
pub mod convert;
pub mod decode;
pub mod discovery;
pub mod limits;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod quota;
pub mod resource;
pub mod scale;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod structural;
pub mod table;
pub mod wire;
