//! A whole engine under commands of several connections.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kdbus_fuzz::engine::run(data));
