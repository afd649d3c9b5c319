//! containerd's services over one connection: namespace, deadlines, leases, and its answers as our errors.

use std::path::Path;

use containerd_client::services::v1::{
    containers_client::ContainersClient, content_client::ContentClient, diff_client::DiffClient,
    events_client::EventsClient, images_client::ImagesClient, leases_client::LeasesClient,
    namespaces_client::NamespacesClient, snapshots::snapshots_client::SnapshotsClient, tasks_client::TasksClient,
    version_client::VersionClient,
};
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::{Error, Result, limits};

/// A connection that comes back by itself when containerd restarts.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    socket: String,
}

impl Client {
    /// Nothing is sent until the first call.
    pub(crate) fn new(socket: &Path, namespace: &str) -> Result<Self> {
        let namespace =
            namespace.parse().map_err(|_| Error::InvalidSpec(format!("{namespace:?} is no containerd namespace")))?;
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(UnixStream::connect(path).await?)) }
        });
        // The address is never used: the connector goes to the socket.
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connect);
        Ok(Self { channel, namespace, socket: socket.display().to_string() })
    }

    /// A call with the usual deadline.
    pub(crate) fn call<T>(&self, message: T) -> Request<T> {
        let mut request = self.endless(message);
        request.set_timeout(limits::CALL);
        request
    }

    /// A call that lasts as long as what it waits for.
    pub(crate) fn endless<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A call whose new content and snapshots belong to the lease.
    pub(crate) fn leased<T>(&self, lease: &str, message: T) -> Request<T> {
        let mut request = self.endless(message);
        if let Ok(lease) = lease.parse() {
            request.metadata_mut().insert("containerd-lease", lease);
        }
        request
    }

    /// Turns containerd's answer about `what` into our error.
    pub(crate) fn failed(&self, what: &str) -> impl Fn(tonic::Status) -> Error + use<> {
        let (what, socket) = (what.to_owned(), self.socket.clone());
        move |status| match status.code() {
            Code::NotFound => Error::NotFound(what.clone()),
            Code::AlreadyExists => Error::AlreadyExists(what.clone()),
            Code::Unavailable => Error::Unavailable { socket: socket.clone(), reason: status.message().to_owned() },
            Code::DeadlineExceeded | Code::Cancelled => Error::Timeout { what: what.clone(), after: limits::CALL },
            Code::Unknown => transport(&status).map_or_else(
                || Error::Refused(status.message().to_owned()),
                |reason| Error::Unavailable { socket: socket.clone(), reason },
            ),
            _ => Error::Containerd(format!("{what}: {}", status.message())),
        }
    }

    pub(crate) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(limits::MESSAGE)
    }

    pub(crate) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(limits::MESSAGE)
    }

    pub(crate) fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }

    pub(crate) fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }

    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(limits::MESSAGE)
    }

    pub(crate) fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    pub(crate) fn namespaces(&self) -> NamespacesClient<Channel> {
        NamespacesClient::new(self.channel.clone())
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub(crate) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(limits::MESSAGE)
    }

    pub(crate) fn version(&self) -> VersionClient<Channel> {
        VersionClient::new(self.channel.clone())
    }
}

/// A broken connection comes as `Unknown` with a cause; an answer of containerd has none.
fn transport(status: &tonic::Status) -> Option<String> {
    std::error::Error::source(status).map(|source| source.to_string())
}
