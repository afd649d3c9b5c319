#![allow(clippy::unwrap_used)]
use std::net::IpAddr;

use proptest::prelude::*;

use super::super::model::{Action, Requirement, Rule as Allows, Tier, TierKind, TierRule};
use super::super::rules::Plan;
use super::*;
use crate::Range;

const SPACES: [&str; 2] = ["x", "y"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 2] = ["web", "ask"];
const BLOCKS: [&str; 8] = [
    "10.0.0.0/29",
    "10.0.0.0/30",
    "10.0.0.2/31",
    "10.0.0.4/30",
    "0.0.0.0/0",
    "fd00::/125",
    "fd00::2/127",
    "10.0.0.5/32",
];
const PORTS: [u16; 5] = [79, 80, 81, 8080, 65_535];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn name(space: usize, name: usize) -> ObjectName {
    (SPACES[space].into(), name.to_string().into())
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let key = prop::sample::select(&["app", "tier"][..]);
    let values = || prop::collection::btree_set(prop::sample::select(&VALUES[..]).prop_map(Arc::from), 1..3);
    prop_oneof![
        (key.clone(), values()).prop_map(|(key, values)| Requirement::In(key.into(), values)),
        (key.clone(), values()).prop_map(|(key, values)| Requirement::NotIn(key.into(), values)),
        key.clone().prop_map(|key| Requirement::Exists(key.into())),
        key.prop_map(|key| Requirement::DoesNotExist(key.into())),
    ]
}

fn selector() -> impl Strategy<Value = Selector> {
    prop::collection::vec(requirement(), 0..3).prop_map(Selector)
}

fn labels() -> impl Strategy<Value = Labels> {
    let value = || prop::option::of(prop::sample::select(&VALUES[..]));
    (value(), value()).prop_map(|(app, tier)| {
        [("app", app), ("tier", tier)].into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    let range = || prop::sample::select(&BLOCKS[..]).prop_map(|text| text.parse::<Range>().unwrap());
    prop_oneof![
        selector().prop_map(|pods| Peer::Pods(Namespaces::Own, pods)),
        (selector(), selector()).prop_map(|(home, pods)| Peer::Pods(Namespaces::Labelled(home), pods)),
        (range(), prop::collection::vec(range(), 0..3)).prop_map(|(range, except)| Peer::Block(range, except)),
        Just(Peer::Nobody),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let which = prop_oneof![
        Just(Which::All),
        (prop::sample::select(&PORTS[..]), 0_u16..5)
            .prop_map(|(first, more)| { Which::Numbers(first, first.saturating_add(more * 1_000 + more / 2)) }),
        prop::sample::select(&NAMES[..]).prop_map(|name| Which::Named(name.into())),
        Just(Which::None),
    ];
    (prop::sample::select(&PROTOCOLS[..]), which).prop_map(|(protocol, which)| Port { protocol, which })
}

fn allows() -> impl Strategy<Value = Vec<Allows>> {
    let one = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3));
    prop::collection::vec(one.prop_map(|(peers, ports)| Allows { peers, ports }), 0..3)
}

#[derive(Clone, Debug)]
enum Step {
    Pod(usize, usize, Option<(Labels, Vec<NamedPort>)>),
    Policy(usize, usize, Option<Policy>),
    Namespace(usize, Option<Labels>),
    Tier(usize, Option<TierPolicy>),
    Node(usize, Option<Labels>),
    Link(usize, usize),
    Unlink(usize, usize),
}

const KINDS: [(TierKind, Tier); 4] = [
    (TierKind::ClusterNetworkPolicy, Tier::Admin),
    (TierKind::ClusterNetworkPolicy, Tier::Baseline),
    (TierKind::AdminNetworkPolicy, Tier::Admin),
    (TierKind::BaselineAdminNetworkPolicy, Tier::Baseline),
];

fn tier_name(at: usize) -> TierName {
    (KINDS[at % 4].0, at.to_string().into())
}

fn tier_rules() -> impl Strategy<Value = Vec<TierRule>> {
    let peer = prop_oneof![
        4 => (selector(), selector()).prop_map(|(home, pods)| Peer::Pods(Namespaces::Labelled(home), pods)),
        2 => prop::sample::select(&BLOCKS[..]).prop_map(|text| Peer::Block(text.parse().unwrap(), Vec::new())),
        1 => selector().prop_map(Peer::Nodes),
        1 => Just(Peer::Nobody),
    ];
    let action = prop::sample::select(&[Action::Accept, Action::Deny, Action::Pass][..]);
    let one = (action, prop::collection::vec(peer, 0..3), prop::collection::vec(port(), 0..3));
    let rule =
        one.prop_map(|(action, peers, ports)| TierRule { name: "".into(), action, matches: Allows { peers, ports } });
    prop::collection::vec(rule, 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    let named =
        (prop::sample::select(&NAMES[..]), prop::sample::select(&PROTOCOLS[..2]), prop::sample::select(&PORTS[..]))
            .prop_map(|(name, protocol, port)| NamedPort { name: name.into(), protocol, port });
    let pod = prop::option::weighted(0.9, (labels(), prop::collection::vec(named, 0..3)));
    let policy = (selector(), prop::option::of(allows()), prop::option::of(allows()))
        .prop_map(|(pods, ingress, egress)| Policy { pods, ingress, egress });
    let tier = (0_usize..8, 0_u32..4, selector(), selector(), tier_rules(), tier_rules()).prop_map(
        |(at, priority, namespaces, pods, ingress, egress)| {
            (at, TierPolicy { tier: KINDS[at % 4].1, priority, namespaces, pods, ingress, egress })
        },
    );
    prop_oneof![
        4 => (tier, prop::bool::weighted(0.8)).prop_map(|((at, it), there)| Step::Tier(at, there.then_some(it))),
        1 => (0_usize..2, prop::option::weighted(0.8, labels())).prop_map(|(at, labels)| Step::Node(at, labels)),
        4 => (0_usize..2, 0_usize..4, pod).prop_map(|(space, at, pod)| Step::Pod(space, at, pod)),
        4 => (0_usize..2, 0_usize..3, prop::option::weighted(0.8, policy)).prop_map(|(space, at, it)| Step::Policy(space, at, it)),
        1 => (0_usize..2, prop::option::weighted(0.9, labels())).prop_map(|(space, labels)| Step::Namespace(space, labels)),
        2 => (0_usize..2, 0_usize..4).prop_map(|(space, at)| Step::Link(space, at)),
        1 => (0_usize..2, 0_usize..4).prop_map(|(space, at)| Step::Unlink(space, at)),
    ]
}

fn link(space: usize, at: usize) -> u32 {
    (space * 4 + at + 10) as u32
}

fn addresses(space: usize, at: usize) -> Box<[IpAddr]> {
    let last = space * 4 + at;
    [format!("10.0.0.{last}"), format!("fd00::{last}")].iter().map(|text| text.parse().unwrap()).collect()
}

fn take(step: &Step, compiler: &mut Compiler, model: &mut Model) {
    match step {
        Step::Pod(space, at, pod) => {
            let pod = pod.clone().map(|(labels, ports)| Pod {
                labels,
                ports: ports.into(),
                addresses: addresses(*space, *at),
                deleting: false,
            });
            compiler.set_pod(&name(*space, *at), pod.clone());
            match pod {
                Some(pod) => {
                    // A pod that is gone is guarded as it was.
                    model.seen.insert(link(*space, *at), pod.clone());
                    model.known.pods.insert(name(*space, *at), pod);
                }
                None => drop(model.known.pods.remove(&name(*space, *at))),
            }
        }
        Step::Policy(space, at, policy) => {
            compiler.set_policy(&name(*space, *at), policy.clone());
            match policy {
                Some(policy) => drop(model.known.policies.insert(name(*space, *at), policy.clone())),
                None => drop(model.known.policies.remove(&name(*space, *at))),
            }
        }
        Step::Namespace(space, labels) => {
            compiler.set_namespace(&SPACES[*space].into(), labels.clone());
            match labels {
                Some(labels) => drop(model.known.namespaces.insert(SPACES[*space].into(), labels.clone())),
                None => drop(model.known.namespaces.remove(SPACES[*space])),
            }
        }
        Step::Tier(at, policy) => {
            compiler.set_tier(&tier_name(*at), policy.clone());
            match policy {
                Some(policy) => drop(model.known.tiers.insert(tier_name(*at), policy.clone())),
                None => drop(model.known.tiers.remove(&tier_name(*at))),
            }
        }
        Step::Node(at, labels) => {
            let name: Arc<str> = at.to_string().into();
            // One of the nodes has an address that a pod has, too.
            let addresses = [format!("192.0.2.{}", at + 1), format!("10.0.0.{}", at + 5)];
            let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
            let node = labels.clone().map(|labels| Node { labels, addresses });
            compiler.set_node(&name, node.clone());
            match node {
                Some(node) => drop(model.known.nodes.insert(name, node)),
                None => drop(model.known.nodes.remove(&name)),
            }
        }
        Step::Link(space, at) => {
            compiler.set_link(link(*space, *at), name(*space, *at));
            if model.links.insert(link(*space, *at), name(*space, *at)).is_none() {
                match model.known.pods.get(&name(*space, *at)) {
                    Some(pod) => drop(model.seen.insert(link(*space, *at), pod.clone())),
                    None => drop(model.seen.remove(&link(*space, *at))),
                }
            }
        }
        Step::Unlink(space, at) => {
            compiler.forget_link(link(*space, *at));
            model.links.remove(&link(*space, *at));
        }
    }
}

/// What the API reference says, object by object. It shares nothing with the compiler but the types.
#[derive(Default)]
struct Model {
    known: Snapshot,
    links: BTreeMap<u32, ObjectName>,
    seen: BTreeMap<u32, Pod>,
}

impl Model {
    fn allows(&self, link: u32, direction: Direction, peer: IpAddr, protocol: Protocol, port: u16) -> bool {
        let asked = Asked { link, direction, peer, protocol, port };
        let (space, _) = &self.links[&link];
        let Some(pod) = self.seen.get(&link) else { return false };
        if let Some(verdict) = self.tier(&asked, pod, Tier::Admin) {
            return verdict;
        }
        let policies =
            self.known.policies.iter().filter(|((home, _), policy)| home == space && policy.pods.matches(&pod.labels));
        let rules: Vec<&Vec<Allows>> = policies.filter_map(|(_, policy)| policy.rules(direction)).collect();
        if rules.is_empty() {
            return self.tier(&asked, pod, Tier::Baseline).unwrap_or(true);
        }
        rules.into_iter().flatten().any(|rule| self.matches(&asked, pod, rule))
    }

    /// The first rule that matches decides; `None` when it leaves that to the next tier, or there is none.
    fn tier(&self, asked: &Asked, pod: &Pod, tier: Tier) -> Option<bool> {
        let (space, _) = &self.links[&asked.link];
        let mut policies: Vec<_> = self.known.tiers.iter().filter(|(_, it)| it.tier == tier).collect();
        policies.sort_by_key(|(name, policy)| (policy.priority, *name));
        for (_, policy) in policies {
            let home = self.known.namespaces.get(space).is_some_and(|labels| policy.namespaces.matches(labels));
            if !home || !policy.pods.matches(&pod.labels) {
                continue;
            }
            for rule in policy.rules(asked.direction) {
                if self.matches(asked, pod, &rule.matches) {
                    return match rule.action {
                        Action::Accept => Some(true),
                        Action::Deny => Some(false),
                        Action::Pass => None,
                    };
                }
            }
        }
        None
    }

    fn matches(&self, asked: &Asked, pod: &Pod, rule: &Allows) -> bool {
        let Asked { direction, peer, protocol, port, .. } = *asked;
        let (space, _) = &self.links[&asked.link];
        let other = self.known.pods.iter().find(|(_, pod)| pod.addresses.contains(&peer));
        let meets = |wanted: &Peer| match wanted {
            Peer::Nobody => false,
            Peer::Nodes(selector) => {
                self.known.nodes.values().any(|node| selector.matches(&node.labels) && node.addresses.contains(&peer))
            }
            Peer::Block(range, except) => {
                let host = Range::new(peer, if peer.is_ipv4() { 32 } else { 128 }).unwrap();
                range.contains(host) && !except.iter().any(|except| except.contains(host))
            }
            Peer::Pods(homes, pods) => other.is_some_and(|((home, _), pod)| {
                let at_home = match homes {
                    Namespaces::Own => home == space,
                    Namespaces::Labelled(selector) => {
                        self.known.namespaces.get(home).is_some_and(|labels| selector.matches(labels))
                    }
                };
                at_home && pods.matches(&pod.labels)
            }),
        };
        // A block's addresses have no containers, so no names of ports, even if they are a pod's.
        let by_name = |name: &Arc<str>| {
            let called =
                |pod: &Pod| pod.ports.iter().any(|it| it.name == *name && it.protocol == protocol && it.port == port);
            match direction {
                Direction::Ingress => called(pod) && (rule.peers.is_empty() || rule.peers.iter().any(meets)),
                Direction::Egress => {
                    let to_pod = |wanted: &Peer| matches!(wanted, Peer::Pods(..)) && meets(wanted);
                    other.is_some_and(|(_, pod)| called(pod))
                        && (rule.peers.is_empty() || rule.peers.iter().any(to_pod))
                }
            }
        };
        let named = rule
            .ports
            .iter()
            .any(|wanted| wanted.protocol == protocol && matches!(&wanted.which, Which::Named(name) if by_name(name)));
        let numbered = rule.ports.is_empty()
            || rule.ports.iter().any(|wanted| {
                wanted.protocol == protocol
                    && match wanted.which {
                        Which::All => true,
                        Which::Numbers(first, last) => (first..=last).contains(&port),
                        Which::Named(_) | Which::None => false,
                    }
            });
        named || numbered && (rule.peers.is_empty() || rule.peers.iter().any(meets))
    }
}

#[derive(Clone, Copy)]
struct Asked {
    link: u32,
    direction: Direction,
    peer: IpAddr,
    protocol: Protocol,
    port: u16,
}

/// As the programs look it up.
fn looked_up(tables: &Tables, link: u32, direction: Direction, peer: IpAddr, protocol: Protocol, port: u16) -> bool {
    let [ingress, egress] = tables.guards[&link];
    let set = if direction == Direction::Ingress { ingress } else { egress };
    let host = Range::new(peer, if peer.is_ipv4() { 32 } else { 128 }).unwrap();
    let block = tables.blocks.iter().filter(|(range, _)| range.contains(host)).max_by_key(|(range, _)| range.bits());
    let who = [Some(RuleKey::ANYBODY), tables.peers.get(&wire(peer)).copied(), block.map(|(_, id)| *id)];
    let place = |protocol: u8, port: u16| u32::from(protocol) << 16 | u32::from(port);
    let matches = |rule: &&Rule| {
        let free = RuleKey::BITS - rule.bits;
        (place(rule.protocol, rule.port) ^ place(protocol.number(), port)).checked_shr(free).unwrap_or(0) == 0
    };
    let Some(rules) = tables.sets.get(&set) else { return set == 0 };
    let said = |who| rules.iter().filter(|rule| rule.who == who).filter(matches).max_by_key(|rule| rule.bits);
    // The first that says something decides.
    who.into_iter().flatten().find_map(said).is_some_and(|rule| !rule.denies)
}

/// Carries a plan out on tables, in its order.
fn written(tables: &mut Tables, plan: &Plan) {
    for (set, rule) in &plan.new_rules {
        let rules = Arc::make_mut(tables.sets.entry(*set).or_default());
        // A key has one value.
        rules.remove(&Rule { denies: !rule.denies, ..*rule });
        rules.insert(*rule);
    }
    tables.peers.extend(plan.peers.iter().copied());
    tables.blocks.extend(plan.blocks.iter().copied());
    tables.guards.extend(plan.guards.iter().copied());
    for (set, rule) in &plan.old_rules {
        assert!(Arc::make_mut(tables.sets.get_mut(set).unwrap()).remove(rule));
    }
    assert!(plan.old_peers.iter().all(|address| tables.peers.remove(address).is_some()));
    assert!(plan.old_blocks.iter().all(|range| tables.blocks.remove(range).is_some()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// After any changes, in any order, the tables say what the objects say, and so does what the plans wrote.
    #[test]
    fn tables_say_what_the_objects_say(steps in prop::collection::vec(step(), 1..40)) {
        let (mut compiler, mut model, mut kernel) = (Compiler::new(1), Model::default(), Tables::default());
        for (at, step) in steps.iter().enumerate() {
            take(step, &mut compiler, &mut model);
            if at % 3 != 0 && at + 1 != steps.len() {
                continue;
            }
            let tables = compiler.compile().clone();
            let plan = kernel.plan(&tables);
            written(&mut kernel, &plan);
            let peers = (0..9).flat_map(|at| addresses(at / 4, at % 4)).chain(["192.0.2.1".parse().unwrap()]);
            for (link, peer) in tables.guards.keys().flat_map(|link| peers.clone().map(move |peer| (*link, peer))) {
                for direction in [Direction::Ingress, Direction::Egress] {
                    for protocol in PROTOCOLS {
                        for port in PORTS {
                            let expected = model.allows(link, direction, peer, protocol, port);
                            for tables in [&tables, &kernel] {
                                let got = looked_up(tables, link, direction, peer, protocol, port);
                                prop_assert_eq!(got, expected, "{} {:?} {} {:?} {}", link, direction, peer, protocol, port);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A thousand pods of this node, a thousand policies for each of which every pod is asked.
#[test]
fn a_change_costs_what_changed() {
    let app = |at: usize| Selector(vec![Requirement::In("app".into(), [format!("app-{at}").into()].into())]);
    let mut compiler = Compiler::new(1);
    compiler.set_namespace(&"x".into(), Some(Labels::default()));
    let pod = |at: usize| Pod {
        labels: [("app", format!("app-{at}"))].into_iter().collect(),
        addresses: [IpAddr::from([10, 1, (at / 256) as u8, (at % 256) as u8])].into(),
        ..Pod::default()
    };
    let policy = |at: usize, port: u16| Policy {
        pods: app(at),
        ingress: Some(vec![Allows {
            peers: vec![Peer::Pods(Namespaces::Own, app((at + 1) % 1_000))],
            ports: vec![Port { protocol: Protocol::Tcp, which: Which::Numbers(port, port) }],
        }]),
        egress: None,
    };
    for at in 0..1_000 {
        compiler.set_pod(&name(0, at), Some(pod(at)));
        compiler.set_policy(&name(0, at), Some(policy(at, 80)));
        compiler.set_link(at as u32 + 1, name(0, at));
    }
    let started = std::time::Instant::now();
    let before = compiler.compile().clone();
    println!("all at once: {:?}", started.elapsed());
    assert_eq!((before.guards.len(), before.sets.len(), before.peers.len()), (1_000, 1_000, 1_000));
    let started = std::time::Instant::now();
    compiler.set_policy(&name(0, 7), Some(policy(7, 81)));
    let after = compiler.compile().clone();
    println!("one policy: {:?}", started.elapsed());
    let plan = before.plan(&after);
    assert_eq!((plan.new_rules.len(), plan.old_rules.len(), plan.guards.len(), plan.peers.len()), (1, 1, 0, 0));
    // A pod that is like another one only adds its address, and nothing has to be judged again.
    compiler.set_pod(&name(0, 1_000), Some(Pod { addresses: [IpAddr::from([10, 2, 0, 0])].into(), ..pod(5) }));
    let plan = after.plan(compiler.compile());
    assert_eq!(plan, Plan { peers: plan.peers.clone(), ..Plan::default() });
    assert_eq!(plan.peers.len(), 1);
}

/// A thousand pods of this node under a hundred policies of the cluster, with 25 rules each: pods that fare alike share a set,
/// and a class of pods that fares as all others has no rules of its own.
#[test]
fn policies_of_the_cluster_stay_small() {
    let app = |at: usize| Selector(vec![Requirement::In("app".into(), [format!("app-{at}").into()].into())]);
    let mut compiler = Compiler::new(1);
    compiler.set_namespace(&"x".into(), Some(Labels::default()));
    for at in 0..1_000 {
        let pod = Pod {
            labels: [("app", format!("app-{}", at % 100))].into_iter().collect(),
            addresses: [IpAddr::from([10, 1, (at / 256) as u8, (at % 256) as u8])].into(),
            ..Pod::default()
        };
        compiler.set_pod(&name(0, at), Some(pod));
        compiler.set_link(at as u32 + 1, name(0, at));
    }
    let policy = |at: usize, port: u16| {
        let rule = |more: usize| TierRule {
            name: "".into(),
            action: [Action::Deny, Action::Pass][more % 2],
            matches: Allows {
                peers: vec![Peer::Pods(Namespaces::Labelled(Selector::default()), app((at + more) % 100))],
                ports: vec![Port { protocol: Protocol::Tcp, which: Which::Numbers(port, port + 9) }],
            },
        };
        TierPolicy {
            tier: Tier::Admin,
            priority: at as u32,
            namespaces: Selector::default(),
            pods: app(at),
            ingress: (0..25).map(rule).collect(),
            egress: Vec::new(),
        }
    };
    for at in 0..100 {
        compiler.set_tier(&tier_name(at * 4), Some(policy(at, 80)));
    }
    let started = std::time::Instant::now();
    let before = compiler.compile().clone();
    println!("all at once: {:?}", started.elapsed());
    // Of each policy's 25 classes 13 are denied ten ports, which are two prefixes; all others fare as the two blocks do.
    let rules: usize = before.sets.values().map(|rules| rules.len()).sum();
    assert_eq!((before.guards.len(), before.sets.len(), before.blocks.len()), (1_000, 100, 2));
    assert_eq!(rules, 100 * (13 * 3 + 2), "{:?}", before.sets.values().next());
    let started = std::time::Instant::now();
    compiler.set_tier(&tier_name(28), Some(policy(7, 8080)));
    let plan = before.plan(compiler.compile());
    println!("one policy: {:?}", started.elapsed());
    assert_eq!((plan.guards.len(), plan.peers.len(), plan.blocks.len()), (0, 0, 0));
    assert!(plan.new_rules.len() < 60 && plan.old_rules.len() < 60, "{plan:?}");
}

#[test]
fn a_pod_that_nobody_named_yet_is_closed() {
    let mut compiler = Compiler::new(1);
    compiler.set_link(3, name(0, 0));
    assert_eq!(compiler.compile().guards[&3], [Guard::CLOSED; 2]);
    compiler.set_pod(&name(0, 0), Some(Pod::default()));
    assert_eq!(compiler.compile().guards[&3], [0; 2]);
    compiler.set_pod(&name(0, 0), None);
    assert_eq!(compiler.compile().guards[&3], [0; 2], "it is guarded as it was until its link goes");
    compiler.forget_link(3);
    assert!(compiler.compile().guards.is_empty());
}
