//! Services, slices and pods as they stand in the API, and what changed since the last look. Pure: a Service is compiled anew
//! only when it, one of its slices or the node's zone changed.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use kube::Resource;
use kube::runtime::watcher::Event;

use crate::compile::{Frontends, Here, Owner, compile_pod, compile_service, health};
use crate::health::{Answers, Check};
use crate::intern::{Compact, Texts};
use crate::model::{Forwarding, ObjectName, Pod, Service, Slice};
use crate::views::{NodeView, PodView, ServiceView, SliceView};

/// The label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The taint of a node that the cluster autoscaler is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// One kind of object.
struct Mirror<T> {
    objects: BTreeMap<ObjectName, T>,
    /// Filled while a list is under way.
    fresh: Option<BTreeMap<ObjectName, T>>,
    listed: bool,
}

/// An object that changed: its name, what it was, what it is.
type Change<'a, T> = (&'a ObjectName, Option<&'a T>, Option<&'a T>);

impl<T: PartialEq + Compact> Mirror<T> {
    fn new() -> Self {
        Mirror { objects: BTreeMap::new(), fresh: None, listed: false }
    }

    /// Takes in an event and tells every object that changed by it; true if there was any, or if the first list is whole.
    fn take<V: Resource + Into<Option<T>>>(
        &mut self,
        texts: &mut Texts,
        event: Event<V>,
        mut changed: impl FnMut(Change<'_, T>),
    ) -> bool {
        let mut read = |view: V| {
            let mut name = name(&view);
            texts.share_name(&mut name);
            let mut object: Option<T> = view.into();
            object.iter_mut().for_each(|object| object.compact(texts));
            (name, object)
        };
        match event {
            Event::Init => {
                self.fresh = Some(BTreeMap::new());
                false
            }
            Event::InitApply(view) => {
                let (name, object) = read(view);
                if let (Some(fresh), Some(object)) = (&mut self.fresh, object) {
                    fresh.insert(name, object);
                }
                false
            }
            Event::InitDone => {
                let old = mem::replace(&mut self.objects, self.fresh.take().unwrap_or_default());
                let mut any = !mem::replace(&mut self.listed, true);
                let names: BTreeSet<&ObjectName> = old.keys().chain(self.objects.keys()).collect();
                for name in names {
                    let (before, after) = (old.get(name), self.objects.get(name));
                    if before != after {
                        any = true;
                        changed((name, before, after));
                    }
                }
                any
            }
            Event::Apply(view) => {
                let (name, object) = read(view);
                self.put(&name, object, changed)
            }
            Event::Delete(view) => self.put(&name(&view), None, changed),
        }
    }

    fn put(&mut self, name: &ObjectName, object: Option<T>, mut changed: impl FnMut(Change<'_, T>)) -> bool {
        let old = self.objects.remove(name);
        let differs = old != object;
        if differs {
            changed((name, old.as_ref(), object.as_ref()));
        }
        if let Some(object) = object {
            self.objects.insert(name.clone(), object);
        }
        differs
    }
}

fn name<V: Resource>(view: &V) -> ObjectName {
    let meta = view.meta();
    (meta.namespace.as_deref().unwrap_or_default().into(), meta.name.as_deref().unwrap_or_default().into())
}

/// Everything that decides the service table of a node, with what has to be compiled anew.
pub(crate) struct Picture {
    node: String,
    zone: Option<String>,
    forwarding: Forwarding,
    services: Mirror<Service>,
    slices: Mirror<Slice>,
    pods: Mirror<Pod>,
    /// Slices of each Service: its name and theirs, and their namespace is its own.
    of_service: BTreeSet<(ObjectName, Arc<str>)>,
    texts: Texts,
    dirty: BTreeSet<Owner>,
    answers: Answers,
    /// Ports of Services with a health check.
    checked: BTreeMap<ObjectName, u16>,
    /// The answers may differ from those that were last taken.
    answered: bool,
    complete: bool,
}

impl Picture {
    pub(crate) fn new(node: String, forwarding: Forwarding) -> Picture {
        Picture {
            node,
            zone: None,
            forwarding,
            services: Mirror::new(),
            slices: Mirror::new(),
            pods: Mirror::new(),
            of_service: BTreeSet::new(),
            texts: Texts::default(),
            dirty: BTreeSet::new(),
            answers: Answers::default(),
            checked: BTreeMap::new(),
            answered: false,
            complete: false,
        }
    }

    /// Has every kind been listed?
    pub(crate) fn listed(&self) -> bool {
        self.services.listed && self.slices.listed && self.pods.listed
    }

    pub(crate) fn service(&mut self, event: Event<ServiceView>) -> bool {
        let dirty = &mut self.dirty;
        self.services.take(&mut self.texts, event, |(name, ..)| {
            dirty.insert(Owner::Service(name.clone()));
        })
    }

    pub(crate) fn slice(&mut self, event: Event<SliceView>) -> bool {
        let (dirty, of_service) = (&mut self.dirty, &mut self.of_service);
        self.slices.take(&mut self.texts, event, |(name, before, after)| {
            let owner = |slice: &Slice| (name.0.clone(), slice.service.clone());
            if let Some(service) = before.map(owner) {
                of_service.remove(&(service.clone(), name.1.clone()));
                dirty.insert(Owner::Service(service));
            }
            if let Some(service) = after.map(owner) {
                of_service.insert((service.clone(), name.1.clone()));
                dirty.insert(Owner::Service(service));
            }
        })
    }

    pub(crate) fn pod(&mut self, event: Event<PodView>) -> bool {
        let dirty = &mut self.dirty;
        self.pods.take(&mut self.texts, event, |(name, ..)| {
            dirty.insert(Owner::Pod(name.clone()));
        })
    }

    pub(crate) fn node(&mut self, event: Event<NodeView>) -> bool {
        let (Event::Apply(view) | Event::InitApply(view)) = event else { return false };
        let zone = view.metadata.labels.and_then(|mut labels| labels.remove(ZONE)).filter(|zone| !zone.is_empty());
        if view.metadata.name.as_deref() != Some(self.node.as_str()) {
            return false;
        }
        let leaving = view.metadata.deletion_timestamp.is_some() || view.spec.has_taint(TO_BE_DELETED);
        let left = mem::replace(&mut self.answers.leaving, leaving) != leaving;
        self.answered |= left;
        if zone == self.zone {
            return left;
        }
        self.zone = zone;
        self.dirty.extend(self.services.objects.keys().cloned().map(Owner::Service));
        left || !self.dirty.is_empty()
    }

    /// What has changed since the last time: everything the first time, which the flag says.
    pub(crate) fn changes(&mut self) -> (Vec<(Owner, Frontends)>, bool) {
        let dirty = mem::take(&mut self.dirty);
        let changes = dirty.into_iter().map(|owner| self.compile(owner)).collect();
        (changes, !mem::replace(&mut self.complete, true))
    }

    /// What load balancers are told, if that may have changed since the last time.
    pub(crate) fn answers(&mut self) -> Option<&Answers> {
        mem::take(&mut self.answered).then_some(&self.answers)
    }

    fn compile(&mut self, owner: Owner) -> (Owner, Frontends) {
        let frontends = match &owner {
            Owner::Pod(name) => self.pods.objects.get(name).map(|pod| compile_pod(name, pod)).unwrap_or_default(),
            Owner::Service(name) => {
                let here = Here { node: &self.node, zone: self.zone.as_deref(), forwarding: self.forwarding };
                let first = (name.clone(), Arc::default());
                let names = self.of_service.range(first..).take_while(|(service, _)| service == name);
                let slice = |(service, slice): &(ObjectName, Arc<str>)| (service.0.clone(), slice.clone());
                let slices: Vec<&Slice> = names.filter_map(|pair| self.slices.objects.get(&slice(pair))).collect();
                if let Some(port) = self.checked.remove(name) {
                    self.answers.checks.remove(&port);
                    self.answered = true;
                }
                match self.services.objects.get(name) {
                    Some(service) => {
                        if service.health_check_port != 0 {
                            let check = Check { service: name.clone(), endpoints: health(here, &slices) };
                            self.answers.checks.insert(service.health_check_port, check);
                            self.checked.insert(name.clone(), service.health_check_port);
                            self.answered = true;
                        }
                        compile_service(here, name, service, &slices)
                    }
                    None => Frontends::new(),
                }
            }
        };
        (owner, frontends)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn service(name: &str, port: u16) -> ServiceView {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": port}], "trafficDistribution": "PreferClose",
                "healthCheckNodePort": 30009, "externalTrafficPolicy": "Local"}
        }))
        .unwrap()
    }

    fn slice(name: &str, service: &str, address: &str) -> SliceView {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": [address], "nodeName": "here", "zone": "z"}]
        }))
        .unwrap()
    }

    fn names(picture: &mut Picture) -> (Vec<String>, bool) {
        let (changes, all) = picture.changes();
        let name = |owner: &Owner| match owner {
            Owner::Service((_, name)) | Owner::Pod((_, name)) => name.to_string(),
        };
        let lengths = |frontends: &Frontends| frontends.values().map(|frontend| frontend.backends.len()).sum::<usize>();
        (changes.iter().map(|(owner, frontends)| format!("{}:{}", name(owner), lengths(frontends))).collect(), all)
    }

    #[test]
    fn only_what_changed_is_compiled() {
        let mut picture = Picture::new("here".into(), Forwarding::Snat);
        for _ in 0..2 {
            picture.service(Event::Init);
            picture.service(Event::InitApply(service("a", 80)));
            picture.service(Event::InitApply(service("b", 81)));
            picture.slice(Event::Init);
            picture.slice(Event::InitApply(slice("a-1", "a", "10.244.0.1")));
            picture.pod(Event::Init);
            picture.service(Event::InitDone);
            picture.slice(Event::InitDone);
            let first = !picture.listed();
            assert_eq!(picture.pod(Event::InitDone), first);
            assert!(picture.listed());
            let expected = if first { vec!["a:1".to_owned(), "b:0".to_owned()] } else { vec![] };
            assert_eq!(names(&mut picture), (expected, first), "an equal list changes nothing");
        }
        assert!(!picture.service(Event::Apply(service("a", 80))));
        assert!(picture.slice(Event::Apply(slice("b-1", "b", "10.244.0.2"))));
        assert_eq!(names(&mut picture).0, ["b:1"]);
        // A slice that another service has now.
        picture.slice(Event::Apply(slice("b-1", "a", "10.244.0.2")));
        assert_eq!(names(&mut picture).0, ["a:2", "b:0"]);
        picture.slice(Event::Delete(slice("b-1", "a", "10.244.0.2")));
        picture.service(Event::Delete(service("b", 81)));
        assert_eq!(names(&mut picture).0, ["a:1", "b:0"]);
        let node: NodeView =
            serde_json::from_value(json!({"metadata": {"name": "here", "labels": {ZONE: "y"}}})).unwrap();
        assert!(picture.node(Event::Apply(node.clone())));
        assert!(!picture.node(Event::Apply(node)));
        assert_eq!(names(&mut picture).0, ["a:1"]);
        // A node that goes: nothing is compiled, and load balancers are told.
        let leaving: NodeView = serde_json::from_value(json!({
            "metadata": {"name": "here", "labels": {ZONE: "y"}}, "spec": {"taints": [{"key": TO_BE_DELETED}]}
        }))
        .unwrap();
        assert!(picture.node(Event::Apply(leaving)));
        assert!(picture.answers().unwrap().leaving);
        assert_eq!(names(&mut picture).0, [""; 0]);
    }

    #[test]
    fn a_new_list_replaces_everything_at_once() {
        let mut picture = Picture::new("here".into(), Forwarding::Snat);
        picture.service(Event::Init);
        picture.service(Event::InitApply(service("a", 80)));
        picture.service(Event::InitDone);
        picture.service(Event::Apply(service("b", 81)));
        assert!(!picture.service(Event::Init));
        assert!(!picture.service(Event::InitApply(service("b", 81))));
        assert_eq!(picture.services.objects.len(), 2, "the old list stays until the new one is whole");
        assert!(picture.service(Event::InitDone));
        assert_eq!(picture.services.objects.len(), 1);
    }

    #[test]
    fn health_checks_follow_the_endpoints_here() {
        let mut picture = Picture::new("here".into(), Forwarding::Snat);
        picture.service(Event::Apply(service("a", 80)));
        picture.slice(Event::Apply(slice("a-1", "a", "10.244.0.1")));
        picture.changes();
        assert_eq!(picture.answers.checks[&30009], Check { service: ("n".into(), "a".into()), endpoints: 1 });
        picture.slice(Event::Delete(slice("a-1", "a", "10.244.0.1")));
        picture.changes();
        assert_eq!(picture.answers.checks[&30009].endpoints, 0);
        picture.service(Event::Delete(service("a", 80)));
        picture.changes();
        assert!(picture.answers.checks.is_empty());
    }
}
