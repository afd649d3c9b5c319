//! What people write, and who is meant.
#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn objects() -> Objects {
    let pod = |namespace: &str, name: &str, node: &str, ips: &[&str], rest: serde_json::Value| {
        let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let ports = rest["ports"].clone();
        json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"nodeName": node, "hostNetwork": rest["host"] == true, "containers": [{"ports": ports}]},
            "status": {"podIPs": ips, "phase": rest["phase"].as_str().unwrap_or("Running")}
        })
    };
    let service = |name: &str, ips: &[&str], rest: serde_json::Value| {
        let mut spec = json!({"clusterIPs": ips});
        spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec})
    };
    let web = json!([{"name": "http", "containerPort": 8080}]);
    let two = json!([{"containerPort": 80}, {"containerPort": 81}]);
    Objects::of(
        vec![
            pod("shop", "web", "node1", &["10.244.0.5", "fd44::5"], json!({"ports": web})),
            pod("shop", "far", "node2", &["10.244.9.5"], json!({"ports": two})),
            pod("kube-system", "agent", "node1", &["192.0.2.1"], json!({"host": true, "ports": web})),
            pod("kube-system", "agent2", "node2", &["192.0.2.2"], json!({"host": true})),
            pod("shop", "done", "node1", &["10.244.0.9"], json!({"phase": "Succeeded"})),
            pod("shop", "new", "", &[], json!({"phase": "Pending"})),
            pod("shop", "starts", "node1", &[], json!({"phase": "Pending"})),
        ],
        vec![
            service("web", &["10.96.0.10", "fd96::10"], json!({"ports": [{"port": 80, "name": "http"}]})),
            service(
                "dns",
                &["10.96.0.11"],
                json!({"ports": [
                    {"port": 53, "name": "dns", "protocol": "UDP"}, {"port": 53, "name": "dns-tcp", "protocol": "TCP"},
                    {"port": 9153, "name": "metrics"}
                ]}),
            ),
            service("udp", &["10.96.0.12"], json!({"ports": [{"port": 53, "protocol": "UDP"}]})),
            service("pods", &[], json!({"clusterIP": "None", "ports": [{"port": 80}]})),
            service("other", &[], json!({"type": "ExternalName", "externalName": "example.org"})),
        ],
    )
}

fn wanted(protocol: Option<Protocol>) -> Wanted<'static> {
    // The first node's pods, and itself.
    let is_here: &dyn Fn(IpAddr) -> bool = &|address| {
        let text = address.to_string();
        text.starts_with("10.244.0.") || text == "192.0.2.1"
    };
    Wanted { namespace: "shop", is_here, domain: "cluster.local", protocol }
}

/// As text, or the error.
fn to(text: &str, protocol: Option<Protocol>) -> String {
    match destination(text, &wanted(protocol), Some(&objects())) {
        Ok(target) => format!("{target}/{}", target.protocol.name()),
        Err(error) => format!("{error:#}"),
    }
}

fn from(text: &str) -> String {
    source(text, &wanted(None), Some(&objects())).map_or_else(|error| format!("{error:#}"), |party| party.to_string())
}

#[test]
fn who_sends() {
    for (text, expected) in [
        ("node", "this node"),
        ("host", "this node"),
        ("web", "pod shop/web"),
        ("shop/web", "pod shop/web"),
        ("pod/web", "pod shop/web"),
        ("10.244.0.5", "pod shop/web"),
        ("fd44::5", "pod shop/web"),
        ("192.0.2.9", "192.0.2.9"),
        ("kube-system/agent", "this node"),
        ("kube-system/agent2", "192.0.2.2"),
        ("nobody", "pods \"nobody\" not found in the namespace \"shop\""),
        ("other/web", "pods \"web\" not found in the namespace \"other\""),
        ("dns", "pods \"dns\" not found in the namespace \"shop\"; the Service of that name is svc/dns"),
        ("svc/web", "svc/web is a Service, and Services send nothing: name one of its pods"),
        ("done", "the pod shop/done has ended (Succeeded): it sends and receives nothing"),
        ("new", "the pod shop/new is on no node yet: `kubectl describe pod` says why"),
        ("starts", "the pod shop/starts has no address yet (Pending): its containers have not started"),
        ("a/b/c", "\"a/b/c\" names nobody: a pod is namespace/name, a Service is svc/name, this node is `node`"),
    ] {
        assert_eq!(from(text), expected, "{text}");
    }
}

#[test]
fn to_whom() {
    use Protocol::{Sctp, Tcp, Udp};
    for (text, protocol, expected) in [
        ("web", None, "pod shop/web:8080/TCP"),
        ("web:http", None, "pod shop/web:8080/TCP"),
        ("shop/web:9", None, "pod shop/web:9/TCP"),
        ("10.244.0.5:9", None, "pod shop/web:9/TCP"),
        ("[fd44::5]:9", Some(Udp), "pod shop/web:9/UDP"),
        ("far", None, "say which port: far:PORT; the pod's containers name 80, 81"),
        ("web", Some(Udp), "say the port: web:PORT"),
        ("web:nothing", None, "\"nothing\" is no port (1 to 65535), and no name of one"),
        ("web:0", None, "\"0\" is no port (1 to 65535), and no name of one"),
        ("web:65536", None, "\"65536\" is no port (1 to 65535), and no name of one"),
        ("192.0.2.9:443", None, "192.0.2.9:443/TCP"),
        ("[2001:db8::9]:443", None, "[2001:db8::9]:443/TCP"),
        ("2001:db8::9", None, "say the port: 2001:db8::9:PORT"),
        ("svc/web", None, "service shop/web:80/TCP"),
        ("svc/web:http", None, "service shop/web:80/TCP"),
        ("svc/shop/web", None, "service shop/web:80/TCP"),
        ("web.shop.svc", None, "service shop/web:80/TCP"),
        ("web.shop.svc.cluster.local:80", None, "service shop/web:80/TCP"),
        ("web.shop.svc.cluster.local.", None, "service shop/web:80/TCP"),
        ("10.96.0.10", None, "service shop/web:80/TCP"),
        ("[fd96::10]:80", None, "service shop/web:80/TCP"),
        // What it does not serve may be asked about.
        ("svc/web:81", None, "service shop/web:81/TCP"),
        ("svc/web:80", Some(Sctp), "service shop/web:80/SCTP"),
        ("svc/udp", None, "service shop/udp:53/UDP"),
        ("svc/dns:53", None, "service shop/dns:53/TCP"),
        ("svc/dns", Some(Udp), "service shop/dns:53/UDP"),
        ("svc/dns:dns", None, "service shop/dns:53/UDP"),
        ("svc/udp", Some(Tcp), "the Service shop/udp has no port of this protocol, but 53/UDP"),
        (
            "svc/dns",
            None,
            "the Service shop/dns has several ports: say which, with :PORT and --protocol, of 53/UDP (dns), 53/TCP (dns-tcp), \
             9153/TCP (metrics)",
        ),
        ("svc/web:https", None, "\"https\" is no port of the Service shop/web, which has 80/TCP (http)"),
        ("svc/nothing", None, "services \"nothing\" not found in the namespace \"shop\""),
        (
            "svc/pods",
            None,
            "the Service shop/pods is headless: its name leads to its pods' own addresses; explain to one of those \
             (`kubectl get endpointslices`)",
        ),
        (
            "svc/other",
            None,
            "the Service shop/other is another name of example.org, which DNS answers with: explain to that one's address",
        ),
        ("kube-system/agent", None, "192.0.2.1:8080/TCP"),
        ("node", None, "name one of the node's addresses: a node port or a socket is asked for at one of them"),
    ] {
        assert_eq!(to(text, protocol), expected, "{text}");
    }
}

#[test]
fn both_ends_have_one_family() {
    let all = objects();
    let party = |text: &str| source(text, &wanted(None), Some(&all)).unwrap();
    let web = destination("svc/web", &wanted(None), Some(&all)).unwrap().party;
    let ends = |from: &str, to: &Party, family| match choose(&party(from), to, family) {
        Ok((from, to)) => format!("{} {to}", from.map_or_else(|| "node".into(), |from| from.to_string())),
        Err(error) => format!("{error:#}"),
    };
    assert_eq!(ends("web", &web, None), "10.244.0.5 10.96.0.10");
    assert_eq!(ends("web", &web, Some(Family::Ipv6)), "fd44::5 fd96::10");
    assert_eq!(ends("node", &web, Some(Family::Ipv6)), "node fd96::10");
    assert_eq!(ends("2001:db8::9", &web, None), "2001:db8::9 fd96::10");
    let none = ends("far", &web, Some(Family::Ipv6));
    assert_eq!(none, "pod shop/far (10.244.9.5) and service shop/web (fd96::10) have no address of the same family");
}

#[test]
fn ends_on_other_nodes_name_what_to_run_there() {
    let all = objects();
    let said = |from: &str, to: &str| {
        let from = source(from, &wanted(None), Some(&all)).unwrap();
        let to = destination(to, &wanted(None), Some(&all)).unwrap();
        notes(&from, &to, &wanted(None)).unwrap_or_else(|error| vec![format!("error: {error:#}")])
    };
    assert_eq!(said("web", "svc/web"), Vec::<String>::new());
    let there = said("web", "far:80");
    assert!(
        there[0].contains("runs on node2") && there[0].ends_with("sluice explain 10.244.0.5 shop/far:80"),
        "{there:?}"
    );
    let from = said("far", "web:80");
    assert!(from[0].ends_with("sluice explain shop/far shop/web:80") && from.len() == 1, "{from:?}");
    let refused = said("far", "svc/web");
    assert!(refused[0].starts_with("error: the pod shop/far runs on node2"), "{refused:?}");
}

#[test]
fn addresses_need_no_names() {
    for (source, destination, expected) in [
        ("10.0.0.1", "10.0.0.2:80", false),
        ("node", "[fd00::1]:80", false),
        ("host", "fd00::1", false),
        ("web", "10.0.0.2:80", true),
        ("10.0.0.1", "svc/web:80", true),
    ] {
        assert_eq!(need_names(source, destination), expected, "{source} {destination}");
    }
    let alone = source("10.0.0.1", &wanted(None), None).unwrap();
    assert_eq!(alone, Party::Address("10.0.0.1".parse().unwrap()));
}
