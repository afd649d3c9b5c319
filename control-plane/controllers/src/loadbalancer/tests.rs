//! The allocator and the announcements as tables, and the allocator under random changes.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn pool(name: &str, spec: Value) -> Arc<Pool> {
    let created = format!("2026-01-01T00:00:{:02}Z", name.len());
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": spec}))
            .unwrap(),
    )
}

fn small(name: &str) -> Arc<Pool> {
    pool(name, json!({"blocks": [{"start": "192.0.2.1", "stop": "192.0.2.3"}]}))
}

/// A LoadBalancer Service with `change` merged over it; its age is its place in the list of its test.
fn service(name: &str, age: usize, change: Value) -> Service {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "n", "creationTimestamp": format!("2026-01-01T00:01:{age:02}Z")},
        "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]},
    });
    json_patch::merge(&mut object, &change);
    serde_json::from_value(object).unwrap()
}

fn has(addresses: &[&str]) -> Value {
    let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"status": {"loadBalancer": {"ingress": ingress}}})
}

fn shares(key: &str, change: Value) -> Value {
    let mut object = json!({"metadata": {"annotations": {"sluice.dev/sharing-key": key}}});
    json_patch::merge(&mut object, &change);
    object
}

fn wishes(services: &[Service]) -> Vec<Wish> {
    services.iter().map(|service| Wish::new(service, [("team".to_owned(), "a".to_owned())].into())).collect()
}

/// What each Service gets, as `a=192.0.2.1 b=!NoPool`.
fn got(pools: &[Arc<Pool>], services: &[Value]) -> String {
    let services: Vec<Service> = services
        .iter()
        .enumerate()
        .map(|(age, change)| service(["a", "b", "c", "d", "e"][age], age, change.clone()))
        .collect();
    let pools = Pools::new(pools, &[(Block::cidr("10.244.0.0/16").unwrap(), "the range of pods".into())]);
    let answers = allocate(&pools, &wishes(&services), &["192.0.2.9".parse().unwrap()].into());
    let one = |(key, answer): (&Key, &Answer)| {
        let addresses: Vec<String> = answer.addresses.iter().map(IpAddr::to_string).collect();
        let refusal = answer.refusal.as_ref().map_or(String::new(), |refusal| format!("!{}", refusal.reason));
        format!("{}={}{refusal}", key.name, addresses.join(","))
    };
    answers.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn addresses_are_given_in_turn_and_kept() {
    let none = json!({});
    assert_eq!(got(&[small("p")], &[none.clone(), none.clone()]), "a=192.0.2.1 b=192.0.2.2");
    assert_eq!(got(&[small("p")], &[none.clone(), has(&["192.0.2.1"])]), "a=192.0.2.2 b=192.0.2.1");
    // Two with one address, after two leaders wrote at once: the older keeps it.
    assert_eq!(got(&[small("p")], &[has(&["192.0.2.1"]), has(&["192.0.2.1"])]), "a=192.0.2.1 b=192.0.2.2");
    assert_eq!(
        got(&[small("p")], &[none.clone(), none.clone(), none.clone(), none.clone()]),
        "a=192.0.2.1 b=192.0.2.2 c=192.0.2.3 d=!PoolExhausted"
    );
    assert_eq!(got(&[], std::slice::from_ref(&none)), "a=!NoPool");
}

#[test]
fn pools_say_whom_they_are_for() {
    let check = |spec: Value, change: Value, expected: &str| {
        let mut all = json!({"blocks": [{"cidr": "192.0.2.0/29"}]});
        json_patch::merge(&mut all, &spec);
        assert_eq!(got(&[pool("p", all)], std::slice::from_ref(&change)), expected, "{spec} {change}");
    };
    let (none, given) = (json!({}), has(&["192.0.2.5"]));
    check(json!({}), none.clone(), "a=192.0.2.0");
    check(json!({"allowFirstLastIPs": false}), none.clone(), "a=192.0.2.1");
    check(json!({"serviceSelector": {"matchLabels": {"x": "y"}}}), none.clone(), "a=!NoPool");
    check(
        json!({"serviceSelector": {"matchLabels": {"x": "y"}}}),
        json!({"metadata": {"labels": {"x": "y"}}}),
        "a=192.0.2.0",
    );
    check(json!({"serviceSelector": {"matchLabels": {"x": "y"}}}), given.clone(), "a=!NoPool");
    check(json!({"namespaceSelector": {"matchLabels": {"team": "a"}}}), none.clone(), "a=192.0.2.0");
    check(json!({"namespaceSelector": {"matchLabels": {"team": "b"}}}), none.clone(), "a=!NoPool");
    check(json!({"disabled": true}), none.clone(), "a=!NoPool");
    check(json!({"disabled": true}), given.clone(), "a=192.0.2.5");
    check(json!({"autoAssign": false}), none.clone(), "a=!NoPool");
    check(json!({"autoAssign": false}), json!({"spec": {"loadBalancerIP": "192.0.2.5"}}), "a=192.0.2.5");
    let named = |name: &str| json!({"metadata": {"annotations": {"sluice.dev/load-balancer-pool": name}}});
    check(json!({"autoAssign": false}), named("p"), "a=192.0.2.0");
    check(json!({}), named("q"), "a=!NoPool");
}

#[test]
fn what_is_asked_for_by_name() {
    let ask = |text: &str| json!({"metadata": {"annotations": {"sluice.dev/load-balancer-ips": text}}});
    let pools = [pool("p", json!({"blocks": [{"cidr": "192.0.2.0/28"}, {"cidr": "2001:db8::/120"}]}))];
    let check = |services: &[Value], expected: &str| assert_eq!(got(&pools, services), expected, "{services:?}");
    check(&[ask("192.0.2.7")], "a=192.0.2.7");
    check(&[ask("192.0.2.77")], "a=!AddressNotInPool");
    check(&[ask("192.0.2.9")], "a=!AddressInUse");
    check(&[ask("nonsense")], "a=!AddressInvalid");
    check(&[ask("2001:db8::1")], "a=!AddressInvalid");
    check(&[ask("192.0.2.7"), ask("192.0.2.7")], "a=192.0.2.7 b=!AddressInUse");
    let mut both = has(&["192.0.2.3"]);
    json_patch::merge(&mut both, &ask("192.0.2.7"));
    check(&[both], "a=192.0.2.7");
    let dual = |policy: &str, change: Value| {
        let mut object = json!({"spec": {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": policy}});
        json_patch::merge(&mut object, &change);
        object
    };
    check(&[dual("RequireDualStack", json!({}))], "a=2001:db8::,192.0.2.0");
    check(&[dual("RequireDualStack", ask("192.0.2.7,2001:db8::7"))], "a=2001:db8::7,192.0.2.7");
    check(&[dual("RequireDualStack", ask("192.0.2.7"))], "a=192.0.2.7!AddressInvalid");
    check(&[dual("PreferDualStack", ask("192.0.2.7"))], "a=192.0.2.7");
    let four = [small("p")];
    assert_eq!(got(&four, &[dual("PreferDualStack", json!({}))]), "a=192.0.2.1");
    assert_eq!(got(&four, &[dual("RequireDualStack", json!({}))]), "a=192.0.2.1!NoPool");
}

#[test]
fn an_address_is_shared_when_both_sides_want_it() {
    let check = |a: Value, b: Value, expected: &str| assert_eq!(got(&[small("p")], &[a, b]), expected);
    let port = |number: i32| json!({"spec": {"ports": [{"port": number}]}});
    let local = |app: &str, number: i32| json!({"spec": {"ports": [{"port": number}], "externalTrafficPolicy": "Local", "selector": {"app": app}}});
    check(shares("k", port(80)), shares("k", port(81)), "a=192.0.2.1 b=192.0.2.1");
    check(shares("k", port(80)), shares("k", port(80)), "a=192.0.2.1 b=192.0.2.2");
    check(shares("k", port(80)), shares("l", port(81)), "a=192.0.2.1 b=192.0.2.2");
    check(shares("k", port(80)), port(81), "a=192.0.2.1 b=192.0.2.2");
    let udp = json!({"spec": {"ports": [{"port": 80, "protocol": "UDP"}]}});
    check(shares("k", port(80)), shares("k", udp), "a=192.0.2.1 b=192.0.2.1");
    check(shares("k", local("x", 80)), shares("k", local("x", 81)), "a=192.0.2.1 b=192.0.2.1");
    check(shares("k", local("x", 80)), shares("k", local("y", 81)), "a=192.0.2.1 b=192.0.2.2");
    check(shares("k", local("x", 80)), shares("k", port(81)), "a=192.0.2.1 b=192.0.2.2");
    // A port that is added later parts them: the younger moves.
    let mut more = shares("k", json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}));
    json_patch::merge(&mut more, &has(&["192.0.2.1"]));
    check(shares("k", json_merged(port(80), has(&["192.0.2.1"]))), more, "a=192.0.2.1 b=192.0.2.2");
}

fn json_merged(mut a: Value, b: Value) -> Value {
    json_patch::merge(&mut a, &b);
    a
}

#[test]
fn pools_in_conflict_give_nothing_out() {
    let (old, new) = (small("p"), pool("pp", json!({"blocks": [{"cidr": "192.0.2.0/24"}]})));
    let pools = Pools::new(&[new.clone(), old.clone()], &[]);
    let conflicts: Vec<Option<&str>> = pools.all.iter().map(|pool| pool.conflict.as_deref()).collect();
    assert_eq!(conflicts, [None, Some("192.0.2.0/24 overlaps pool p (192.0.2.1-192.0.2.3)")]);
    assert_eq!(got(&[new, old], &[has(&["192.0.2.77"]), json!({})]), "a=192.0.2.77 b=192.0.2.1");
    // The cluster's own addresses are given up.
    let pods = pool("p", json!({"blocks": [{"cidr": "10.0.0.0/8"}]}));
    assert_eq!(got(&[pods], &[has(&["10.244.0.7"]), has(&["10.1.0.1"])]), "a=!NoPool b=10.1.0.1");
}

#[test]
fn whose_business_a_service_is() {
    let check = |change: Value, any_pool: bool, expected: bool| {
        assert_eq!(wish::wants(&service("a", 0, change.clone()), any_pool), expected, "{change} {any_pool}");
    };
    check(json!({}), true, true);
    check(json!({}), false, false);
    check(json!({"spec": {"type": "NodePort"}}), true, false);
    check(json!({"spec": {"loadBalancerClass": "sluice.dev/l2"}}), false, true);
    check(json!({"spec": {"loadBalancerClass": "example.com/other"}}), true, false);
    // Somebody else gave it an address.
    check(has(&["198.51.100.1"]), true, false);
    let mark = json!([{"type": CONDITION, "status": "True", "reason": "Assigned", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    check(json_merged(has(&["192.0.2.1"]), json!({"status": {"conditions": mark}})), false, true);
}

fn node(name: &str, ready: &str, labels: Value) -> (String, announce::Node) {
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": ready}]},
    }))
    .unwrap();
    (name.to_owned(), announce::Node::new(&node))
}

#[test]
fn who_may_announce() {
    let nodes: BTreeMap<String, announce::Node> = [
        node("n1", "True", json!({"zone": "a"})),
        node("n2", "True", json!({"zone": "b"})),
        node("n3", "Unknown", json!({"zone": "a"})),
        node("n4", "True", json!({"zone": "a", "node.kubernetes.io/exclude-from-external-load-balancers": ""})),
        node("n5", "False", json!({"zone": "b"})),
    ]
    .into();
    let endpoint = |node: &str, ready: bool, serving: bool| {
        json!({"addresses": ["10.244.0.1"], "nodeName": node,
            "conditions": {"ready": ready, "serving": serving, "terminating": !ready}})
    };
    let check = |policy: Value, change: Value, endpoints: Value, before: &[&str], expected: &[&str]| {
        let pools = [pool("p", json!({"blocks": [{"start": "192.0.2.1"}], "announcement": policy}))];
        let slice: Slice =
            serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints})).unwrap();
        let slice = Arc::new(slice);
        let slices = move |_: &Wish| vec![slice.clone()];
        let before: Vec<Value> = before.iter().map(|name| json!({"name": name})).collect();
        let spec = json!({"metadata": {}, "spec": {"address": "192.0.2.1", "nodes": before}});
        let current = HashMap::from([("192.0.2.1".to_owned(), Arc::new(serde_json::from_value(spec).unwrap()))]);
        let picture = announce::Picture { pools: &pools, nodes: &nodes, slices: &slices, current: &current };
        let wish = Wish::new(&service("a", 0, change), BTreeMap::new());
        let found = announce::announcement(&picture, "192.0.2.1".parse().unwrap(), &[&wish], "p");
        let names: Vec<String> = found.iter().flat_map(|spec| &spec.nodes).map(|node| node.name.clone()).collect();
        assert_eq!(names, expected);
        found
    };
    let (none, local) = (json!({}), json!({"spec": {"externalTrafficPolicy": "Local"}}));
    let found = check(none.clone(), none.clone(), json!([]), &["n2"], &["n2", "n1"]).unwrap();
    assert_eq!(
        (found.nodes[0].addresses.clone(), found.services),
        (vec!["10.0.0.1".to_owned()], vec!["n/a".to_owned()])
    );
    check(none.clone(), none.clone(), json!([]), &["n3", "n1", "n2"], &["n1", "n2"]);
    // A node that says that it is not ready keeps what it has and gets nothing new.
    check(none.clone(), none.clone(), json!([]), &["n5", "n1", "n2"], &["n5", "n1", "n2"]);
    check(json!({"nodeSelector": {"matchLabels": {"zone": "b"}}}), none.clone(), json!([]), &["n1"], &["n2"]);
    assert_eq!(check(json!({"type": "None"}), none.clone(), json!([]), &["n1"], &[]), None);
    let on = |names: &[&str]| names.iter().map(|name| endpoint(name, true, true)).collect::<Value>();
    check(none.clone(), local.clone(), on(&["n2"]), &["n1"], &["n2"]);
    check(none.clone(), local.clone(), on(&["n3", "n4"]), &["n1"], &[]);
    let draining = json!([endpoint("n1", false, true), endpoint("n2", false, false)]);
    check(none.clone(), local.clone(), draining, &[], &["n1"]);
    check(none, local, json!([endpoint("n1", false, true), endpoint("n2", true, true)]), &["n1"], &["n2"]);
}

#[test]
fn names_of_announcements() {
    let check = |address: &str, name: &str| assert_eq!(announce::name(address.parse().unwrap()), name);
    check("192.0.2.1", "192.0.2.1");
    check("2001:db8::", "2001-db8-0-0-0-0-0-0");
    check("::1", "0-0-0-0-0-0-0-1");
}

/// A random Service: its sharing key, a port, whether it is Local, an address it claims to have, whether it has both families.
fn any_service() -> impl Strategy<Value = Value> {
    (0..3u8, 80..83i32, any::<bool>(), 0..12u8, any::<bool>()).prop_map(|(key, port, local, claim, both)| {
        let mut object = json!({"spec": {"ports": [{"port": port}], "selector": {"app": "x"}}});
        if key > 0 {
            object["metadata"]["annotations"]["sluice.dev/sharing-key"] = json!(format!("k{key}"));
        }
        if local {
            object["spec"]["externalTrafficPolicy"] = json!("Local");
        }
        if both {
            object["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
        }
        if claim > 0 {
            json_patch::merge(&mut object, &has(&[&format!("192.0.2.{claim}")]));
        }
        object
    })
}

proptest! {
    /// No address is in two hands unless both share it, none is outside the pools, what was written down is kept, and what
    /// is there when a Service goes is not disturbed.
    #[test]
    fn no_address_is_given_twice(changes in prop::collection::vec(any_service(), 1..12), gone in 0..12usize) {
        let pools = [pool("p", json!({"blocks": [{"start": "192.0.2.1", "stop": "192.0.2.6"}, {"cidr": "2001:db8::/126"}]}))];
        let pools = Pools::new(&pools, &[]);
        let mut services: Vec<Service> =
            changes.into_iter().enumerate().map(|(age, change)| service(&format!("s{age}"), age, change)).collect();
        let first = allocate(&pools, &wishes(&services), &HashSet::new());
        let all = wishes(&services);
        for (i, a) in all.iter().enumerate() {
            let own = &first[&a.key].addresses;
            prop_assert!(own.iter().all(|address| pools.of(*address).is_some()));
            prop_assert!(own.len() <= a.families.len());
            for b in &all[i + 1..] {
                let both = own.iter().any(|address| first[&b.key].addresses.contains(address));
                prop_assert!(!both || a.shares_with(b), "{} {}", a.key, b.key);
            }
        }
        for service in &mut services {
            let answer = &first[&service.key()];
            service.status.load_balancer.ingress = answer.addresses.iter()
                .map(|ip| LoadBalancerIngress { ip: Some(ip.to_string()), ..Default::default() }).collect();
        }
        prop_assert_eq!(&allocate(&pools, &wishes(&services), &HashSet::new()), &first);
        if gone < services.len() {
            services.remove(gone);
            let after = allocate(&pools, &wishes(&services), &HashSet::new());
            for (key, answer) in after {
                let before = &first[&key].addresses;
                prop_assert!(before.iter().all(|address| answer.addresses.contains(address)), "{}", key);
            }
        }
    }
}
