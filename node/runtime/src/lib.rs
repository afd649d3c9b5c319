//! Pods' containers through containerd: images, snapshots, containers, tasks, exec, logs.
//!
//! There is no pause container: the agent gives every container the pod's network namespace and cgroup. containerd is the
//! only record: all that is needed to find a container again after a restart is in its labels. Containers, their output
//! and their exit status do not depend on the life of this process: tasks belong to containerd's shims, output goes to a
//! logger that the shim starts.

pub mod cgroup;
pub mod daemon;
mod error;
mod io;
pub mod limits;
pub mod logger;
pub mod logs;
mod runtime;
mod types;

pub use error::{Error, Result};
pub use io::{Input, Output, Process};
pub use runtime::{Events, Runtime};
pub use types::*;
