//! Question in, answer out.

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};

use super::zone;

/// Asks and shows: the code, `TYPE data` of each answer, `+` additionals, `SOA` when it is a negative
/// answer with its proof.
fn ask(name: &str, kind: RecordType) -> String {
    let name = Name::from_ascii(name).unwrap();
    let Some(answer) = zone().answer(&name, kind) else {
        return "not ours".to_owned();
    };
    let show = |r: &Record| format!("{} {}", r.record_type(), r.data);
    let mut lines = Vec::new();
    match answer.code {
        ResponseCode::NoError => {}
        code => lines.push(format!("{code:?}")),
    }
    for record in &answer.answers {
        assert_eq!(record.ttl, 5);
        assert_eq!(record.name, name);
        lines.push(show(record));
    }
    for record in &answer.authorities {
        assert_eq!((record.record_type(), record.ttl), (RecordType::SOA, 5));
        assert_eq!(record.name.to_ascii(), "cluster.local.");
        lines.push("SOA".to_owned());
    }
    for record in &answer.additionals {
        lines.push(format!("+ {} {}", record.name, show(record)));
    }
    if let Some(target) = answer.follow {
        lines.push(format!("follow {target}"));
    }
    lines.join(" | ")
}

#[test]
fn table() {
    use RecordType::{A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};
    const NXDOMAIN: &str = "NXDomain | SOA";
    const NODATA: &str = "SOA";
    let cases: &[(&str, RecordType, &str)] = &[
        // Services with an address of their own.
        ("web.default.svc.cluster.local.", A, "A 10.96.0.5"),
        ("web.default.svc.cluster.local.", AAAA, "AAAA fd00::5"),
        ("web.default.svc.cluster.local.", ANY, "A 10.96.0.5 | AAAA fd00::5"),
        ("WEB.Default.sVc.Cluster.LOCAL.", A, "A 10.96.0.5"),
        ("web.default.svc.cluster.local.", MX, NODATA),
        ("single.default.svc.cluster.local.", A, "A 10.96.0.6"),
        ("single.default.svc.cluster.local.", AAAA, NODATA),
        ("none.default.svc.cluster.local.", A, NXDOMAIN),
        ("web.none.svc.cluster.local.", A, NXDOMAIN),
        ("10-244-0-7.web.default.svc.cluster.local.", A, "A 10.244.0.7"),
        ("10-244-0-8.web.default.svc.cluster.local.", A, NXDOMAIN),
        // Named ports.
        (
            "_http._tcp.web.default.svc.cluster.local.",
            SRV,
            "SRV 0 100 80 web.default.svc.cluster.local. | + web.default.svc.cluster.local. A 10.96.0.5 \
             | + web.default.svc.cluster.local. AAAA fd00::5",
        ),
        (
            "_DNS._UDP.web.default.svc.cluster.local.",
            SRV,
            "SRV 0 100 53 web.default.svc.cluster.local. | + web.default.svc.cluster.local. A 10.96.0.5 \
             | + web.default.svc.cluster.local. AAAA fd00::5",
        ),
        ("_http._udp.web.default.svc.cluster.local.", SRV, NXDOMAIN),
        ("_http._tcp.web.default.svc.cluster.local.", A, NODATA),
        ("_tcp.web.default.svc.cluster.local.", SRV, NODATA),
        ("_sctp.web.default.svc.cluster.local.", SRV, NXDOMAIN),
        (
            "_s1ap._sctp.core.default.svc.cluster.local.",
            SRV,
            "SRV 0 100 36412 core.default.svc.cluster.local. | + core.default.svc.cluster.local. A 10.96.0.7",
        ),
        ("http._tcp.web.default.svc.cluster.local.", SRV, NXDOMAIN),
        // An unnamed port has no name to be asked for, but the Service's own name lists it.
        ("_._tcp.single.default.svc.cluster.local.", SRV, NXDOMAIN),
        (
            "single.default.svc.cluster.local.",
            SRV,
            "SRV 0 100 80 single.default.svc.cluster.local. | + single.default.svc.cluster.local. A 10.96.0.6",
        ),
        // Headless Services: their ready endpoints.
        ("pg.db.svc.cluster.local.", A, "A 10.244.1.1 | A 10.244.1.2 | A 10.244.1.4"),
        ("pg.db.svc.cluster.local.", AAAA, "AAAA fd00:1::1"),
        ("pg-0.pg.db.svc.cluster.local.", A, "A 10.244.1.1"),
        ("PG-0.pg.db.svc.cluster.local.", AAAA, "AAAA fd00:1::1"),
        ("pg-1.pg.db.svc.cluster.local.", AAAA, NODATA),
        ("pg-2.pg.db.svc.cluster.local.", A, NXDOMAIN),
        ("10-244-1-4.pg.db.svc.cluster.local.", A, "A 10.244.1.4"),
        ("10-244-1-1.pg.db.svc.cluster.local.", A, NXDOMAIN),
        (
            "_sql._tcp.pg.db.svc.cluster.local.",
            SRV,
            "SRV 0 33 5432 pg-0.pg.db.svc.cluster.local. | SRV 0 33 5432 pg-1.pg.db.svc.cluster.local. \
             | SRV 0 33 5432 10-244-1-4.pg.db.svc.cluster.local. \
             | + pg-0.pg.db.svc.cluster.local. A 10.244.1.1 | + pg-0.pg.db.svc.cluster.local. AAAA fd00:1::1 \
             | + pg-1.pg.db.svc.cluster.local. A 10.244.1.2 | + 10-244-1-4.pg.db.svc.cluster.local. A 10.244.1.4",
        ),
        ("empty.db.svc.cluster.local.", A, NXDOMAIN),
        ("starting.db.svc.cluster.local.", A, NXDOMAIN),
        ("early.db.svc.cluster.local.", A, "A 10.244.2.2"),
        ("e-0.early.db.svc.cluster.local.", A, "A 10.244.2.2"),
        ("early.db.svc.cluster.local.", AAAA, NODATA),
        // Other names.
        ("docs.default.svc.cluster.local.", A, "CNAME www.Example.com. | follow www.Example.com."),
        ("docs.default.svc.cluster.local.", CNAME, "CNAME www.Example.com."),
        ("x.docs.default.svc.cluster.local.", A, NXDOMAIN),
        ("broken.default.svc.cluster.local.", A, NXDOMAIN),
        // Pods by address.
        ("10-244-9-9.default.pod.cluster.local.", A, "A 10.244.9.9"),
        ("10-244-9-9.default.pod.cluster.local.", AAAA, NODATA),
        ("fd00--9.default.pod.cluster.local.", AAAA, "AAAA fd00::9"),
        ("10-244-9-999.default.pod.cluster.local.", A, NXDOMAIN),
        ("nginx.default.pod.cluster.local.", A, NXDOMAIN),
        // The zone itself, and names that only have others below them.
        ("cluster.local.", NS, "NS ns.dns.cluster.local. | + ns.dns.cluster.local. A 10.96.0.10"),
        ("ns.dns.cluster.local.", A, "A 10.96.0.10"),
        ("cluster.local.", A, NODATA),
        ("svc.cluster.local.", A, NODATA),
        ("pod.cluster.local.", A, NODATA),
        ("dns.cluster.local.", A, NODATA),
        ("default.svc.cluster.local.", A, NODATA),
        ("nowhere.svc.cluster.local.", A, NXDOMAIN),
        ("dns-version.cluster.local.", TXT, "TXT 1.1.0"),
        ("dns-version.cluster.local.", A, NODATA),
        ("other.cluster.local.", A, NXDOMAIN),
        ("a.b.c.d.e.f.svc.cluster.local.", A, NXDOMAIN),
        // What a search domain makes of an outside name.
        ("example.com.default.svc.cluster.local.", A, NXDOMAIN),
        // Addresses.
        ("5.0.96.10.in-addr.arpa.", PTR, "PTR web.default.svc.cluster.local."),
        ("1.1.244.10.in-addr.arpa.", PTR, "PTR pg-0.pg.db.svc.cluster.local."),
        ("7.0.244.10.In-Addr.ARPA.", PTR, "PTR 10-244-0-7.web.default.svc.cluster.local."),
        ("3.1.244.10.in-addr.arpa.", PTR, "not ours"),
        ("5.0.96.10.in-addr.arpa.", A, NODATA),
        ("0.96.10.in-addr.arpa.", PTR, "not ours"),
        (
            "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            "PTR web.default.svc.cluster.local.",
        ),
        // Not the cluster's.
        ("example.com.", A, "not ours"),
        ("local.", A, "not ours"),
        ("mycluster.local.", A, "not ours"),
        (".", NS, "not ours"),
    ];
    for (name, kind, expected) in cases {
        assert_eq!(ask(name, *kind), *expected, "{name} {kind}");
    }
    assert!(ask("cluster.local.", SOA).starts_with("SOA ns.dns.cluster.local. hostmaster.cluster.local. "));
    assert!(ask("cluster.local.", SOA).ends_with(" 7200 1800 86400 5"));
}
