//! `bus`: the bus itself.

use clap::Args;
use kdbus_core::abi::{AttachFlags, MakeFlags};
use kdbus_core::client::Hello;
use serde_json::{Value, json};

use crate::failure::{Context, Failure};
use crate::text::hex;
use crate::{Global, bus, info, output};

/// `bus` takes no arguments of its own.
#[derive(Debug, Args)]
pub(crate) struct BusInfo {}

impl BusInfo {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bus = bus::open(global, &Hello::new())?;
        let creator = bus.creator_info(AttachFlags::all()).during("creator of the bus")?;
        let metadata = creator.metadata();
        let about = bus.bus();
        let path = bus.transport().handle().path();
        let access = if about.flags.contains(MakeFlags::ACCESS_WORLD) {
            "everybody"
        } else if about.flags.contains(MakeFlags::ACCESS_GROUP) {
            "group"
        } else {
            "owner"
        };
        if global.json {
            return output::line(json!({
                "path": path.to_string(),
                "name": metadata.bus_name(),
                "id": creator.id(),
                "id128": hex(&about.id128),
                "access": access,
                "bloom": { "bytes": about.bloom.size, "hashes": about.bloom.n_hash },
                "creator": Value::Object(info::values(&metadata)),
            }));
        }
        let mut rows = vec![
            ("path", path.to_string()),
            ("name", metadata.bus_name().unwrap_or("-").to_owned()),
            ("id", creator.id().to_string()),
            ("id128", hex(&about.id128)),
            ("access", access.to_owned()),
            ("bloom filter", format!("{} bytes, {} hashes", about.bloom.size, about.bloom.n_hash)),
        ];
        rows.extend(info::texts(&metadata).into_iter().map(|(key, value)| (creator_key(key), value)));
        output::line(output::sheet(rows))
    }
}

/// What a row about the creator is called, so that it is not taken for one about the bus.
fn creator_key(key: &'static str) -> &'static str {
    match key {
        "user" => "made by",
        "process" => "made by process",
        "description" => "creator's description",
        key => key,
    }
}
