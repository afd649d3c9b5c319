//! The API server: one pipeline for every resource, from HTTPS or in process, over the watch cache.
//!
//! A request is parsed into [`context::RequestInfo`], authenticated, authorized, admitted, stored
//! and answered from canonical bytes. This crate is the only one that opens the store.

pub mod context;
pub mod storage;
