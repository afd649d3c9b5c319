//! What the packet logic itself takes, with ordinary maps in place of the kernel's (`cargo xtask bench lb` measures those).
//! `cargo bench -p sluice-packet --features fuzz`.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use sluice_packet::fuzz::Visit;

fn packets(c: &mut Criterion) {
    for (group, driver) in [("driver", true), ("link", false)] {
        let mut group = c.benchmark_group(group);
        for (name, mut visit) in [("known", Visit::known(driver)), ("elsewhere", Visit::elsewhere(driver))] {
            group.bench_function(BenchmarkId::from_parameter(name), |b| b.iter(|| visit.pass()));
        }
        let first = Visit::first(driver);
        group.bench_function(BenchmarkId::from_parameter("first"), |b| {
            b.iter_batched_ref(|| first.clone(), Visit::pass, BatchSize::SmallInput);
        });
    }
}

criterion_group!(benches, packets);
criterion_main!(benches);
