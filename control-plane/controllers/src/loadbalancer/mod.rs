//! Load balancers: gives Services of type LoadBalancer addresses from LoadBalancerPools and says which nodes may announce
//! each of them. [`allocate`] and [`announce`] decide; this module gathers, writes, and tells users. It never touches
//! Services of other classes, nor what others have written into a Service's status.
//!
//! All addresses are decided together under one key: an address is free or not by what every other Service has.

mod allocate;
mod announce;
mod pool;
#[cfg(test)]
mod tests;
mod wish;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Client;
use parking_lot::Mutex;
use serde_json::json;
use sluice_api::block::Block;

use crate::context::Context;
use crate::events::Recorder;
use crate::harness::{Informers, Reconcile, Wiring};
use crate::informer::Store;
use crate::limits;
use crate::object::Object;
use crate::queue::{Key, Queue};
use crate::rest;
use crate::types::{
    Announcement, AnnouncementSpec, LoadBalancerIngress, Namespace, Node, Pool, PoolStatus, SERVICE_NAME, Service,
    Slice,
};
use allocate::{Answer, allocate};
use pool::Pools;
use wish::{CONDITION, FINALIZER, Wish};

struct Controller {
    client: Client,
    context: Context,
    events: Recorder,
    services: Arc<Store<Service>>,
    slices: Arc<Store<Slice>>,
    nodes: Arc<Store<Node>>,
    namespaces: Arc<Store<Namespace>>,
    pools: Arc<Store<Pool>>,
    announcements: Arc<Store<Announcement>>,
    /// Services as we wrote them last, until the informer has them: an address that was just given is not free.
    written: Mutex<HashMap<Key, Service>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, all: &Informers) {
    let mut wiring = Wiring::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        context: context.clone(),
        events: context.events.of("loadbalancer-controller"),
        services: wiring.reads(&all.services),
        slices: wiring.reads(&all.slices),
        nodes: wiring.reads(&all.nodes),
        namespaces: wiring.reads(&all.namespaces),
        pools: wiring.reads(&all.pools),
        announcements: wiring.reads(&all.announcements),
        written: Mutex::default(),
    });
    due(&wiring.queue());
    wiring.wakes(&all.services, |old, new, queue| {
        if [old, new].into_iter().flatten().any(|service| concerns(service)) {
            due(queue);
        }
    });
    let services = controller.services.clone();
    wiring.wakes(&all.slices, move |old, new, queue| {
        let Some(slice) = new.or(old) else { return };
        let Some(name) = slice.labels().get(SERVICE_NAME) else { return };
        let service = services.get(&Key::new(slice.ns(), name));
        let local = |service: &Arc<Service>| service.spec.external_traffic_policy.as_deref() == Some("Local");
        if service.is_some_and(|service| concerns(&service) && local(&service)) {
            due(queue);
        }
    });
    wiring.wakes(&all.nodes, |old, new, queue| {
        let view = |node: Option<&Arc<Node>>| node.map(|node| (announce::Node::new(node), node.spec.pod_cidrs.clone()));
        if view(old) != view(new) {
            due(queue);
        }
    });
    wiring.wakes(&all.namespaces, |old, new, queue| {
        if old.map(|namespace| namespace.labels()) != new.map(|namespace| namespace.labels()) {
            due(queue);
        }
    });
    wiring.wakes(&all.pools, |old, new, queue| {
        if old.map(|pool| &pool.spec) != new.map(|pool| &pool.spec) {
            due(queue);
        }
    });
    wiring.wakes(&all.announcements, |old, new, queue| {
        if old.map(|announcement| &announcement.spec) != new.map(|announcement| &announcement.spec) {
            due(queue);
        }
    });
    wiring.run(context, "loadbalancer-controller", controller);
}

/// Everything is decided at once.
fn due(queue: &Queue<Key>) {
    queue.add(Key::new("", "addresses"));
}

/// Whether a Service may have, or have had, a load balancer of ours.
fn concerns(service: &Service) -> bool {
    service.spec.kind.as_deref() == Some("LoadBalancer") || wish::is_ours(service)
}

impl Reconcile for Controller {
    async fn sync(&self, _: &Key) -> anyhow::Result<Option<Duration>> {
        let objects = self.pools.all();
        let nodes: BTreeMap<String, announce::Node> =
            self.nodes.all().iter().map(|node| (node.name().to_owned(), announce::Node::new(node))).collect();
        let excluded: HashSet<IpAddr> = nodes.values().flat_map(announce::Node::addresses).collect();
        let pools = Pools::new(&objects, &self.reserved());
        let services = self.concerned();
        let wishes: Vec<Wish> = services
            .iter()
            .filter(|service| wish::wants(service, !objects.is_empty()))
            .map(|service| Wish::new(service, self.namespace_labels(service)))
            .collect();
        let answers = allocate(&pools, &wishes, &excluded);

        // First addresses are taken off the wire, then they are released, then given out, then put on the wire.
        let current = self.current();
        let slices = |wish: &Wish| self.slices.indexed(&format!("{}/{}", wish.key.namespace, wish.key.name));
        let picture = announce::Picture { pools: &objects, nodes: &nodes, slices: &slices, current: &current };
        let wanted = announcements(&picture, &pools, &wishes, &answers);
        for gone in current.iter().filter(|(address, _)| !wanted.contains_key(*address)) {
            rest::delete(&self.client, &**gone.1).await?;
        }
        let (serve, release): (Vec<_>, Vec<_>) =
            services.into_iter().partition(|service| answers.contains_key(&service.key()));
        self.each(release, |service| self.release(service)).await?;
        self.each(serve, |service| {
            let answer = answers.get(&service.key()).cloned().unwrap_or_default();
            self.serve(service, answer, &pools)
        })
        .await?;
        for (address, spec) in &wanted {
            self.announce(current.get(address), spec).await?;
        }
        for object in &objects {
            self.count(object, &pools, &answers, &excluded).await?;
        }
        Ok(None)
    }
}

/// What is to be announced, by address.
fn announcements(
    picture: &announce::Picture<'_>,
    pools: &Pools,
    wishes: &[Wish],
    answers: &BTreeMap<Key, Answer>,
) -> BTreeMap<String, AnnouncementSpec> {
    let mut holders: BTreeMap<IpAddr, Vec<&Wish>> = BTreeMap::new();
    for wish in wishes {
        for address in answers.get(&wish.key).into_iter().flat_map(|answer| &answer.addresses) {
            holders.entry(*address).or_default().push(wish);
        }
    }
    let specs = holders
        .into_iter()
        .filter_map(|(address, holders)| announce::announcement(picture, address, &holders, &pools.of(address)?.name));
    specs.map(|spec| (spec.address.clone(), spec)).collect()
}

impl Controller {
    /// The cluster's own ranges: pods' of the whole cluster and of every node.
    fn reserved(&self) -> Vec<(Block, String)> {
        let cluster = self.context.options.pod_cidrs.iter().map(|cidr| (cidr.clone(), "the range of pods".to_owned()));
        let nodes = self.nodes.all();
        let nodes = nodes.iter().flat_map(|node| {
            node.spec.pod_cidrs.iter().map(|cidr| (cidr.clone(), format!("the range of node {}'s pods", node.name())))
        });
        cluster.chain(nodes).filter_map(|(cidr, what)| Some((Block::cidr(&cidr)?, what))).collect()
    }

    /// The Services that may be ours, each in its newest known state.
    fn concerned(&self) -> Vec<Arc<Service>> {
        let version = |service: &Service| service.meta_version().parse::<u64>().unwrap_or(0);
        let mut written = self.written.lock();
        let cached = self.services.all();
        written.retain(|key, ours| {
            self.services.get(key).is_some_and(|seen| seen.uid() == ours.uid() && version(&seen) < version(ours))
        });
        let newest = |seen: Arc<Service>| written.get(&seen.key()).map_or(seen, |ours| Arc::new(ours.clone()));
        cached.into_iter().map(newest).filter(|service| concerns(service)).collect()
    }

    fn namespace_labels(&self, service: &Service) -> BTreeMap<String, String> {
        let namespace = self.namespaces.get(&Key::new("", service.ns()));
        namespace.map(|namespace| namespace.labels().clone()).unwrap_or_default()
    }

    fn current(&self) -> HashMap<String, Arc<Announcement>> {
        let all = self.announcements.all().into_iter().filter(|announcement| !announcement.deleting());
        all.map(|announcement| (announcement.spec.address.clone(), announcement)).collect()
    }

    async fn each<F, Fut>(&self, services: Vec<Arc<Service>>, write: F) -> anyhow::Result<()>
    where
        F: Fn(Arc<Service>) -> Fut,
        Fut: Future<Output = anyhow::Result<()>>,
    {
        stream::iter(services).map(write).buffer_unordered(limits::WRITES_IN_FLIGHT).try_collect().await
    }

    /// Writes a Service's addresses, or why it has none.
    async fn serve(&self, service: Arc<Service>, answer: Answer, pools: &Pools) -> anyhow::Result<()> {
        let mut service = self.finalize(service, true).await?;
        let ingress: Vec<LoadBalancerIngress> = answer
            .addresses
            .iter()
            .map(|ip| LoadBalancerIngress { ip: Some(ip.to_string()), ip_mode: Some("VIP".into()), hostname: None })
            .collect();
        let before = service.status.conditions.iter().find(|condition| condition.type_ == CONDITION);
        let condition = condition(before, &answer, self.context.now());
        if service.status.load_balancer.ingress == ingress && before == Some(&condition) {
            return Ok(());
        }
        let told = before.is_some_and(|before| before.message == condition.message);
        let mut conditions: Vec<Condition> = others(&service);
        conditions.push(condition);
        let status = json!({"loadBalancer": {"ingress": ingress}, "conditions": conditions});
        service = Arc::new(rest::patch_status_of_version(&self.client, &*service, status).await?);
        self.remember(&service);
        let texts: Vec<String> = answer.addresses.iter().map(IpAddr::to_string).collect();
        if !told {
            match &answer.refusal {
                Some(refusal) => self.events.warning(&*service, refusal.reason, refusal.message.clone()),
                None => {
                    let pool = answer.addresses.first().and_then(|address| pools.of(*address));
                    let pool = pool.map_or_else(String::new, |pool| format!(" from pool {}", pool.name));
                    self.events.normal(&*service, "AddressAssigned", format!("Assigned {}{pool}", texts.join(", ")));
                }
            }
        }
        Ok(())
    }

    /// Takes back what we wrote into a Service that has no load balancer of ours any more.
    async fn release(&self, service: Arc<Service>) -> anyhow::Result<()> {
        if !wish::is_ours(&service) {
            return Ok(());
        }
        // Only after the status is clean may the Service go: what is left of it would look like an address in use.
        let others = Some(others(&service)).filter(|others| !others.is_empty());
        let status = json!({"loadBalancer": {"ingress": null}, "conditions": others});
        let finalized = service.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
        let service = match rest::patch_status_of_version(&self.client, &*service, status).await {
            Ok(service) => Arc::new(service),
            Err(error) if rest::is(&error, 404) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.remember(&service);
        if finalized {
            self.finalize(service, false).await?;
        }
        Ok(())
    }

    /// Puts our finalizer on a Service or takes it off.
    async fn finalize(&self, service: Arc<Service>, on: bool) -> anyhow::Result<Arc<Service>> {
        let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        let has = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
        match on {
            true if !has => finalizers.push(FINALIZER.into()),
            true => {}
            false => finalizers.retain(|finalizer| finalizer != FINALIZER),
        }
        if finalizers.len() == before {
            return Ok(service);
        }
        let finalizers = Some(finalizers).filter(|finalizers| !finalizers.is_empty());
        let body = json!({"metadata": {"finalizers": finalizers, "resourceVersion": service.meta_version()}});
        match rest::patch(&self.client, &*service, body).await {
            Ok(service) => {
                let service = Arc::new(service);
                self.remember(&service);
                Ok(service)
            }
            Err(error) if rest::is(&error, 404) => Ok(service),
            Err(error) => Err(error.into()),
        }
    }

    fn remember(&self, service: &Arc<Service>) {
        self.written.lock().insert(service.key(), Service::clone(service));
    }

    async fn announce(&self, current: Option<&Arc<Announcement>>, spec: &AnnouncementSpec) -> anyhow::Result<()> {
        match current {
            Some(current) if current.spec == *spec => Ok(()),
            Some(current) => match rest::patch(&self.client, &**current, json!({"spec": spec})).await {
                Err(error) if !rest::is(&error, 404) => Err(error.into()),
                _ => Ok(()),
            },
            None => {
                let Ok(address) = spec.address.parse() else { return Ok(()) };
                let body = json!({"metadata": {"name": announce::name(address)}, "spec": spec});
                match rest::create::<Announcement>(&self.client, "", body).await {
                    // The informer does not have it yet, or it is being deleted: its next change brings us back.
                    Err(error) if !rest::is(&error, 409) => Err(error.into()),
                    _ => Ok(()),
                }
            }
        }
    }

    async fn count(
        &self,
        object: &Arc<Pool>,
        pools: &Pools,
        answers: &BTreeMap<Key, Answer>,
        excluded: &HashSet<IpAddr>,
    ) -> anyhow::Result<()> {
        let Some(pool) = pools.all.iter().find(|pool| &*pool.name == object.name()) else { return Ok(()) };
        let status = pool_status(object, pool, answers, excluded, self.context.now());
        if status == object.status {
            return Ok(());
        }
        match rest::patch_status(&self.client, &**object, json!(status)).await {
            Err(error) if !rest::is(&error, 404) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// The conditions that are not ours.
fn others(service: &Service) -> Vec<Condition> {
    service.status.conditions.iter().filter(|condition| condition.type_ != CONDITION).cloned().collect()
}

/// What our condition says of an answer; its time is that of the last change.
fn condition(before: Option<&Condition>, answer: &Answer, now: jiff::Timestamp) -> Condition {
    let (status, reason, message) = match &answer.refusal {
        Some(refusal) => ("False", refusal.reason, refusal.message.clone()),
        None => ("True", "Assigned", "the Service has every address it asks for".to_owned()),
    };
    turned(before, CONDITION, status, reason, message, now)
}

fn turned(
    before: Option<&Condition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: jiff::Timestamp,
) -> Condition {
    let since = before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
    Condition {
        type_: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_transition_time: since.unwrap_or(Time(now)),
        observed_generation: None,
    }
}

fn pool_status(
    object: &Pool,
    pool: &pool::Pool,
    answers: &BTreeMap<Key, Answer>,
    excluded: &HashSet<IpAddr>,
    now: jiff::Timestamp,
) -> PoolStatus {
    let inside = |address: &&IpAddr| pool.blocks.iter().any(|block| block.contains(**address));
    let used: HashSet<&IpAddr> = answers.values().flat_map(|answer| &answer.addresses).filter(inside).collect();
    let kept_back = excluded.iter().filter(inside).count();
    let total = pool.total().saturating_sub(kept_back as u128);
    let number = |count: u128| i64::try_from(count).unwrap_or(i64::MAX);
    let (status, reason, message) = match &pool.conflict {
        Some(why) => ("True", "Overlap", why.clone()),
        None => ("False", "NoOverlap", "no address is in another pool or in the cluster's own ranges".to_owned()),
    };
    let before = object.status.conditions.iter().find(|condition| condition.type_ == "Conflict");
    PoolStatus {
        conditions: vec![turned(before, "Conflict", status, reason, message, now)],
        total: number(total),
        used: number(used.len() as u128),
        free: number(total.saturating_sub(used.len() as u128)),
    }
}
