//! The pods' cgroups in upstream's layout (`kubepods/<class>/pod<uid>`), in hybrid v1 and in v2 hierarchies.

use crate::{Resources, Result, Stats};

/// `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// This node's part of the cgroup tree.
#[derive(Clone, Debug)]
pub struct Cgroups {
    prefix: String,
}

impl Cgroups {
    /// `prefix` as in [`crate::Config::cgroup_prefix`].
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }
    /// The pod's cgroup below the root of every hierarchy: `/<prefix>/kubepods/burstable/pod<uid>`.
    pub fn pod(&self, qos: Qos, uid: &str) -> String {
        let class = match qos {
            Qos::Guaranteed => "",
            Qos::Burstable => "burstable/",
            Qos::BestEffort => "besteffort/",
        };
        format!("/{}/kubepods/{class}pod{uid}", self.prefix)
    }
    /// Makes it (parents too) and sets its limits; present is fine, limits are then updated. Blocking, fast.
    pub fn create(&self, _path: &str, _limits: &Resources) -> Result<()> {
        Err(crate::Error::Containerd("not built yet".into()))
    }
    /// Removes it and what is left below it, in every hierarchy. Gone is success; busy is an error.
    pub fn remove(&self, _path: &str) -> Result<()> {
        Err(crate::Error::Containerd("not built yet".into()))
    }
    /// Paths of the pods' cgroups that exist, with their uids.
    pub fn pods(&self) -> Result<Vec<(String, String)>> {
        Err(crate::Error::Containerd("not built yet".into()))
    }
    /// Removes all of this prefix.
    pub fn remove_all(&self) -> Result<()> {
        Err(crate::Error::Containerd("not built yet".into()))
    }
    /// Counters of a cgroup.
    pub fn stats(&self, _path: &str) -> Result<Stats> {
        Err(crate::Error::Containerd("not built yet".into()))
    }
    /// The directory in the v2 tree of this prefix (made if missing), where socket programs are attached.
    pub fn unified(&self) -> Result<std::path::PathBuf> {
        Err(crate::Error::Containerd("not built yet".into()))
    }
}
