//! The sensors of this machine: what the kernel shows as files of numbers.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kdbus_core::Instant;

use super::channel::{CHANNELS_MAX, Channel, Value};
use super::sampler::Sensors;

/// Bytes of a file that are looked at. What is asked for of /proc/stat stands before that, but for many hundred CPUs.
const LOOKED_AT: usize = 64 << 10;

/// Slow things, such as temperatures, are read at every so many ticks.
const SLOW: u64 = 5;

/// CPUs that get a channel of their own; beyond that, all together only.
const CPUS: usize = 8;

/// What sensors there are, and where they were looked for, relative to the root.
pub const PLACES: [&str; 7] = [
    "sys/bus/iio/devices",
    "sys/class/thermal",
    "sys/class/hwmon",
    "proc/stat",
    "proc/meminfo",
    "proc/pressure",
    "proc/loadavg",
];

/// How a file becomes a value.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// It is one number: this is added, then multiplied.
    Number { offset: f64, scale: f64 },
    /// The busy part of a CPU since the last look, of /proc/stat.
    Load { word: String, last: Option<(u64, u64)>, value: f64 },
    /// How often something happened in a second since the last look, of /proc/stat.
    Frequency { word: String, last: Option<(u64, Instant)> },
    /// The part of the memory that is not available, of /proc/meminfo.
    Memory,
    /// The part of the time since the last look in which somebody waited, of /proc/pressure.
    Pressure { last: Option<(u64, Instant)> },
    /// The average number of tasks that want to run, over a minute.
    Tasks,
}

/// A file, and what was in it at a tick.
#[derive(Debug)]
struct Source {
    file: File,
    path: PathBuf,
    text: Vec<u8>,
    len: usize,
    read_at: Option<(u64, Instant)>,
}

impl Source {
    fn open(path: &Path, bytes: usize) -> Option<Self> {
        let file = File::open(path).ok()?;
        Some(Self { file, path: path.to_owned(), text: vec![0; bytes], len: 0, read_at: None })
    }

    /// What is in the file; read once at a tick.
    fn look(&mut self, tick: u64, now: &dyn Fn() -> Instant) -> io::Result<(&str, Instant)> {
        let at = match self.read_at {
            Some((then, at)) if then == tick => at,
            _ => {
                self.read_at = None;
                self.len = self.file.read_at(&mut self.text, 0)?;
                let at = now();
                self.read_at = Some((tick, at));
                at
            }
        };
        let bytes = &self.text[..self.len];
        // A text that was cut in the middle of a letter is good up to there.
        let text = str::from_utf8(bytes)
            .unwrap_or_else(|error| str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default());
        Ok((text, at))
    }
}

/// One channel, and where it comes from.
#[derive(Debug)]
struct Probe {
    channel: Channel,
    source: usize,
    kind: Kind,
}

/// The sensors of a machine, with their files open. Reading one allocates nothing.
#[derive(Debug, Default)]
pub struct Machine {
    sources: Vec<Source>,
    probes: Vec<Probe>,
}

impl Machine {
    /// Looks for sensors below `root`, which is `/` on a machine that is not looked at from elsewhere. What is there but
    /// cannot be read is left out, and so is whatever no `pattern` names, if there are patterns: names, or their beginnings
    /// with a star.
    ///
    /// # Errors
    ///
    /// [`FindError`] if nothing is left, or a pattern names nothing.
    pub fn find(root: &Path, patterns: &[String]) -> Result<Self, FindError> {
        let mut machine = Self::default();
        machine.find_iio(root);
        machine.find_thermal(root);
        machine.find_hwmon(root);
        machine.find_proc(root);
        machine.drop_silent();
        if machine.probes.is_empty() {
            return Err(FindError::Nothing(root.to_owned()));
        }
        let names = |channel: &Channel, pattern: &str| match pattern.strip_suffix('*') {
            Some(beginning) => channel.name.starts_with(beginning),
            None => channel.name == pattern,
        };
        for pattern in patterns {
            if !machine.probes.iter().any(|probe| names(&probe.channel, pattern)) {
                let found = machine.channels().map(|channel| channel.name.clone()).collect();
                return Err(FindError::NoSuch { pattern: pattern.clone(), found });
            }
        }
        if !patterns.is_empty() {
            machine.probes.retain(|probe| patterns.iter().any(|pattern| names(&probe.channel, pattern)));
        }
        machine.probes.truncate(CHANNELS_MAX);
        Ok(machine)
    }

    /// The channels, in the order of their indices.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.probes.iter().map(|probe| &probe.channel)
    }

    /// The file that a channel comes from.
    pub fn path(&self, channel: usize) -> Option<&Path> {
        let probe = self.probes.get(channel)?;
        Some(&self.sources.get(probe.source)?.path)
    }

    fn add(&mut self, path: &Path, bytes: usize, channels: impl IntoIterator<Item = (Channel, Kind)>) {
        let Some(source) = Source::open(path, bytes) else { return };
        self.sources.push(source);
        let source = self.sources.len() - 1;
        for (mut channel, kind) in channels {
            // Two sensors of one name are told apart by a number.
            let taken = |name: &str| self.probes.iter().any(|probe| probe.channel.name == name);
            let mut name = channel.name.clone();
            let mut number = 2;
            while taken(&name) {
                name = format!("{}-{number}", channel.name);
                number += 1;
            }
            channel.name = name;
            self.probes.push(Probe { channel, source, kind });
        }
    }

    /// Leaves out what gives nothing, and begins what counts since the last look.
    fn drop_silent(&mut self) {
        let now = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            Instant::from_nanos(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
        };
        let mut is_silent = Vec::new();
        for channel in 0..self.probes.len() {
            is_silent.push(self.read(channel, u64::MAX, &now).is_err());
        }
        let mut is_silent = is_silent.into_iter();
        self.probes.retain(|_| is_silent.next() != Some(true));
    }

    fn find_iio(&mut self, root: &Path) {
        for device in entries(&root.join(PLACES[0]), "iio:device") {
            let number = file_name(&device).trim_start_matches("iio:device").to_owned();
            for path in entries(&device, "in_") {
                let file = file_name(&path);
                let (attribute, is_raw) = match (file.strip_suffix("_raw"), file.strip_suffix("_input")) {
                    (Some(attribute), _) => (attribute.to_owned(), true),
                    (_, Some(attribute)) => (attribute.to_owned(), false),
                    _ => continue,
                };
                let what = attribute.trim_start_matches("in_");
                let class: String = what.chars().take_while(char::is_ascii_alphabetic).collect();
                // A scale belongs to the channel, or to all of its class.
                let number_in = |suffix: &str| {
                    let own = device.join(format!("{attribute}_{suffix}"));
                    number_of(&own).or_else(|| number_of(&device.join(format!("in_{class}_{suffix}"))))
                };
                let (unit, factor) = iio_unit(&class);
                let (scale, offset) = if is_raw {
                    (number_in("scale").unwrap_or(1.0), number_in("offset").unwrap_or(0.0))
                } else {
                    (1.0, 0.0)
                };
                let every = if class == "temp" { SLOW } else { 1 };
                let channel = Channel::new(&format!("iio{number}-{what}"), unit, every);
                self.add(&path, 64, [(channel, Kind::Number { offset, scale: scale * factor })]);
            }
        }
    }

    fn find_thermal(&mut self, root: &Path) {
        for zone in entries(&root.join(PLACES[1]), "thermal_zone") {
            let number = file_name(&zone).trim_start_matches("thermal_zone").to_owned();
            let what = word_of(&zone.join("type")).unwrap_or_else(|| "zone".to_owned());
            let channel = Channel::new(&format!("thermal{number}-{what}"), "°C", SLOW);
            self.add(&zone.join("temp"), 64, [(channel, Kind::Number { offset: 0.0, scale: 1e-3 })]);
        }
    }

    fn find_hwmon(&mut self, root: &Path) {
        for device in entries(&root.join(PLACES[2]), "hwmon") {
            let chip = word_of(&device.join("name")).unwrap_or_else(|| file_name(&device));
            for path in entries(&device, "") {
                let file = file_name(&path);
                let Some(input) = file.strip_suffix("_input") else { continue };
                let class = input.trim_end_matches(|letter: char| letter.is_ascii_digit());
                let (unit, scale) = match class {
                    "temp" => ("°C", 1e-3),
                    "in" => ("V", 1e-3),
                    "curr" => ("A", 1e-3),
                    "power" => ("W", 1e-6),
                    "humidity" => ("%", 1e-3),
                    "fan" => ("rpm", 1.0),
                    _ => continue,
                };
                let label =
                    word_of(&device.join(format!("{input}_label"))).unwrap_or_else(|| input.to_owned());
                let channel = Channel::new(&format!("{chip}-{label}"), unit, SLOW);
                self.add(&path, 64, [(channel, Kind::Number { offset: 0.0, scale })]);
            }
        }
    }

    fn find_proc(&mut self, root: &Path) {
        let stat = root.join(PLACES[3]);
        let text = fs::read_to_string(&stat).unwrap_or_default();
        let load = |word: &str| {
            let kind = Kind::Load { word: word.to_owned(), last: None, value: 0.0 };
            (Channel::new(word, "%", 1), kind)
        };
        let cpus = text.lines().filter_map(|line| line.split(' ').next());
        let mut cpus: Vec<_> = cpus.filter(|word| word.starts_with("cpu")).collect();
        if cpus.len() > CPUS + 1 {
            cpus.truncate(1);
        }
        let frequency = |name: &str, word: &str| {
            (Channel::new(name, "1/s", 1), Kind::Frequency { word: word.to_owned(), last: None })
        };
        let counted = [frequency("switches", "ctxt"), frequency("interrupts", "intr")];
        self.add(&stat, LOOKED_AT, cpus.into_iter().map(load).chain(counted));
        for what in ["cpu", "memory", "io"] {
            let channel = Channel::new(&format!("pressure-{what}"), "%", 1);
            self.add(&root.join(PLACES[5]).join(what), 512, [(channel, Kind::Pressure { last: None })]);
        }
        self.add(&root.join(PLACES[6]), 128, [(Channel::new("tasks", "", SLOW), Kind::Tasks)]);
        self.add(&root.join(PLACES[4]), 4096, [(Channel::new("memory", "%", SLOW), Kind::Memory)]);
    }
}

impl Sensors for Machine {
    fn read(&mut self, channel: usize, tick: u64, now: &dyn Fn() -> Instant) -> io::Result<(Value, Instant)> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let probe = self.probes.get_mut(channel).ok_or_else(missing)?;
        let (text, at) = self.sources.get_mut(probe.source).ok_or_else(missing)?.look(tick, now)?;
        let value = probe.kind.value(text, at).ok_or(io::ErrorKind::InvalidData)?;
        Ok((Value::from_f64(value), at))
    }
}

impl Kind {
    /// The value of a text that was read at `at`; `None` if it is none.
    fn value(&mut self, text: &str, at: Instant) -> Option<f64> {
        match self {
            Self::Number { offset, scale } => Some((text.trim().parse::<f64>().ok()? + *offset) * *scale),
            Self::Load { word, last, value } => {
                let (busy, total) = busy_and_total(line_of(text, word)?)?;
                // Ticks of the kernel are longer than ticks of the sampler may be; until one is over, nothing is new.
                if let Some((then_busy, then_total)) = *last {
                    if total <= then_total {
                        return Some(*value);
                    }
                    *value = 100.0 * busy.saturating_sub(then_busy) as f64 / (total - then_total) as f64;
                }
                *last = Some((busy, total));
                Some(*value)
            }
            Self::Frequency { word, last } => {
                let count = line_of(text, word)?.split(' ').next()?.parse().ok()?;
                let seconds = last.map(|(then, since)| (then, at.since(since).as_secs_f64()));
                *last = Some((count, at));
                Some(per_second(count, seconds))
            }
            Self::Pressure { last } => {
                let line = line_of(text, "some")?;
                let total = line.split(' ').find_map(|word| word.strip_prefix("total="))?.parse().ok()?;
                let seconds = last.map(|(then, since)| (then, at.since(since).as_secs_f64()));
                *last = Some((total, at));
                // Microseconds in a second; all of them are a hundred percent.
                Some((per_second(total, seconds) / 1e4).min(100.0))
            }
            Self::Memory => {
                let of = |word: &str| line_of(text, word)?.trim().split(' ').next()?.parse::<f64>().ok();
                let (total, available) = (of("MemTotal:")?, of("MemAvailable:")?);
                (total > 0.0).then(|| 100.0 * (1.0 - available / total))
            }
            Self::Tasks => text.split(' ').next()?.parse().ok(),
        }
    }
}

fn per_second(count: u64, before: Option<(u64, f64)>) -> f64 {
    match before {
        Some((then, seconds)) if seconds > 0.0 => count.saturating_sub(then) as f64 / seconds,
        _ => 0.0,
    }
}

/// What follows `word` and a blank at the beginning of a line.
fn line_of<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
}

/// Ticks of a CPU in which it did something, and all of them, from a line of /proc/stat.
fn busy_and_total(line: &str) -> Option<(u64, u64)> {
    let (mut busy, mut total, mut fields) = (0_u64, 0_u64, 0);
    // What guests take is part of what users take, and stands behind the first eight.
    for (at, word) in line.split_ascii_whitespace().take(8).enumerate() {
        let ticks: u64 = word.parse().ok()?;
        total = total.saturating_add(ticks);
        // Idle, and idle while something is read or written.
        if at != 3 && at != 4 {
            busy = busy.saturating_add(ticks);
        }
        fields += 1;
    }
    (fields >= 4).then_some((busy, total))
}

/// The unit of a class of channels of the industrial I/O subsystem, and what its scaled values are multiplied by.
fn iio_unit(class: &str) -> (&'static str, f64) {
    match class {
        "temp" => ("°C", 1e-3),
        "voltage" | "altvoltage" => ("V", 1e-3),
        "current" => ("A", 1e-3),
        "power" => ("W", 1e-3),
        "humidityrelative" => ("%", 1e-3),
        "pressure" => ("kPa", 1.0),
        "accel" | "gravity" => ("m/s²", 1.0),
        "anglvel" => ("rad/s", 1.0),
        "magn" => ("G", 1.0),
        "illuminance" => ("lx", 1.0),
        "resistance" => ("Ω", 1.0),
        _ => ("", 1.0),
    }
}

/// What is in a directory and begins with `prefix`, in the order of its names and numbers.
fn entries(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| file_name(path).starts_with(prefix));
    paths.sort_by_key(|path| (file_name(path).len(), file_name(path)));
    paths
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn word_of(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|word| !word.is_empty())
}

fn number_of(path: &Path) -> Option<f64> {
    word_of(path)?.parse().ok()
}

/// Why there is nothing to measure.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FindError {
    /// There are no sensors below this root.
    Nothing(PathBuf),
    /// A pattern names no channel.
    NoSuch {
        /// The pattern.
        pattern: String,
        /// The names of all channels.
        found: Vec<String>,
    },
}

impl fmt::Display for FindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing(root) => {
                write!(f, "no sensors found in")?;
                for (at, place) in PLACES.iter().enumerate() {
                    write!(f, "{} {}", if at == 0 { "" } else { "," }, root.join(place).display())?;
                }
                f.write_str("; mount /proc and /sys, load the driver of the sensor, or say with --root where they are")
            }
            Self::NoSuch { pattern, found } => {
                write!(f, "no channel is called '{pattern}'; there are {}", found.join(", "))
            }
        }
    }
}

impl std::error::Error for FindError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn read(machine: &mut Machine, name: &str, tick: u64, ns: u64) -> f64 {
        let channel = machine.channels().position(|channel| channel.name == name).unwrap();
        machine.read(channel, tick, &|| Instant::from_nanos(ns)).unwrap().0.0 as f64 / 1e6
    }

    #[test]
    fn this_machine_has_sensors_and_they_give_values() {
        let mut machine = Machine::find(Path::new("/"), &[]).unwrap();
        let channels: Vec<_> = machine.channels().cloned().collect();
        let memory = read(&mut machine, "memory", 0, 1);
        assert!(memory > 0.0 && memory < 100.0, "{memory}");
        let load = read(&mut machine, "cpu", 0, 1);
        assert!((0.0..=100.0).contains(&load), "{load}");
        for (at, channel) in channels.iter().enumerate() {
            assert!(!channels[at + 1..].iter().any(|other| other.name == channel.name), "{channel:?}");
        }
    }

    #[test]
    fn numbers_of_devices_become_values_of_their_unit() {
        let root = tempfile::tempdir().unwrap();
        let iio = "sys/bus/iio/devices/iio:device0";
        write(
            root.path(),
            &[
                (&format!("{iio}/in_accel_x_raw"), "1000\n"),
                (&format!("{iio}/in_accel_scale"), "0.01\n"),
                (&format!("{iio}/in_temp_raw"), "100\n"),
                (&format!("{iio}/in_temp_offset"), "50\n"),
                (&format!("{iio}/in_temp_scale"), "200\n"),
                (&format!("{iio}/in_pressure_input"), "101.325\n"),
                ("sys/class/thermal/thermal_zone0/type", "soc thermal\n"),
                ("sys/class/thermal/thermal_zone0/temp", "45250\n"),
                ("sys/class/thermal/thermal_zone1/temp", "no number\n"),
                ("sys/class/hwmon/hwmon0/name", "ina219\n"),
                ("sys/class/hwmon/hwmon0/in1_input", "5012\n"),
                ("sys/class/hwmon/hwmon0/power1_input", "2500000\n"),
            ],
        );
        let mut machine = Machine::find(root.path(), &[]).unwrap();
        for (name, value) in [
            ("iio0-accel_x", 10.0),
            ("iio0-temp", 30.0),
            ("iio0-pressure", 101.325),
            ("thermal0-soc-thermal", 45.25),
            ("ina219-in1", 5.012),
            ("ina219-power1", 2.5),
        ] {
            assert_eq!(read(&mut machine, name, 0, 1), value, "{name}");
        }
        assert_eq!(machine.channels().count(), 6, "what gives no number is left out");
    }

    #[test]
    fn what_counts_up_becomes_a_part_or_a_frequency() {
        let root = tempfile::tempdir().unwrap();
        let stat = |busy: u64, idle: u64, switches: u64| {
            let text = format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\nctxt {switches}\n");
            write(root.path(), &[("proc/stat", &text)]);
        };
        let pressure = |total: u64| {
            let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull total=0\n");
            write(root.path(), &[("proc/pressure/io", &text)]);
        };
        stat(100, 100, 5_000);
        pressure(0);
        let mut machine = Machine::find(root.path(), &[]).unwrap();
        read(&mut machine, "cpu", 0, 0);
        read(&mut machine, "switches", 0, 0);
        read(&mut machine, "pressure-io", 0, 0);
        stat(130, 110, 6_000);
        pressure(250_000);
        assert_eq!(read(&mut machine, "cpu", 0, 0), 0.0, "one look at a file in a tick");
        assert_eq!(read(&mut machine, "cpu", 1, 500_000_000), 75.0);
        assert_eq!(read(&mut machine, "switches", 1, 500_000_000), 2_000.0);
        assert_eq!(read(&mut machine, "pressure-io", 1, 500_000_000), 50.0);
        assert_eq!(read(&mut machine, "cpu", 2, 600_000_000), 75.0, "nothing is new");
    }

    #[test]
    fn what_is_not_there_is_said_with_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let text = Machine::find(root.path(), &[]).unwrap_err().to_string();
        assert!(text.contains("no sensors found in") && text.contains("sys/bus/iio/devices"), "{text}");
        assert!(text.contains("--root"), "{text}");
        let text = Machine::find(Path::new("/"), &["warmth".to_owned()]).unwrap_err().to_string();
        assert!(text.contains("'warmth'") && text.contains("memory"), "{text}");
        let some = Machine::find(Path::new("/"), &["cpu*".to_owned(), "memory".to_owned()]).unwrap();
        assert!(some.channels().all(|channel| channel.name.starts_with("cpu") || channel.name == "memory"));
    }
}
