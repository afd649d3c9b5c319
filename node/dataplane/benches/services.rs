//! The service compiler: one Service after a change of its endpoints, and 10,000 of them. `cargo bench -p sluice-dataplane`.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice_dataplane::{
    compile::compile_service,
    model::{Endpoint, Protocol, Service, ServicePort, Slice, SlicePort, Snapshot},
};

const SERVICES: u32 = 10_000;

fn service(number: u32) -> Service {
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
    let address = IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + number));
    Service { cluster: vec![address], ports: vec![port], ..Service::default() }
}

fn slice(number: u32, endpoints: u32) -> Slice {
    let endpoint = |at: u32| Endpoint {
        address: Some(IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + number * 16 + at))),
        ready: true,
        serving: true,
        ..Endpoint::default()
    };
    Slice {
        service: name(number),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..endpoints).map(endpoint).collect(),
    }
}

fn name(number: u32) -> Arc<str> {
    format!("service-{number:05}").into()
}

fn one(c: &mut Criterion) {
    let mut group = c.benchmark_group("service");
    let snapshot = Snapshot::default();
    for endpoints in [2, 10, 100] {
        let (service, slice) = (service(1), slice(1, endpoints));
        let owner = ("default".into(), name(1));
        group.bench_function(BenchmarkId::from_parameter(endpoints), |b| {
            b.iter(|| compile_service(snapshot.here(), &owner, &service, &[&slice]));
        });
    }
}

fn all(c: &mut Criterion) {
    let mut snapshot = Snapshot::default();
    for number in 0..SERVICES {
        let owner = ("default".into(), name(number));
        snapshot.slices.insert((Arc::clone(&owner.0), format!("{}-1", owner.1).into()), slice(number, 2));
        snapshot.services.insert(owner, service(number));
    }
    let mut group = c.benchmark_group("services");
    group.throughput(Throughput::Elements(SERVICES.into())).sample_size(10);
    group.bench_function(BenchmarkId::from_parameter(SERVICES), |b| b.iter(|| snapshot.compile()));
}

criterion_group!(benches, one, all);
criterion_main!(benches);
