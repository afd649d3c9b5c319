//! What every controller is made of: a queue of keys, the kinds whose changes fill it, and workers that empty it. A
//! controller brings its table of kinds (the calls of [`Wiring`]) and its [`Reconcile::sync`]; nothing else starts tasks.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::runtime::watcher::Config;

use crate::aggregation::ClusterRole;
use crate::context::Context;
use crate::disruption::Budget;
use crate::informer::{Informer, Kind, Store};
use crate::limits;
use crate::object::Object;
use crate::queue::{self, Key, Queue};
use crate::quotas::Quota;
use crate::types::{
    Announcement, Certificate, ConfigMap, ControllerRevision, CronJob, DaemonSet, Deployment, Endpoints, IpAddress,
    Job, Lease, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Pool, ReplicaSet, ReplicationController,
    Secret, Service, ServiceAccount, ServiceCidr, Slice, StatefulSet, StorageClass,
};
use crate::{account_tokens, accounts, tokens};

/// Brings the object of one key closer to what is wanted.
pub(crate) trait Reconcile: Send + Sync + 'static {
    /// Takes one look and one step; the changes it makes bring the next. `Some`: look again after this time even if
    /// nothing changes. An error is logged and the key tried again after a growing delay.
    fn sync(&self, key: &Key) -> impl Future<Output = anyhow::Result<Option<Duration>>> + Send;
}

/// One controller's table: which kinds it reads, and whose changes make which keys due.
pub(crate) struct Wiring {
    queue: Queue<Key>,
    synced: Vec<BoxFuture<'static, ()>>,
}

impl Wiring {
    /// An empty table.
    pub(crate) fn new() -> Self {
        Self { queue: Queue::default(), synced: Vec::new() }
    }

    /// The controller's queue, for those that make keys due by themselves.
    pub(crate) fn queue(&self) -> Queue<Key> {
        self.queue.clone()
    }

    /// A kind that is looked at; its changes wake nobody. Work begins after its first list is complete.
    pub(crate) fn reads<K: Kind>(&mut self, informer: &Informer<K>) -> Arc<Store<K>> {
        let store = informer.store.clone();
        self.synced.push(async move { store.synced().await }.boxed());
        informer.store.clone()
    }

    /// The kind the controller is about: every change makes the object itself due.
    pub(crate) fn drives<K: Kind>(&mut self, informer: &Informer<K>) -> Arc<Store<K>> {
        self.wakes(informer, |old, new, queue| {
            if let Some(object) = new.or(old) {
                queue.add(object.key());
            }
        });
        self.reads(informer)
    }

    /// A kind whose changes, from the first argument to the second, make the keys due that `wake` adds.
    pub(crate) fn wakes<K: Kind>(
        &self,
        informer: &Informer<K>,
        wake: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>, &Queue<Key>) + Send + Sync + 'static,
    ) {
        let queue = self.queue.clone();
        informer.on_change(move |old, new| wake(old, new, &queue));
    }

    /// Starts the workers; they end with the context's shutdown.
    pub(crate) fn run<C: Reconcile>(self, context: &Context, name: &'static str, controller: Arc<C>) {
        let Self { queue, synced } = self;
        let shutdown = context.shutdown.clone();
        tokio::spawn(async move {
            for list in synced {
                list.await;
            }
            let again = queue.clone();
            queue::work(name, queue, limits::WORKERS, shutdown, move |key| {
                let (controller, again) = (controller.clone(), again.clone());
                async move {
                    if let Some(after) = controller.sync(&key).await? {
                        again.add_after(key, after);
                    }
                    Ok(())
                }
            })
            .await;
        });
    }
}

macro_rules! informers {
    ($($(#[$doc:meta])* $name:ident: $kind:ty $(where $fields:expr)?;)*) => {
        /// One informer per kind, shared by all controllers.
        pub(crate) struct Informers {
            $($(#[$doc])* pub(crate) $name: Informer<$kind>,)*
        }

        impl Informers {
            /// Informers that do not run yet: handlers can be added.
            pub(crate) fn new() -> Self {
                Self { $($name: Informer::new(Config::default()$(.fields(&$fields))?),)* }
            }

            /// Starts all watches.
            pub(crate) fn start(self, context: &Context) {
                $(self.$name.start(context.client.clone(), context.shutdown.clone());)*
            }
        }
    };
}

informers! {
    pods: Pod;
    replica_sets: ReplicaSet;
    replication_controllers: ReplicationController;
    deployments: Deployment;
    daemon_sets: DaemonSet;
    stateful_sets: StatefulSet;
    revisions: ControllerRevision;
    jobs: Job;
    cron_jobs: CronJob;
    claims: PersistentVolumeClaim;
    volumes: PersistentVolume;
    classes: StorageClass;
    budgets: Budget;
    quotas: Quota;
    cluster_roles: ClusterRole;
    services: Service;
    addresses: IpAddress;
    service_cidrs: ServiceCidr;
    slices: Slice;
    pools: Pool;
    announcements: Announcement;
    endpoints: Endpoints;
    nodes: Node;
    leases: Lease;
    namespaces: Namespace;
    accounts: ServiceAccount;
    requests: Certificate;
    /// Only those called kube-root-ca.crt.
    bundles: ConfigMap where format!("metadata.name={}", accounts::ROOT_CA);
    /// Only bootstrap tokens.
    tokens: Secret where tokens::FIELDS;
    /// Only those that hold a service account's token.
    account_tokens: Secret where account_tokens::FIELDS;
}
