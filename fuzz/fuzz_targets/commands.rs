//! Every command as raw bytes, on handles of every kind.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kdbus_fuzz::engine::command(data));
