//! What the daemon is started with: a command line, a file, and the defaults behind both.

use std::fmt;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

pub use crate::bytes::Bytes;
pub use crate::capacity::Capacity;

/// The kdbus message bus in user space.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "kdbusd", version)]
pub struct Arguments {
    /// Configuration file (TOML); without it, the defaults that --print-config shows
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the bus tree [default: $KDBUS_ROOT, or /run/kdbus for root and $XDG_RUNTIME_DIR/kdbus else]
    #[arg(short, long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Make a bus of this name instead of those of the configuration; without the UID- that it gets in front
    #[arg(short, long, value_name = "NAME")]
    pub bus: Option<String>,
    /// Any other setting, by its name in the file: --set capacity.clients=64
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Write a line to this open descriptor and close it when clients can connect
    #[arg(long, value_name = "FD")]
    pub ready_fd: Option<i32>,
    /// Show the effective configuration and exit
    #[arg(long)]
    pub print_config: bool,
    /// Policy file of all buses that are made: who may own, talk to and see which names; SIGHUP reads it again
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Keep every right that kdbusd was started with, as `confine = false` in the file does
    #[arg(long)]
    pub no_confine: bool,
    /// Check the configuration and exit
    #[arg(long)]
    pub check: bool,
}

/// Everything that a daemon is made with. All of its memory is allocated at start-up, sized by this.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Directory of the bus tree; its parent exists.
    pub root: PathBuf,
    /// What goes to the log.
    pub log: LogLevel,
    /// Give up every right that serving does not need, see [`confine`](crate::confine). Default: yes.
    pub confine: bool,
    /// And reach no files but those of the tree, of /proc and of policies. Costs metadata, see [`confine`](crate::confine).
    /// Default: no.
    pub landlock: bool,
    /// How many objects of each kind there can be, over all buses.
    pub capacity: Capacity,
    /// Pools and other memory.
    pub memory: Memory,
    /// How the daemon's thread is scheduled.
    pub schedule: Schedule,
    /// Buses that exist from the start.
    pub bus: Vec<BusConfig>,
}

/// A bus that exists from the start.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BusConfig {
    /// Name without the `<uid>-` that it gets in front, the uid being the daemon's.
    pub name: String,
    /// Who may connect besides the daemon's own user. Default: nobody.
    #[serde(default)]
    pub access: Access,
    /// Bytes of a signal's bloom filter, a multiple of 8. Default: 64.
    #[serde(default = "bloom_bytes")]
    pub bloom_bytes: u64,
    /// Hash functions of the bloom filter. Default: 1.
    #[serde(default = "bloom_hashes")]
    pub bloom_hashes: u64,
    /// Policy file: who may own, talk to and see which names. Read again upon SIGHUP. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PathBuf>,
}

/// Who may open a bus besides its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Nobody.
    #[default]
    Owner,
    /// The owner's group.
    Group,
    /// Everybody.
    World,
}

/// What goes to the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// What keeps the daemon from serving somebody.
    Error,
    /// And clients that were cut off, and limits that were met.
    Warn,
    /// And start, end, and buses that come and go.
    #[default]
    Info,
    /// And clients that come and go.
    Debug,
}

/// Pools and other memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Memory {
    /// All receive pools together. Default: 256 MiB.
    pub pools: Bytes,
    /// The largest pool that one connection can have. Default: 16 MiB.
    pub largest_pool: Bytes,
    /// All pools of one user together, root excepted. Default: 128 MiB.
    pub pools_per_user: Bytes,
    /// Bytes of messages that one lane holds, a power of two. Default: 64 KiB.
    pub lane: Bytes,
    /// Keep all memory of the daemon resident (`mlockall`), pools included. Default: no.
    pub lock: bool,
}

/// How the daemon's thread is scheduled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Schedule {
    /// Scheduling class. Default: as started.
    pub policy: Policy,
    /// Priority in that class, 1 (least urgent) to 99; 0 with `inherit` and `other`.
    pub priority: u32,
}

/// A scheduling class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The one that the daemon was started with.
    #[default]
    Inherit,
    /// `SCHED_OTHER`.
    Other,
    /// `SCHED_FIFO`.
    Fifo,
    /// `SCHED_RR`.
    Rr,
}

/// Why a configuration cannot be used: where, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, or the option of the command line.
    pub place: String,
    /// Line in that file, from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub fix: String,
}

const fn bloom_bytes() -> u64 {
    64
}

const fn bloom_hashes() -> u64 {
    1
}

impl Config {
    /// The defaults for a daemon of user `uid` with its tree at `root`.
    #[must_use]
    pub fn new(uid: u32, root: PathBuf) -> Self {
        let (name, access) = if uid == 0 { ("system", Access::World) } else { ("user", Access::Owner) };
        let bus = BusConfig {
            name: name.into(),
            access,
            bloom_bytes: bloom_bytes(),
            bloom_hashes: bloom_hashes(),
            policy: None,
        };
        Self { root, bus: vec![bus], ..Self::default() }
    }

    /// The configuration that a command line and the file it names ask for.
    ///
    /// `root` is where clients of this environment look for their buses, if that is known.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn load(arguments: &Arguments, uid: u32, root: Option<PathBuf>) -> Result<Self, ConfigError> {
        let root = root.unwrap_or_default();
        let mut config = Self::new(uid, root);
        if let Some(path) = &arguments.config {
            let place = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
                place: place.clone(),
                line: None,
                what: format!("cannot be read: {error}"),
                fix: "name a readable file after --config".into(),
            })?;
            config = config.merged(&place, &text)?;
            if let Some(root) = &arguments.root {
                config.root.clone_from(root);
            }
            config.check().map_err(|problem| problem.at(&place, &text))?;
        }
        for setting in &arguments.set {
            config = config.with_setting(setting)?;
        }
        if let Some(root) = &arguments.root {
            config.root.clone_from(root);
        }
        if let Some(name) = &arguments.bus {
            // One of that name keeps what the file says of it.
            let known = config.bus.iter().find(|bus| bus.name == *name).or(config.bus.first()).cloned();
            config.bus = known.map(|bus| BusConfig { name: name.clone(), ..bus }).into_iter().collect();
        }
        if let Some(policy) = &arguments.policy {
            for bus in &mut config.bus {
                bus.policy = Some(policy.clone());
            }
        }
        config.confine &= !arguments.no_confine;
        config.check().map_err(|problem| problem.at("command line", ""))?;
        Ok(config)
    }

    /// This configuration as a file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// This configuration with what the file `text` changes.
    fn merged(&self, place: &str, text: &str) -> Result<Self, ConfigError> {
        let wrong = |error: &toml::de::Error| ConfigError {
            place: place.into(),
            line: error.span().map(|span| line_at(text, span.start)),
            what: error.message().replace('\n', " "),
            fix: "see --print-config for every setting and its form".into(),
        };
        // Read alone first: its errors know their lines.
        toml::from_str::<Self>(text).map_err(|error| wrong(&error))?;
        let change: toml::Table = toml::from_str(text).map_err(|error| wrong(&error))?;
        let mut whole = toml::Table::try_from(self).map_err(|error| ConfigError {
            place: place.into(),
            line: None,
            what: error.to_string(),
            fix: "give paths as UTF-8 text".into(),
        })?;
        for (key, value) in change {
            match (whole.get_mut(&key), value) {
                (Some(toml::Value::Table(group)), toml::Value::Table(values)) => group.extend(values),
                (_, value) => {
                    whole.insert(key, value);
                }
            }
        }
        whole.try_into().map_err(|error| wrong(&error))
    }

    /// This configuration with one `key=value` of the command line.
    fn with_setting(&self, setting: &str) -> Result<Self, ConfigError> {
        let place = format!("--set {setting}");
        let Some((key, value)) = setting.split_once('=') else {
            return Err(ConfigError {
                place,
                line: None,
                what: "there is no '='".into(),
                fix: "write --set key=value".into(),
            });
        };
        let plain = format!("{key} = {value}");
        // A word such as `fifo` is meant as text, though the file wants quotes around it.
        let text = match toml::from_str::<toml::Table>(&plain) {
            Ok(_) => plain,
            Err(_) => format!("{key} = {:?}", value.trim()),
        };
        self.merged(&place, &text).map_err(|error| ConfigError { line: None, ..error })
    }

    /// Checks what no type can say.
    fn check(&self) -> Result<(), Problem> {
        let problem = |key: &'static [&'static str], what: String, fix: &str| {
            Err(Problem { key, what, fix: fix.to_string() })
        };
        if self.root.as_os_str().is_empty() {
            let what = "there is no directory for the bus tree".into();
            return problem(&["root"], what, "set KDBUS_ROOT or XDG_RUNTIME_DIR, or give --root DIR");
        }
        if !self.root.is_absolute() {
            let what = format!("root is {:?}, not an absolute path", self.root);
            return problem(&["root"], what, "start it with '/'");
        }
        let capacity = &self.capacity;
        for (key, count, least, most) in capacity.each() {
            if count < least || count > most {
                let what = format!("{} is {count}", key.join(".").replace('_', "-"));
                return problem(key, what, &format!("choose {least} to {most}"));
            }
        }
        if capacity.endpoints < capacity.buses {
            let what = format!("{} endpoints for {} buses", capacity.endpoints, capacity.buses);
            return problem(
                &["capacity", "endpoints"],
                what,
                "each bus needs one endpoint: at least as many",
            );
        }
        if (self.bus.len() as u64) > u64::from(capacity.buses) {
            let what = format!("{} buses to make, but capacity.buses is {}", self.bus.len(), capacity.buses);
            return problem(&["bus"], what, "raise capacity.buses, or make fewer");
        }
        if self.memory.largest_pool.0 < 4096 {
            let what = format!("largest-pool is {} bytes", self.memory.largest_pool.0);
            return problem(&["memory", "largest-pool"], what, "a pool is at least one page: 4096");
        }
        if self.memory.pools < self.memory.largest_pool {
            let what = "pools is smaller than largest-pool".into();
            return problem(&["memory", "pools"], what, "raise pools, or lower largest-pool");
        }
        let lane = self.memory.lane.0;
        if !lane.is_power_of_two() || !(4096..=8 << 20).contains(&lane) {
            let what = format!("lane is {lane} bytes");
            return problem(&["memory", "lane"], what, "choose a power of two from 4 KiB to 8 MiB");
        }
        let real_time = matches!(self.schedule.policy, Policy::Fifo | Policy::Rr);
        let priorities = if real_time { 1..=99 } else { 0..=0 };
        if !priorities.contains(&self.schedule.priority) {
            let what = format!("priority is {}", self.schedule.priority);
            let fix = if real_time { "choose 1 to 99" } else { "choose policy = \"fifo\", or priority = 0" };
            return problem(&["schedule", "priority"], what, fix);
        }
        for (index, bus) in self.bus.iter().enumerate() {
            // A uid has at most ten digits.
            let valid = bus.name.len() <= kdbus_core::NODE_NAME_MAX - 11
                && kdbus_core::NodeName::from_bytes(format!("0-{}", bus.name).as_bytes()).is_ok();
            if !valid {
                let what = format!("{:?} cannot be the name of a bus", bus.name);
                let fix = "use up to 52 of A-Z a-z 0-9 _ - . and none of the last two at an end";
                return problem(&["bus"], what, fix);
            }
            if self.bus[..index].iter().any(|earlier| earlier.name == bus.name) {
                return problem(
                    &["bus"],
                    format!("bus {:?} is there twice", bus.name),
                    "give each its own name",
                );
            }
            if bus.bloom_bytes < 8 || bus.bloom_bytes > 4096 || !bus.bloom_bytes.is_multiple_of(8) {
                let what = format!("bloom-bytes of bus {:?} is {}", bus.name, bus.bloom_bytes);
                return problem(&["bus"], what, "choose a multiple of 8 from 8 to 4096");
            }
            if bus.bloom_hashes == 0 {
                let what = format!("bloom-hashes of bus {:?} is 0", bus.name);
                return problem(&["bus"], what, "choose 1 or more");
            }
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::new(),
            log: LogLevel::default(),
            confine: true,
            landlock: false,
            capacity: Capacity::default(),
            memory: Memory::default(),
            schedule: Schedule::default(),
            bus: Vec::new(),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            pools: Bytes(256 << 20),
            largest_pool: Bytes(16 << 20),
            pools_per_user: Bytes(128 << 20),
            lane: Bytes(64 << 10),
            lock: false,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}; {}", self.what, self.fix)
    }
}

impl std::error::Error for ConfigError {}

/// A setting that is wrong, wherever it came from.
struct Problem {
    key: &'static [&'static str],
    what: String,
    fix: String,
}

impl Problem {
    fn at(self, place: &str, text: &str) -> ConfigError {
        ConfigError { place: place.into(), line: line_of(text, self.key), what: self.what, fix: self.fix }
    }
}

/// The line, from 1, of byte `at`.
fn line_at(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// The line where the setting with this path stands, or that of the part of the path that is there.
fn line_of(text: &str, key: &[&str]) -> Option<usize> {
    let whole = toml::de::DeTable::parse(text).ok()?;
    let mut table = whole.get_ref();
    let mut line = None;
    for part in key {
        let part = part.replace('_', "-");
        let Some((name, value)) = table.iter().find(|(name, _)| *name.get_ref() == part) else {
            break;
        };
        line = Some(line_at(text, name.span().start));
        match value.get_ref() {
            toml::de::DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    line
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
