//! The node daemon: runs the pods bound to its node through containerd, the pod network and the data plane, reports
//! their status, serves the node's HTTPS API and keeps the Node object alive. It talks to the API server only
//! through `kube::Client`, and keeps no file of its own about pods: a restarted daemon reads everything back from
//! containerd, the kernel and the API server.

pub mod admit;
mod agent;
pub mod allocations;
pub mod api;
mod bandwidth;
pub mod bootstrap;
pub mod container;
pub mod credentials;
pub mod dispatch;
pub mod dns;
pub mod env;
pub mod etc;
pub mod events;
pub mod eviction;
pub mod fields;
mod home;
pub mod informers;
pub mod kept;
pub mod lenient;
pub mod limits;
pub mod model;
pub mod node;
pub mod node_context;
pub mod pod;
pub mod probes;
pub mod quantity;
mod real;
pub mod references;
mod refused;
pub mod seams;
#[cfg(test)]
mod sim;
pub mod spdy;
pub mod volumes;

pub use agent::{Agent, Config};
