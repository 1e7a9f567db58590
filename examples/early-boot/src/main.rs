//! The init of an initramfs that has a bus before there is any root file system.
//!
//! As process 1 it starts kdbusd, the firmware example as a service and itself once more as a client of that, says how
//! long after the start of the kernel the first message came, and powers the machine off. There is no /proc, no /sys
//! and no shell. `docs/device.md` shows how to run it.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use kdbus_core::WellKnownName;
use kdbus_core::client::{Connection, Hello, Message, TopicPattern};
use kdbus_linux::local::LocalTransport;
use rustix::io::FdFlags;
use rustix::mount::MountFlags;
use rustix::pipe::PipeFlags;
use rustix::system::RebootCommand;
use rustix::time::{ClockId, clock_gettime};

const ROOT: &str = "/run/kdbus";
const BUS: &str = "/run/kdbus/0-system/bus";
const SERVICE: &str = "org.kdbus.Firmware";
/// The argument that makes this program a client.
const CLIENT: &str = "client";
/// For whatever has to happen next; under an emulator, a second is short.
const PATIENCE: Duration = Duration::from_secs(60);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        let is_client = std::env::args().nth(1).is_some_and(|argument| argument == CLIENT);
        let result = if is_client { client() } else { Err("this program is for process 1".into()) };
        return report(result);
    }
    report(init());
    // Process 1 must not end.
    let result = rustix::system::reboot(RebootCommand::PowerOff);
    println!("early-boot: the machine stays on: {result:?}");
    loop {
        std::thread::park();
    }
}

fn report(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("early-boot: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is on the console has to be told apart from the kernel's lines by a person and by a test.
fn say(text: &str) {
    println!("early-boot: {text}, {} ms after the start of the kernel", uptime().as_millis());
}

fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

fn init() -> Result<()> {
    say("init runs");
    rustix::mount::mount("none", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755")?;
    let _daemon = start_daemon()?;
    say("kdbusd is ready");
    let mut client = Command::new("/init").arg(CLIENT).spawn()?;
    let log = File::create("/run/firmware.log")?;
    let _service =
        Command::new("/bin/firmware").args(["--bus", BUS, "--period-ms", "20"]).stdout(log).spawn()?;
    let status = client.wait()?;
    if !status.success() {
        return Err(format!("the client ended with {status}").into());
    }
    let log = std::fs::metadata("/run/firmware.log")?.len();
    say(&format!("all is well, with {log} bytes of log frames"));
    Ok(())
}

/// Starts kdbusd and waits until clients can connect.
fn start_daemon() -> Result<Child> {
    let (ready, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&tell, FdFlags::empty())?;
    let daemon = Command::new("/bin/kdbusd")
        .args(["--root", ROOT, "--ready-fd", &tell.as_raw_fd().to_string()])
        .spawn()?;
    drop(tell);
    let mut text = String::new();
    File::from(ready).read_to_string(&mut text)?;
    if text.is_empty() {
        return Err("kdbusd did not start".into());
    }
    Ok(daemon)
}

/// Listens for readings, then calls the service.
fn client() -> Result<()> {
    let bus = Connection::hello(LocalTransport::connect(BUS)?, &Hello::new())?;
    bus.subscribe(TopicPattern::parse("org.kdbus.Firmware.*")?)?;
    let signal = bus.recv_blocking(PATIENCE)?;
    say(&format!("first message, {} bytes from connection {}", signal.payload().len(), signal.sender()));
    let service = WellKnownName::parse(SERVICE)?;
    let kind = bus.call_blocking(&Message::to_name(service).payload(b"kind"), PATIENCE)?;
    say(&format!("the service answers that it measures {}", String::from_utf8_lossy(kind.payload())));
    Ok(())
}
