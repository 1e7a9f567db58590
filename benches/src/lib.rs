//! Latency and throughput of kdbus beside its peers.
