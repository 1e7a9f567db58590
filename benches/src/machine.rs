//! What the figures were taken on.

use std::fmt;
use std::fs::read_to_string;

use serde::Serialize;

/// A machine, as far as it matters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// The processor, as it names itself.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Kernel release and version.
    pub kernel: String,
    /// Processes that wanted to run before anything was measured, over a minute. Not much more than 0 on a quiet one.
    pub load: f64,
}

impl Machine {
    /// The one that this process runs on.
    #[must_use]
    pub fn current() -> Self {
        let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value = |key: &str| {
            let mut lines = info.lines().filter(|line| line.starts_with(key));
            lines.find_map(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let system = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let load = read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cpu: value("model name").unwrap_or_else(|| text(system.machine())),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("{} {}", text(system.release()), text(system.version())),
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cpus, kernel, load } = self;
        write!(f, "{cpu}, {cpus} CPUs, Linux {kernel}, load {load:.2}")
    }
}
