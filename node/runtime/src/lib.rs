//! Pods' containers through containerd: images, snapshots, containers, tasks, exec, logs.
//!
//! There is no pause container: the agent gives every container the pod's network namespace and cgroup. containerd is the
//! only record: all that is needed to find a container again after a restart is in its labels. Containers, their output
//! and their exit status do not depend on the life of this process: tasks belong to containerd's shims, output goes to a
//! logger that the shim starts.

mod archive;
pub mod cgroup;
mod client;
mod containers;
mod content;
pub mod credentials;
pub mod daemon;
mod error;
mod events;
mod exec;
mod host;
mod image_mounts;
mod images;
mod io;
mod labels;
pub mod limits;
pub mod logger;
mod loggers;
pub mod logs;
mod reference;
mod registry;
mod runtime;
mod seccomp;
mod shims;
mod snapshots;
mod spec;
mod sys;
mod turns;
mod types;
mod usage;
mod users;

pub use error::{Error, Result};
pub use io::{Input, Output, Process, Terminal};
pub use runtime::{Events, Runtime};
pub use snapshots::Prepared;
pub use types::*;
