//! What the parts of the server share: storage, the table of served resources, and the guards that
//! every request passes.

use std::sync::Arc;

use arc_swap::ArcSwap;
use sluice_api::resource::Registry;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission, aggregation::Extensions, auth::Authenticator, authz::Authorizer, columns::Columns,
    connect::Connect, metrics::Metrics, openapi::Documents, services::Services, storage::Storage,
};

/// One per server; requests borrow it.
pub(crate) struct Core {
    pub(crate) storage: Arc<Storage>,
    /// Swapped when a CRD comes or goes.
    pub(crate) registry: ArcSwap<Registry>,
    /// Those of custom resources; swapped with the table.
    pub(crate) columns: ArcSwap<Columns>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) admission: Admission,
    pub(crate) connect: Connect,
    /// Versions of groups that other servers serve.
    pub(crate) extensions: Extensions,
    pub(crate) services: Services,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) openapi: Documents,
    /// Ends the watches.
    pub(crate) shutdown: CancellationToken,
    /// `host:port` for clients that were given no better address.
    pub(crate) address: String,
}
