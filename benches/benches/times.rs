//! How long core's priority queue takes for a push and a pop, beside the binary heaps.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kdbus_benches::queue::{DEPTH, Kind, Load, Priorities, turn};

fn queue(criterion: &mut Criterion) {
    for (load, priorities) in Load::ALL.into_iter().flat_map(|load| Priorities::ALL.map(|one| (load, one))) {
        let mut group = criterion.benchmark_group(format!("queue, {}, {}", load.name(), priorities.name()));
        group.throughput(Throughput::Elements(DEPTH as u64));
        for kind in Kind::ALL {
            group.bench_function(BenchmarkId::from_parameter(kind.name()), |bencher| {
                let ready = || turn(kind, load, priorities, DEPTH as u32);
                bencher.iter_batched_ref(ready, |turn| black_box(turn.run()), BatchSize::SmallInput);
            });
        }
        group.finish();
    }
}

criterion_group!(benches, queue);
criterion_main!(benches);
