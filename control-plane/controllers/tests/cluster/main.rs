//! Stories of the whole control plane, by controller: what users do, and what becomes of it.
#![allow(clippy::unwrap_used)]

mod accounts;
mod addresses;
mod common;
mod daemons;
mod deployments;
mod election;
mod jobs;
mod load_balancers;
mod namespaces;
mod nodes;
mod quotas;
mod scheduling;
mod services;
mod stateful;
mod volumes;
