//! Network namespaces: made, pinned, entered — always on a thread of their own, never on one of tokio's.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::statfs;

use crate::Error;
use crate::nl::Netlink;

/// `statfs` type of namespace files.
const NSFS: i64 = 0x6e73_6673;
const NULL: Option<&str> = None;

/// An open namespace.
#[derive(Clone, Debug)]
pub(crate) struct Netns(Arc<File>);

impl Netns {
    /// That of the calling thread.
    pub(crate) fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(failed(format!("opening {}", path.display())))?;
        Ok(Self(Arc::new(file)))
    }

    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    /// Puts the calling thread inside: it has to be one that ends ([`on_thread`]).
    pub(crate) fn enter(&self) -> Result<(), Error> {
        setns(&*self.0, CloneFlags::CLONE_NEWNET).map_err(call("entering a network namespace"))
    }

    /// Runs short, blocking work inside.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inside = self.clone();
        on_thread(move || {
            inside.enter()?;
            work()
        })
        .await
    }

    /// A netlink connection that belongs to this namespace.
    pub(crate) async fn netlink(&self) -> Result<Netlink, Error> {
        let runtime = tokio::runtime::Handle::current();
        self.run(move || {
            let _entered = runtime.enter();
            Netlink::open()
        })
        .await
    }

    /// Writes kernel parameters (`net/ipv4/ip_forward`, value); those that the kernel lacks are left out.
    pub(crate) async fn sysctls(&self, values: Vec<(String, &'static str)>) -> Result<(), Error> {
        self.run(move || values.iter().try_for_each(|(name, value)| set_sysctl(name, value))).await
    }
}

/// Makes a namespace and pins it at `path`, or takes the one that is pinned there. The calling thread is in it from then
/// on: it has to be one that ends ([`on_thread`]).
pub(crate) fn pin_and_enter(path: &Path) -> Result<Netns, Error> {
    if is_pinned(path) {
        let present = Netns::open(path)?;
        present.enter()?;
        return Ok(present);
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed(format!("making {}", dir.display())))?;
    }
    File::create(path).map_err(failed(format!("making {}", path.display())))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(call("making a network namespace"))?;
    mount(Some("/proc/thread-self/ns/net"), path, NULL, MsFlags::MS_BIND, NULL)
        .map_err(call("pinning a network namespace"))?;
    Netns::open(path)
}

/// Sets a parameter of the calling thread's namespace, unless it has the value or the kernel lacks it.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys").join(name);
    match fs::read_to_string(&path).map(|text| text.trim() == value) {
        Ok(true) => {}
        Ok(false) => fs::write(&path, value).map_err(failed(format!("setting {name} to {value}")))?,
        Err(error) => tracing::debug!(name, %error, "kernel parameter not there"),
    }
    Ok(())
}

/// Whether a namespace is pinned at the path.
pub(crate) fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|about| about.filesystem_type().0 == NSFS)
}

/// Lets a pinned namespace go; nothing there is success.
pub(crate) fn unpin(path: &Path) -> Result<(), Error> {
    while is_pinned(path) {
        umount2(path, MntFlags::MNT_DETACH).map_err(call("unpinning a network namespace"))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("removing {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// What is pinned in a folder.
pub(crate) fn pinned(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Runs blocking work on a thread that ends with it, and may so change its namespace.
pub(crate) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let body = move || {
        // Nobody waits any more when the caller was dropped.
        let _ = answer.send(work());
    };
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(body)
        .map_err(failed("starting a thread for a network namespace".into()))?;
    answered.await.map_err(|_| Error::Invalid("a thread in a network namespace has panicked".into()))?
}

pub(crate) fn failed(what: String) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Kernel { what, source }
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> Error {
    move |error| Error::Kernel { what: what.into(), source: error.into() }
}
