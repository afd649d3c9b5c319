//! Why the data plane could not do something, in words for the person who runs it.

use std::io;
use std::path::PathBuf;

/// Why the data plane could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not use eBPF.
    #[error(
        "not allowed to load eBPF programs: run as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN \
         (in a container: privileged)"
    )]
    Permission,
    /// No cgroup v2 tree.
    #[error(
        "no cgroup v2 tree is mounted, and services are translated there: mount one \
         (mount -t cgroup2 none /sys/fs/cgroup/unified)"
    )]
    NoCgroup,
    /// The BPF file system could not be mounted.
    #[error("cannot mount the BPF file system at {path} ({source}): mount -t bpf bpf {path}")]
    NoBpffs {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel lacks something.
    #[error("this kernel cannot run the data plane: {0} (Linux 6.1 or newer is needed)")]
    Kernel(String),
    /// No data plane is loaded under that directory.
    #[error("no data plane is loaded under {0}: is `sluice up` or `sluice node` running?")]
    NotLoaded(PathBuf),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// aya's loader or a map failed.
    #[error("{what}: {text}")]
    Ebpf {
        /// What was being done.
        what: String,
        /// The whole chain of causes.
        text: String,
    },
}

impl Error {
    /// A failed system call.
    pub(crate) fn system(what: impl Into<String>, source: io::Error) -> Error {
        if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
            return Error::Permission;
        }
        Error::System { what: what.into(), source }
    }

    /// A failure inside aya, with its chain of causes.
    pub(crate) fn ebpf(what: impl Into<String>, error: impl std::error::Error + 'static) -> Error {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            if inner.downcast_ref::<io::Error>().is_some_and(|io| io.raw_os_error() == Some(libc::EPERM)) {
                return Error::Permission;
            }
            let inner_text = inner.to_string();
            if !text.ends_with(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            cause = inner.source();
        }
        Error::Ebpf { what: what.into(), text }
    }
}
