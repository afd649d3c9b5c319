//! Connected datagram sockets whose backend is gone: they would go on sending to it, as nothing in UDP tells them. They are
//! ended, so that their program gets an error at once and connects anew, to a backend that is there.
//!
//! Which sockets were translated, and from which service, stands in the sockets' own storage, which an iterator lists for a
//! namespace. A socket that was connected to a pod directly has none and is never touched, whatever becomes of the pod. A
//! backend is gone for a socket when its service lists it no longer, not even among those that end and keep what they have.
//! (kube-proxy forgets the connection then, and Cilium ends the socket.)

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use aya::programs::{Iter, ProgramFd};
use aya::{Btf, Ebpf};
use parking_lot::Mutex;
use sluice_ebpf_common::{Address, FrontendKey, Scope, SocketState, Translation, protocol};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::diag::{Diagnosis, works};
use crate::limits::DATAGRAMS;
use crate::wanted::{Changes, Wanted};
use crate::{Dataplane, Error, sys};

/// Name of the program that lists translated sockets.
const PROGRAM: &str = "translated";
const COOKIE: usize = 8;

/// What is known about where to look, and when.
#[derive(Default)]
pub(crate) struct Datagrams {
    /// Pods' namespaces by the index of their link.
    spaces: Mutex<BTreeMap<u32, PathBuf>>,
    /// All services are known, so that one that is not is gone.
    complete: AtomicBool,
    /// It was said that the kernel cannot do it.
    told: AtomicBool,
    changed: Notify,
}

impl Datagrams {
    pub(crate) fn know(&self, link: u32, space: &Path) {
        self.spaces.lock().insert(link, space.to_path_buf());
    }

    pub(crate) fn forget(&self, link: u32) {
        self.spaces.lock().remove(&link);
    }

    /// The table was changed like that.
    pub(crate) fn notice(&self, all: bool, changes: &Changes) {
        let first = all && !self.complete.swap(true, Ordering::Relaxed);
        if first || changes.keys().any(|key| key.protocol == protocol::UDP) {
            self.changed.notify_one();
        }
    }
}

/// A backend as a socket knows it.
type Backend = (Address, u16);

/// Backends that a socket was translated to and must not go on with.
fn gone(state: &SocketState, wanted: &Wanted) -> Vec<Backend> {
    let entries = || state.entries.iter().filter(|entry| entry.service_port != 0);
    let lives = |backend: Backend| {
        entries()
            .filter(|entry| backend == (entry.backend_address, entry.backend_port))
            .any(|entry| leads(wanted, entry))
    };
    let backends = entries().map(|entry| (entry.backend_address, entry.backend_port));
    backends.filter(|backend| !lives(*backend)).collect()
}

/// Does the service still lead to the backend, on its own address or as a port of the node?
fn leads(wanted: &Wanted, entry: &Translation) -> bool {
    [entry.service_address, entry.service_address.any()].into_iter().any(|address| {
        let key =
            FrontendKey { address, port: entry.service_port, protocol: protocol::UDP, scope: Scope::Internal as u8 };
        let lists = wanted.get(&key).map(|frontend| [&frontend.backends, &frontend.draining]);
        lists
            .into_iter()
            .flatten()
            .flat_map(|list| list.iter())
            .any(|backend| (backend.address, backend.port) == (entry.backend_address, entry.backend_port))
    })
}

/// Takes the iterator's output apart.
fn states(bytes: &[u8]) -> impl Iterator<Item = (u64, SocketState)> {
    bytes.chunks_exact(COOKIE + size_of::<SocketState>()).filter_map(|record| {
        let (cookie, words) = record.split_first_chunk::<COOKIE>()?;
        let mut words = words.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        Some((u64::from_ne_bytes(*cookie), state(&mut words)?))
    })
}

fn state(words: &mut impl Iterator<Item = u32>) -> Option<SocketState> {
    let mut state = SocketState::default();
    for entry in &mut state.entries {
        for address in [&mut entry.service_address, &mut entry.backend_address] {
            for word in &mut address.words {
                *word = words.next()?;
            }
        }
        let [a, b, c, d] = words.next()?.to_ne_bytes();
        (entry.service_port, entry.backend_port) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        entry.generation = words.next()?;
    }
    state.marks = words.next()?;
    Some(state)
}

impl Dataplane {
    /// Ends connected datagram sockets of backends that go, until the shutdown.
    pub async fn follow_datagrams(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.inner.datagrams.changed.notified() => {}
            }
            let dataplane = self.clone();
            let looked = tokio::task::spawn_blocking(move || dataplane.tend_datagrams()).await;
            let looked = looked.map_err(|error| Error::system("look for datagram sockets", io::Error::other(error)))?;
            if let Err(error) = looked
                && !self.inner.datagrams.told.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(%error, "connected datagram sockets keep sending to backends that are gone");
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(DATAGRAMS) => {}
            }
        }
    }

    /// One look: ends the connected datagram sockets of the node and of its known pods that were translated to a backend
    /// which their service no longer has. Returns how many.
    ///
    /// # Errors
    /// When the kernel cannot list or end such sockets.
    pub fn tend_datagrams(&self) -> Result<usize, Error> {
        let inner = &self.inner;
        if !inner.datagrams.complete.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let program = program(&mut inner.ebpf.lock())?;
        let end = || {
            let mut listed = Vec::new();
            sys::iterate(program.as_fd())?.read_to_end(&mut listed)?;
            let gone = self.gone(&listed);
            if gone.is_empty() { Ok(0) } else { end(&gone) }
        };
        let mut ended = end().map_err(|error| Error::system("end datagram sockets of the node", error))?;
        let spaces: Vec<PathBuf> = inner.datagrams.spaces.lock().values().cloned().collect();
        for space in spaces {
            match sys::inside(&space, end) {
                Ok(count) => ended += count,
                // It went meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::system("end datagram sockets of a pod", error)),
            }
        }
        if ended > 0 {
            tracing::debug!(sockets = ended, "datagram sockets of backends that are gone were ended");
        }
        Ok(ended)
    }

    /// Sockets, by their cookies, with backends that they must not go on with.
    fn gone(&self, listed: &[u8]) -> HashMap<u64, Vec<Backend>> {
        let table = self.inner.table.lock();
        let all = states(listed).map(|(cookie, state)| (cookie, gone(&state, &table.wanted)));
        all.filter(|(_, gone)| !gone.is_empty()).collect()
    }
}

/// Ends those of this namespace.
fn end(gone: &HashMap<u64, Vec<Backend>>) -> io::Result<usize> {
    let diagnosis = Diagnosis::open()?;
    let mut ended = 0;
    for datagram in diagnosis.datagrams()? {
        let backends = gone.get(&datagram.cookie());
        if backends.is_some_and(|backends| backends.contains(&datagram.remote())) && diagnosis.destroy(&datagram)? {
            ended += 1;
        }
    }
    Ok(ended)
}

/// The program that lists translated sockets, loaded when it is needed first.
fn program(ebpf: &mut Ebpf) -> Result<ProgramFd, Error> {
    let program: &mut Iter = ebpf
        .program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| Error::Kernel(format!("the embedded object has no program {PROGRAM}")))?;
    if program.fd().is_err() {
        let types = Btf::from_sys_fs().map_err(|error| Error::ebpf("read the kernel's types", error))?;
        let loaded = program.load("udp", &types);
        drop(types);
        // They are 20 MB as parsed.
        sys::give_memory_back();
        loaded.map_err(|error| Error::ebpf(format!("load the program {PROGRAM}"), error))?;
    }
    let fd = program.fd().map_err(|error| Error::ebpf(format!("use the program {PROGRAM}"), error))?;
    fd.try_clone().map_err(|error| Error::ebpf(format!("use the program {PROGRAM}"), error))
}

/// What is wrong with that on this machine, and what to do.
pub(crate) fn problem() -> Option<String> {
    let error = works().err()?;
    Some(format!(
        "connected datagram sockets keep sending to backends that are gone, as this kernel cannot end them ({error}): it \
         needs INET_DIAG_DESTROY and the module udp_diag"
    ))
}
