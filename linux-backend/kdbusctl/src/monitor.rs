//! `monitor`: all traffic of the bus, as it passes.

use clap::{Args, ValueEnum};
use kdbus_core::abi::{AttachFlags, DST_ID_BROADCAST, Msg};
use kdbus_core::client::{Delivery, Hello, Kind, Monitor};
use kdbus_linux::local::LocalTransport;
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use serde_json::json;
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::time::Duration;
use zerocopy::IntoBytes;

use crate::bus::{self, Id, Peer};
use crate::failure::{Context, Exit, Failure};
use crate::follow::{self, Follow};
use crate::{Global, output, payload};

/// Bytes of a payload that a capture keeps.
const CAPTURED_MAX: usize = 1 << 16;

/// Arguments of `monitor`. Only the owner of a bus may monitor it; everybody sees that somebody does.
#[derive(Debug, Args)]
pub(crate) struct MonitorAll {
    /// Only what this connection sends
    #[arg(long, value_name = "NAME|ID")]
    from: Option<Peer>,
    /// Only what is sent to this connection
    #[arg(long, value_name = "NAME|ID")]
    to: Option<Peer>,
    /// Only messages of this kind; can be given several times
    #[arg(long, value_enum)]
    kind: Vec<Wanted>,
    /// Write a capture (pcapng) besides: each packet is the 64 bytes of kdbus' message header, then the payload
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    #[command(flatten)]
    follow: Follow,
}

/// A kind of message, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Call,
    Reply,
    Message,
    Signal,
    Notification,
}

/// What goes to the capture file.
struct Capture {
    path: PathBuf,
    writer: PcapNgWriter<BufWriter<File>>,
}

impl MonitorAll {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let (from, to) = self.ends(global)?;
        let mut capture = self.pcap.clone().map(Capture::create).transpose()?;
        let hello = Hello::new().pool_size(16 << 20).ask_metadata(AttachFlags::TIMESTAMP);
        let (transport, hello) = bus::transport(global, &hello)?;
        let path = transport.handle().path();
        let monitor = Monitor::hello(transport, &hello).during(format_args!("monitoring {path}"))?;
        if global.json {
            output::line(json!({ "monitoring": path.to_string(), "id": monitor.id() }))?;
        } else {
            output::line(format_args!("monitoring {path} as {}", Id(monitor.id())))?;
        }
        let mut left = self.follow.count;
        while left != Some(0) {
            let message = monitor.recv_blocking(self.follow.deadline()).during("traffic")?;
            follow::tell_lost(global, "messages", monitor.take_lost())?;
            if from.is_some_and(|id| id != message.sender())
                || to.is_some_and(|id| id != message.destination() && !self.is_named(&message))
                || !self.kind.is_empty() && !self.kind.contains(&Wanted::of(message.kind()))
            {
                continue;
            }
            let bytes = payload::of(&message)?;
            if let Some(capture) = &mut capture {
                capture.write(&message, &bytes)?;
            }
            self.show(global, &message, &bytes)?;
            left = left.map(|left| left - 1);
        }
        capture.map_or(Ok(()), Capture::finish)
    }

    /// The ids to filter by; a name means its owner now.
    fn ends(&self, global: &Global) -> Result<(Option<u64>, Option<u64>), Failure> {
        if self.from.is_none() && self.to.is_none() {
            return Ok((None, None));
        }
        let bus = bus::open(global, &Hello::new())?;
        let id = |peer: &Option<Peer>| -> Result<Option<u64>, Failure> {
            peer.as_ref().map(|peer| Ok(peer.info(&bus, AttachFlags::empty())?.id())).transpose()
        };
        Ok((id(&self.from)?, id(&self.to)?))
    }

    /// Whether the message was sent to the name that `--to` gives.
    fn is_named(&self, message: &Delivery<'_, LocalTransport>) -> bool {
        let name = message.destination_name();
        self.to.as_ref().is_some_and(|to| name.is_some_and(|name| to.to_string() == name))
    }

    fn show(
        &self,
        global: &Global,
        message: &Delivery<'_, LocalTransport>,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let kind = Wanted::of(message.kind()).name();
        let time = message.metadata().timestamp();
        if global.json {
            return output::line(json!({
                "realtime_ns": time.map(|time| time.realtime_ns),
                "seqnum": time.map(|time| time.seqnum),
                "kind": kind,
                "sender": message.sender(),
                "destination": message.destination(),
                "name": message.destination_name(),
                "cookie": message.cookie(),
                "reply_to": message.cookie_reply(),
                "priority": message.priority(),
                "notification": message.notification().map(|notification| format!("{notification:?}")),
                "payload": payload::value(bytes),
            }));
        }
        let seconds = time.map_or(0.0, |time| time.monotonic_ns as f64 / 1e9);
        let to = match (message.destination_name(), message.destination()) {
            (Some(name), _) => name.to_owned(),
            (None, DST_ID_BROADCAST) => "everybody".into(),
            (None, id) => Id(id).to_string(),
        };
        let from = if message.sender() == 0 { "the bus".into() } else { Id(message.sender()).to_string() };
        let text = match message.notification() {
            Some(notification) => format!("{notification:?}"),
            None => payload::text(bytes, self.follow.hex),
        };
        output::line(format_args!(
            "{seconds:.6} {kind} #{} {from} > {to}: {}",
            message.cookie(),
            text.trim_end()
        ))
    }
}

impl Wanted {
    const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Call => Self::Call,
            Kind::Reply => Self::Reply,
            Kind::Plain => Self::Message,
            Kind::Signal => Self::Signal,
            Kind::Notification => Self::Notification,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Reply => "reply",
            Self::Message => "message",
            Self::Signal => "signal",
            Self::Notification => "notification",
        }
    }
}

impl Capture {
    /// Starts a capture. Its link type is `USER0`, which readers show as bytes.
    fn create(path: PathBuf) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
        };
        let file = File::create(&path).map_err(|error| failed(&error))?;
        let mut writer = PcapNgWriter::new(BufWriter::new(file)).map_err(|error| failed(&error))?;
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::USER0,
            snaplen: 0,
            // Nanoseconds.
            options: vec![
                InterfaceDescriptionOption::IfName("kdbus".into()),
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        };
        writer.write_pcapng_block(interface).map_err(|error| failed(&error))?;
        Ok(Self { path, writer })
    }

    fn write(&mut self, message: &Delivery<'_, LocalTransport>, bytes: &[u8]) -> Result<(), Failure> {
        let header = Msg {
            size: (size_of::<Msg>() + bytes.len()) as u64,
            flags: message.flags().bits(),
            priority: message.priority(),
            dst_id: message.destination(),
            src_id: message.sender(),
            payload_type: message.payload_type(),
            cookie: message.cookie(),
            timeout_or_reply: message
                .deadline()
                .map_or(message.cookie_reply(), |deadline| deadline.as_nanos()),
        };
        let mut data = header.as_bytes().to_vec();
        data.extend_from_slice(&bytes[..bytes.len().min(CAPTURED_MAX)]);
        let realtime_ns = message.metadata().timestamp().map_or(0, |time| time.realtime_ns);
        let packet = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(realtime_ns),
            original_len: (size_of::<Msg>() + bytes.len()) as u32,
            data: data.into(),
            options: Vec::new(),
        };
        let written = self.writer.write_pcapng_block(packet);
        written.map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", self.path.display())))?;
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        use std::io::Write;
        let Self { path, writer } = self;
        let flushed = writer.into_inner().flush();
        flushed.map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", path.display())))
    }
}
