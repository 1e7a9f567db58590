//! Writes seed corpora: what the conformance suite sends to a bus, as each target reads it.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds` renews `fuzz/corpus`. Of commands that are of one kind,
//! with items of the same types and about the same length, the first one stands for all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kdbus_conformance::{Recorded, cases, record, try_run};
use kdbus_core::abi::{Command, Items, Msg};
use kdbus_linux::local::wire::{FLAG_MESSAGE, Header, Kind};
use zerocopy::IntoBytes;

#[allow(dead_code, reason = "the suite's own tests use more of it")]
#[path = "../../sim-backend/tests/world/mod.rs"]
mod sim;

/// Longer commands teach a fuzzer nothing that shorter ones do not.
const LONGEST: usize = 700;

/// Commands in a row of one seed.
const ROW: usize = 24;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut seen = BTreeSet::new();
    let mut rows: Vec<Vec<Recorded>> = Vec::new();
    for case in cases() {
        let given = record(|| {
            // A case that the simulator cannot express has sent something all the same.
            let _ = try_run(case.chapter, case.name, sim::SimWorld::new);
        });
        let short = given.into_iter().filter(|one| one.arg.len() + one.message.len() <= LONGEST);
        let new: Vec<_> = short.filter(|one| seen.insert(kind(one))).collect();
        rows.extend(new.chunks(ROW).map(<[_]>::to_vec));
    }
    let mut files: BTreeMap<&str, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for row in &rows {
        let inputs: Vec<u8> = row.iter().enumerate().flat_map(|(at, one)| input(one, at)).collect();
        files.entry("commands").or_default().insert(inputs);
        for one in row {
            let items = if one.message.is_empty() { &one.arg } else { &one.message };
            files.entry("abi_items").or_default().insert(items.clone());
            files.entry("wire").or_default().insert(packet(one));
        }
    }
    // Operations are chosen by single bytes: a stretch of each value, and stretches of what cases send.
    let ops = files.entry("bus_ops").or_default();
    ops.extend(
        (0..32_u8)
            .map(|op| (0..=255_u8).map(|at| if at % 3 == 0 { op } else { at.wrapping_mul(37) }).collect()),
    );
    let shared = files.entry("inbox").or_default();
    shared
        .extend((1..12_u8).map(|op| (0..=255_u8).map(|at| if at % 4 == 0 { at % op } else { at }).collect()));
    for (target, inputs) in files {
        let directory = corpus.join(target);
        std::fs::create_dir_all(&directory)?;
        for old in std::fs::read_dir(&directory)?.filter_map(Result::ok) {
            if old.file_name().to_string_lossy().starts_with("seed-") {
                std::fs::remove_file(old.path())?;
            }
        }
        println!("{target}: {} seeds", inputs.len());
        for (at, bytes) in inputs.iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{at:03}")), bytes)?;
        }
    }
    Ok(())
}

/// What two commands share if one of them is enough.
fn kind(one: &Recorded) -> (u32, u64, Vec<u64>, usize) {
    let (record, bytes) = match one.message.is_empty() {
        true => (one.command.shape().size, &one.arg),
        false => (Msg::SIZE, &one.message),
    };
    let flags = bytes.get(8..16).map_or(0, |flags| u64::from_ne_bytes(flags.try_into().unwrap_or_default()));
    let items = Items::new(bytes.get(record..).unwrap_or_default());
    let kinds = items.map_while(Result::ok).map(|item| item.kind.0).take(4).collect();
    (one.command.request(), flags, kinds, bytes.len().ilog2() as usize / 2)
}

/// A command as the target `commands` reads it, for one handle or another.
fn input(one: &Recorded, at: usize) -> Vec<u8> {
    let command = Command::ALL.iter().position(|command| *command == one.command).unwrap_or_default();
    let handle = match one.command {
        Command::BusMake => 6,
        Command::EndpointMake | Command::Hello => 7,
        Command::EndpointUpdate => 5,
        _ => [0, 4, 0, 1, 0, 2, 0, 3][at % 8],
    };
    let mut bytes = vec![command as u8, handle];
    bytes.extend((one.arg.len() as u16).to_le_bytes());
    bytes.extend((one.message.len() as u16).to_le_bytes());
    bytes.extend(&one.arg);
    bytes.extend(&one.message);
    bytes
}

/// A command as a client sends it to kdbusd, behind the number of descriptors, as the target `wire` reads it.
fn packet(one: &Recorded) -> Vec<u8> {
    let mut header = Header::new(Kind::Command, 1);
    header.number = one.command.request();
    header.flags = if one.command == Command::Send { FLAG_MESSAGE } else { 0 };
    header.arg_size = one.arg.len() as u32;
    header.message_size = one.message.len() as u32;
    [&[0], header.as_bytes(), &one.arg, &one.message].concat()
}
