//! How a connection introduces itself.

use super::encode::Buffer;
use super::error::HelloError;
use super::slice::Slice;
use super::topic;
use super::transport::Transport;
use crate::abi::{
    AttachFlags, BloomParameter, CmdHello, Command, Creds, HelloFlags, ItemType, ItemWriter, Items,
    MakeFlags, NoRoom, Pids, PolicyAccess,
};
use crate::{NodeName, PolicyName, WellKnownName};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the pool that a connection has if it does not ask for another size.
pub const POOL_SIZE: u64 = 1 << 20;

/// What a connection gives out to queries if it does not say otherwise: who it is. Messages carry these, all
/// but the name and path of the program, to whoever asks in any case.
///
/// kdbus.metadata: a query returns nothing that its target does not give out.
pub const IDENTITY: AttachFlags = AttachFlags::CREDS
    .union(AttachFlags::PIDS)
    .union(AttachFlags::AUXGROUPS)
    .union(AttachFlags::NAMES)
    .union(AttachFlags::PID_COMM)
    .union(AttachFlags::EXE)
    .union(AttachFlags::CONN_DESCRIPTION);

/// Bytes of HELLO with all its items; room for 20 access rules beside the longest name.
const HELLO_MAX: usize = 1536;

/// How a connection introduces itself: what it is, its pool, and the metadata it gives and takes.
///
/// ```
/// use kdbus_core::NodeName;
/// use kdbus_core::abi::AttachFlags;
/// use kdbus_core::client::Hello;
/// let hello = Hello::new()
///     .description(NodeName::parse("mixer").unwrap())
///     .pool_size(256 << 10)
///     .accept_fds()
///     .ask_metadata(AttachFlags::CREDS | AttachFlags::TIMESTAMP);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Hello<'a> {
    flags: HelloFlags,
    pool_size: u64,
    send: AttachFlags,
    recv: AttachFlags,
    description: Option<NodeName<'a>>,
    name: Option<PolicyName<'a>>,
    policy: &'a [PolicyAccess],
    creds: Option<Creds>,
    pids: Option<Pids>,
    label: Option<&'a str>,
}

impl<'a> Hello<'a> {
    /// An ordinary connection with a pool of [`POOL_SIZE`] that says who it is and asks for no metadata.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            flags: HelloFlags::empty(),
            pool_size: POOL_SIZE,
            send: IDENTITY,
            recv: AttachFlags::empty(),
            description: None,
            name: None,
            policy: &[],
            creds: None,
            pids: None,
            label: None,
        }
    }

    /// Bytes of the pool that messages are received into, a multiple of the page size. Default: [`POOL_SIZE`].
    ///
    /// One sender can have a sixth of it waiting, so that is the longest message. The memory is the bus'.
    #[must_use]
    pub const fn pool_size(mut self, bytes: u64) -> Self {
        self.pool_size = bytes;
        self
    }

    /// Takes messages with descriptors. Default: they are refused to the sender; memfds come in any case.
    #[must_use]
    pub const fn accept_fds(mut self) -> Self {
        self.flags = self.flags.union(HelloFlags::ACCEPT_FD);
        self
    }

    /// What the connection calls itself, for people. Default: nothing.
    #[must_use]
    pub const fn description(mut self, description: NodeName<'a>) -> Self {
        self.description = Some(description);
        self
    }

    /// Metadata to give out to queries, and with messages beyond what every receiver may ask for. Default:
    /// [`IDENTITY`].
    #[must_use]
    pub const fn send_metadata(mut self, metadata: AttachFlags) -> Self {
        self.send = metadata;
        self
    }

    /// Metadata to receive with each message. Default: none; each item costs its sender time.
    #[must_use]
    pub const fn ask_metadata(mut self, metadata: AttachFlags) -> Self {
        self.recv = metadata;
        self
    }

    /// Holds `name` for a service that is not running yet. Only for the owner of the bus.
    #[must_use]
    pub const fn activator(mut self, name: WellKnownName<'a>) -> Self {
        self.flags = self.flags.union(HelloFlags::ACTIVATOR);
        self.name = Some(PolicyName { stem: name.as_str(), wildcard: false });
        self
    }

    /// Only says who may use `name`. Only for the owner of the bus.
    #[must_use]
    pub const fn policy_holder(mut self, name: PolicyName<'a>) -> Self {
        self.flags = self.flags.union(HelloFlags::POLICY_HOLDER);
        self.name = Some(name);
        self
    }

    /// Who may use the name of an activator or policy holder. Default: nobody but the owner of the bus.
    #[must_use]
    pub const fn policy(mut self, rules: &'a [PolicyAccess]) -> Self {
        self.policy = rules;
        self
    }

    /// Receives a copy of all traffic and sends none; see [`Monitor`](super::Monitor).
    #[must_use]
    pub(super) const fn monitor(mut self) -> Self {
        self.flags = self.flags.union(HelloFlags::MONITOR);
        self
    }

    /// Credentials to show instead of the real ones. Only for the owner of the bus.
    #[must_use]
    pub const fn creds(mut self, creds: Creds) -> Self {
        self.creds = Some(creds);
        self
    }

    /// Process ids to show instead of the real ones. Only for the owner of the bus.
    #[must_use]
    pub const fn pids(mut self, pids: Pids) -> Self {
        self.pids = Some(pids);
        self
    }

    /// Security label to show instead of the real one. Only for the owner of the bus.
    #[must_use]
    pub const fn security_label(mut self, label: &'a str) -> Self {
        self.label = Some(label);
        self
    }

    pub(super) fn write<'b>(&self, buffer: &'b mut HelloBuffer) -> Result<&'b mut [u8], NoRoom> {
        let mut items = ItemWriter::behind(&mut buffer.0, size_of::<CmdHello>())?;
        if let Some(description) = self.description {
            items.c_str(ItemType::CONN_DESCRIPTION, description.as_str())?;
        }
        if let Some(creds) = &self.creds {
            items.record(ItemType::CREDS, creds)?;
        }
        if let Some(pids) = &self.pids {
            items.record(ItemType::PIDS, pids)?;
        }
        if let Some(label) = self.label {
            items.c_str(ItemType::SECLABEL, label)?;
        }
        if let Some(name) = self.name {
            write_policy(name, self.policy, &mut items)?;
        }
        let size = items.len();
        let head = CmdHello {
            size: size as u64,
            flags: self.flags.bits(),
            attach_flags_send: self.send.bits(),
            attach_flags_recv: self.recv.bits(),
            pool_size: self.pool_size,
            ..CmdHello::default()
        };
        buffer.0[..size_of::<CmdHello>()].copy_from_slice(head.as_bytes());
        Ok(&mut buffer.0[..size])
    }
}

impl Default for Hello<'_> {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) type HelloBuffer = Buffer<HELLO_MAX>;

/// Appends a name and its access rules.
pub(super) fn write_policy(
    name: PolicyName<'_>,
    rules: &[PolicyAccess],
    items: &mut ItemWriter<'_>,
) -> Result<(), NoRoom> {
    let end: &[u8] = if name.wildcard { b".*\0" } else { b"\0" };
    items.parts(ItemType::NAME, &[name.stem.as_bytes(), end])?;
    rules.iter().try_for_each(|rule| items.record(ItemType::POLICY_ACCESS, rule))
}

/// The bus at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Bus {
    /// Random number that no other bus has.
    pub id128: [u8; 16],
    /// Whom its creator let in.
    pub flags: MakeFlags,
    /// Size and hash count of its bloom filters.
    pub bloom: BloomParameter,
}

/// Says hello with a written command; the connection's id and what the bus says about itself.
pub(super) fn introduce<T: Transport>(transport: &T, arg: &mut [u8]) -> Result<(u64, Bus), HelloError> {
    transport.command(Command::Hello, arg)?;
    let (answer, _) = CmdHello::read_from_prefix(arg).map_err(|_| HelloError::Malformed)?;
    let slice = Slice::new(transport, answer.offset, answer.items_size).ok_or(HelloError::Malformed)?;
    let bloom = Items::new(&slice)
        .map_while(Result::ok)
        .find(|item| item.kind == ItemType::BLOOM_PARAMETER)
        .and_then(|item| item.record())
        .filter(topic::is_valid)
        .ok_or(HelloError::Malformed)?;
    let flags = MakeFlags::from_bits_retain(answer.bus_flags);
    crate::event!(info, "connected as {}", answer.id);
    Ok((answer.id, Bus { id128: answer.id128, flags, bloom }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Frame;

    #[test]
    fn everything_that_can_be_said_passes_the_framing_of_the_bus() {
        let rules = [PolicyAccess { kind: 3, access: 1, id: 0 }; 20];
        let name = PolicyName::from_bytes(b"org.example.*").unwrap();
        let hello = Hello::new()
            .accept_fds()
            .description(NodeName::parse("mixer").unwrap())
            .creds(Creds::default())
            .pids(Pids::default())
            .security_label("label")
            .policy_holder(name)
            .policy(&rules);
        let mut buffer = HelloBuffer::zeroed();
        let arg = hello.write(&mut buffer).unwrap();
        let frame = Frame::check(arg, Command::Hello.shape(), false).unwrap();
        assert_eq!(frame.flags, (HelloFlags::ACCEPT_FD | HelloFlags::POLICY_HOLDER).bits());
        assert_eq!(frame.item(ItemType::NAME).unwrap().text(), Some("org.example.*"));
        assert_eq!(frame.items().filter(|item| item.kind == ItemType::POLICY_ACCESS).count(), 20);
    }

    #[test]
    fn too_many_rules_are_an_error() {
        let rules = [PolicyAccess::default(); 64];
        let hello = Hello::new().activator(WellKnownName::parse("a.b").unwrap()).policy(&rules);
        assert!(hello.write(&mut HelloBuffer::zeroed()).is_err());
    }
}
