//! What can go wrong, typed where the agent acts on it.

/// A failed runtime operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry does not have the image (`ErrImagePull`).
    #[error("failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\": {image}: not found")]
    ImageNotFound { image: String },
    /// The registry wants other credentials.
    #[error(
        "failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\": pull access denied, \
         repository does not exist or may require authorization: {reason}"
    )]
    ImageUnauthorized { image: String, reason: String },
    /// The registry cannot be reached.
    #[error("failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\": {reason}")]
    RegistryUnreachable { image: String, reason: String },
    /// The pull failed in another way.
    #[error("failed to pull and unpack image \"{image}\": {reason}")]
    Pull { image: String, reason: String },
    /// The reference is no image name (`InvalidImageName`).
    #[error("couldn't parse image name \"{image}\": {reason}")]
    InvalidImageName { image: String, reason: String },
    /// The image is not present (pull it first).
    #[error("image \"{0}\" is not present")]
    ImageMissing(String),
    /// The archive is no image.
    #[error("cannot import the image archive: {0}")]
    Import(String),
    /// `runAsNonRoot` forbids it (`CreateContainerConfigError`).
    #[error("container has runAsNonRoot and image will run as root")]
    RunAsRoot,
    /// `runAsNonRoot` with a user that is only a name.
    #[error("container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root")]
    RunAsNamedUser(String),
    /// The specification cannot be run as it is (`CreateContainerError`).
    #[error("{0}")]
    InvalidSpec(String),
    /// No such container, process or image.
    #[error("{0}: not found")]
    NotFound(String),
    /// It exists already.
    #[error("{0}: already exists")]
    AlreadyExists(String),
    /// runc or the kernel refused (`RunContainerError`/`StartError`), in its words.
    #[error("{0}")]
    Refused(String),
    /// containerd does not answer.
    #[error("containerd at {socket} does not answer: {reason}")]
    Unavailable { socket: String, reason: String },
    /// The programs are missing.
    #[error("{0} is not installed: apt-get install containerd runc")]
    NotInstalled(&'static str),
    /// It took too long.
    #[error("{what} timed out after {after:?}")]
    Timeout { what: String, after: std::time::Duration },
    /// A local file or call.
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    /// containerd answered something else.
    #[error("containerd: {0}")]
    Containerd(String),
}

/// Result of a runtime operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err`: a failed local call, with what was being done.
    pub(crate) fn io(what: String) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Whether it says that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}

/// Makes an operation that removes something succeed when it is gone already.
pub(crate) fn or_gone<T: Default>(result: Result<T>) -> Result<T> {
    match result {
        Err(Error::NotFound(_)) => Ok(T::default()),
        other => other,
    }
}
