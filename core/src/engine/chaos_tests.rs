use super::super::chaos::{Chaos, Dice};
use super::super::testbed::domain;
use super::super::*;

fn run(seeds: core::ops::Range<u64>, steps: usize, config: &Config) {
    for seed in seeds {
        Chaos::new(Dice::seeded(seed), domain(config)).run(steps);
    }
}

#[test]
fn random_traffic_leaves_nothing_behind() {
    let config = Config { queue_depth: 64, pool_slices: 64, connections: 16, ..Config::SMALL };
    run(1..60, 600, &config);
}

#[test]
fn random_traffic_with_tiny_tables_leaves_nothing_behind() {
    let config = Config {
        handles: 14,
        connections: 9,
        queue_depth: 5,
        pool_slices: 7,
        quota_users: 2,
        users: 5,
        names: 3,
        name_records: 4,
        matches: 6,
        match_rules: 7,
        match_rule_bytes: 128,
        match_buckets: 3,
        trackers: 6,
        calls: 3,
        files: 4,
        policy_entries: 3,
        policy_records: 3,
        watches: 2,
        endpoints: 3,
        metadata_bytes: 10,
        info_bytes: 10,
        ..Config::SMALL
    };
    run(1..120, 600, &config);
}

proptest::proptest! {
    #[test]
    fn whatever_bytes_say_leaves_nothing_behind(bytes in proptest::collection::vec(0..=u8::MAX, 0..400)) {
        Chaos::new(Dice::Given(&bytes), domain(&Config::SMALL)).run(400);
        Chaos::new(Dice::Given(&[]), domain(&Config::SMALL)).commands(&bytes);
    }
}
