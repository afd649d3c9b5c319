//! Labs: clusters of network namespaces on one machine, each node with its own daemon, containerd,
//! cgroups and pinned maps, without a route out. The stories under `tests/` and `cargo xtask lab`
//! use them. A lab removes everything it made when it is dropped.

pub mod bare;
pub mod book;
mod clock;
pub mod echoes;
mod etcd;
pub mod lab;
pub mod leftovers;
pub mod node;
pub mod notices;
mod sh;
pub mod wires;

pub use bare::Bare;
pub use echoes::Echoes;
pub use etcd::Etcd;
pub use lab::{Lab, Options, Stop};
pub use node::Node;
pub use sh::{host, output, run, sample_image, step, target, until};
pub use wires::{Families, Shape, Weather};
