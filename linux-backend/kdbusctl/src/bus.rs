//! How a bus is opened, and how a peer on it is named.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;
use std::time::Duration;

use kdbus_core::abi::AttachFlags;
use kdbus_core::client::{Connection, Hello, Message, PeerInfo, QueryError};
use kdbus_core::{NodeName, WellKnownName};
use kdbus_linux::local::{Environment, LocalTransport, Options};

use crate::Global;
use crate::failure::{Context, Failure};

/// A connection to the bus that the command line names.
pub(crate) type Bus = Connection<LocalTransport>;

/// Opens the bus and says hello as `hello` says, under the name of this program.
pub(crate) fn open(global: &Global, hello: &Hello<'_>) -> Result<Bus, Failure> {
    let (transport, hello) = transport(global, hello)?;
    let path = transport.handle().path();
    Connection::hello(transport, &hello).during(format_args!("hello at {path}"))
}

/// Opens the bus; what to say hello with, under the name of this program.
pub(crate) fn transport<'h>(
    global: &Global,
    hello: &Hello<'h>,
) -> Result<(LocalTransport, Hello<'h>), Failure> {
    let mut environment = Environment::current();
    if let Some(root) = &global.root {
        environment = environment
            .with_root(root.as_os_str().as_bytes())
            .map_err(|error| Failure::usage(format!("--root {}: {error}", root.display())))?;
    }
    // Everything sent here is small: one packet, without staging memory. Lanes are for those that are looked at.
    let options = Options::new().environment(environment).staging(0).prefault(false).lanes(0);
    let transport = match &global.bus {
        Some(name) => options.connect(name)?,
        None => options.connect_default()?,
    };
    let hello = match NodeName::parse("kdbusctl") {
        Ok(name) => hello.description(name),
        Err(_) => *hello,
    };
    Ok((transport, hello))
}

/// Somebody on the bus: a connection by its id, or whoever owns a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// `7` or `:1.7`.
    Id(u64),
    /// A well-known name, checked when it was parsed.
    Name(Name),
}

/// A well-known name from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

impl Name {
    /// The name as the bus takes it.
    pub(crate) fn get(&self) -> Result<WellKnownName<'_>, Failure> {
        WellKnownName::parse(&self.0).map_err(|error| Failure::usage(format!("{}: {error}", self.0)))
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        WellKnownName::parse(text).map_err(|error| error.to_string())?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Peer {
    /// A message to this peer.
    pub(crate) fn message<F>(&self) -> Result<Message<'_, F>, Failure> {
        Ok(match self {
            Self::Id(id) => Message::to(*id),
            Self::Name(name) => Message::to_name(name.get()?),
        })
    }

    /// What the bus knows of this peer.
    pub(crate) fn info<'b>(
        &self,
        bus: &'b Bus,
        metadata: AttachFlags,
    ) -> Result<PeerInfo<'b, LocalTransport>, Failure> {
        let answer: Result<_, QueryError> = match self {
            Self::Id(id) => bus.conn_info(*id, metadata),
            Self::Name(name) => bus.name_info(name.get()?, metadata),
        };
        answer.during(self)
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(id) = text.strip_prefix(":1.").unwrap_or(text).parse() {
            return Ok(Self::Id(id));
        }
        text.parse()
            .map(Self::Name)
            .map_err(|error| format!("{error}; give a name (org.example.Mixer) or an id (7 or :1.7)"))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => Id(*id).fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A unique id as people read it: `:1.7`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Id(pub(crate) u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ":1.{}", self.0)
    }
}

/// Parses a span of time: `2s`, `500ms`, `1.5s`, `1m`; a number alone is seconds.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        unit => return Err(format!("{unit:?} is no unit of time; use us, ms, s or min")),
    };
    digits
        .parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number * factor).ok())
        .ok_or_else(|| "give a number and a unit, such as 2s or 500ms".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_ids_or_names() {
        assert_eq!("7".parse(), Ok(Peer::Id(7)));
        assert_eq!(":1.7".parse(), Ok(Peer::Id(7)));
        assert_eq!(
            "org.example.Mixer".parse::<Peer>().map(|peer| peer.to_string()).unwrap(),
            "org.example.Mixer"
        );
        assert!("mixer".parse::<Peer>().unwrap_err().contains("two elements"));
        assert!(":1.x".parse::<Peer>().is_err());
    }

    #[test]
    fn spans_have_units() {
        assert_eq!(span("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(span("2"), Ok(Duration::from_secs(2)));
        assert_eq!(span("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(span("1.5min"), Ok(Duration::from_secs(90)));
        for wrong in ["", "s", "-1s", "2h", "1e999s", "2 s"] {
            assert!(span(wrong).is_err(), "{wrong:?}");
        }
    }
}
