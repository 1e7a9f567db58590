//! A handle: a connection to a bus.
#![allow(unsafe_code, reason = "exports names; there is no unsafe block")]

use core::cell::{Cell, RefCell};
use core::ffi::{c_char, c_int};
use core::mem::MaybeUninit;
use std::boxed::Box;
use std::rc::Rc;
use std::vec::Vec;

use kdbus_core::abi::AttachFlags;
use kdbus_core::client::{ByebyeError, Hello, RecvError, Transport};
use kdbus_core::{Instant, NodeName};
use kdbus_linux::local::Options as Opening;

use crate::Client;
use crate::error::{Error, Refusal, Text, keep};
use crate::held::Message;
use crate::pointer;

/// Never: a deadline that does not come.
pub const KDBUS_RT_FOREVER: u64 = u64::MAX;

/// Option: messages may bring descriptors. Without it, they are refused to the sender; memfds come in any case.
pub const KDBUS_RT_ACCEPT_FDS: u64 = 1;
/// Option: queries about this connection give out what attach_send says and nothing else.
pub const KDBUS_RT_ANONYMOUS: u64 = 2;
/// Option: the pages of the pool are mapped when they are first used, not at connect. Saves memory and costs
/// page faults.
pub const KDBUS_RT_LAZY_POOL: u64 = 4;

/// Places for messages that a handle has unless messages_max says otherwise.
pub const KDBUS_RT_MESSAGES_DEFAULT: u32 = 64;

/// Most places for messages that a handle can have.
const MESSAGES_MAX: u32 = 65_536;
/// What sending sets aside for large payloads unless `staging` says otherwise.
const STAGING: u64 = 1 << 20;

/// How to connect. All zero is the default of everything.
#[repr(C)]
#[derive(Debug)]
pub struct Options {
    /// Bytes of the pool that messages are received into, a multiple of the page size. One sender can have a
    /// sixth of it waiting, so that is the longest message. Default: 1 MiB.
    pub pool_size: u64,
    /// Any of KDBUS_RT_ACCEPT_FDS, KDBUS_RT_ANONYMOUS and KDBUS_RT_LAZY_POOL.
    pub flags: u64,
    /// Metadata to give out (KDBUS_RT_ATTACH_...). Default, unless KDBUS_RT_ANONYMOUS: credentials, process
    /// ids, groups, names, name and path of the program, description.
    pub attach_send: u64,
    /// Metadata to receive with each message (KDBUS_RT_ATTACH_...). Default: none; each costs the sender time.
    pub attach_recv: u64,
    /// What the connection calls itself, for people: at most 63 bytes. Default, or NULL: nothing.
    pub description: *const c_char,
    /// Bytes set aside at connect for sending payloads too large for a packet. A larger one makes it grow when
    /// it is sent. Default: 1 MiB.
    pub staging: u64,
    /// Messages that can be held at a time, at most 65536; a receive or call beyond is -ENOBUFS and takes
    /// nothing. Each place takes some hundred bytes. Default: KDBUS_RT_MESSAGES_DEFAULT.
    pub messages_max: u32,
    /// 0.
    pub reserved_word: u32,
    /// 0.
    pub reserved: [u64; 4],
}

impl Options {
    /// As C's `{0}` makes it.
    #[must_use]
    pub const fn zeroed() -> Self {
        Self {
            pool_size: 0,
            flags: 0,
            attach_send: 0,
            attach_recv: 0,
            description: core::ptr::null(),
            staging: 0,
            messages_max: 0,
            reserved_word: 0,
            reserved: [0; 4],
        }
    }
}

/// What a handle and the messages received through it share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    /// Places in which no message is.
    #[expect(clippy::vec_box, reason = "C holds each place by its address")]
    pub(crate) places: RefCell<Vec<Box<Message>>>,
    pub(crate) error: RefCell<Text>,
    pub(crate) remote: Cell<u32>,
}

impl Shared {
    /// 0, or the negative number of the error, whose text is kept.
    pub(crate) fn finish(&self, result: Result<(), Error>) -> c_int {
        match result {
            Ok(()) => 0,
            Err(error) => keep(Some(&self.error), &error),
        }
    }
}

/// A connection to a bus.
pub struct Bus {
    shared: Rc<Shared>,
}

impl Bus {
    pub(crate) const fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    pub(crate) fn client(&self) -> &Client {
        &self.shared.client
    }

    fn connect(name: Option<&str>, options: Option<&Options>) -> Result<Box<Self>, Error> {
        let mut opening = Opening::new();
        let mut hello = Hello::new();
        let mut places = KDBUS_RT_MESSAGES_DEFAULT;
        if let Some(options) = options {
            let known = KDBUS_RT_ACCEPT_FDS | KDBUS_RT_ANONYMOUS | KDBUS_RT_LAZY_POOL;
            if options.reserved_word != 0 || options.reserved != [0; 4] || options.flags & !known != 0 {
                return Err(Refusal::invalid("options", "have an unknown flag or a reserved field").into());
            }
            if options.messages_max > MESSAGES_MAX {
                return Err(Refusal::invalid("messages_max", "is above 65536").into());
            }
            if options.messages_max != 0 {
                places = options.messages_max;
            }
            if options.pool_size != 0 {
                hello = hello.pool_size(options.pool_size);
            }
            if options.flags & KDBUS_RT_ACCEPT_FDS != 0 {
                hello = hello.accept_fds();
            }
            if options.flags & KDBUS_RT_ANONYMOUS != 0 || options.attach_send != 0 {
                hello = hello.send_metadata(attach(options.attach_send, "attach_send")?);
            }
            hello = hello.ask_metadata(attach(options.attach_recv, "attach_recv")?);
            if let Some(description) = pointer::text(options.description, "description")? {
                hello = hello.description(NodeName::parse(description).map_err(Error::about("description"))?);
            }
            let staging = if options.staging == 0 { STAGING } else { options.staging };
            opening = opening.staging(staging).prefault(options.flags & KDBUS_RT_LAZY_POOL == 0);
        }
        let transport = match name {
            Some(name) => opening.connect(name)?,
            None => opening.connect_default()?,
        };
        let client = Client::with_capacities(transport, &hello)?;
        let places = (0..places).map(|_| Box::new(Message::empty())).collect();
        Ok(Box::new(Self {
            shared: Rc::new(Shared {
                client,
                places: RefCell::new(places),
                error: RefCell::new(Text::new()),
                remote: Cell::new(0),
            }),
        }))
    }

    /// Waits until a message is there.
    fn wait(&self, until: Instant) -> Result<(), Error> {
        let client = self.client();
        loop {
            if client.peek()?.is_some() {
                return Ok(());
            }
            if client.now() >= until {
                return Err(RecvError::TimedOut.into());
            }
            client.transport().wait((until != Instant::FAR).then_some(until)).map_err(RecvError::from)?;
            client.process(client.now())?;
        }
    }
}

/// Metadata by its bits.
pub(crate) fn attach(bits: u64, what: &'static str) -> Result<AttachFlags, Error> {
    let flags = AttachFlags::from_bits(bits);
    Ok(flags.ok_or_else(|| Refusal::invalid(what, "has a bit that stands for no metadata"))?)
}

/// Runs a function of a handle; the number to return.
pub(crate) fn with(bus: Option<&mut Bus>, run: impl FnOnce(&Bus) -> Result<(), Error>) -> c_int {
    match bus {
        Some(bus) => bus.shared.finish(run(bus)),
        None => keep(None, &Refusal::null("bus").into()),
    }
}

/// Connects to a bus.
///
/// `name` is a bus ("0-system"), an endpoint of one ("0-system/guests") or the absolute path of a node. NULL is
/// the bus of the environment variable KDBUS_BUS, or the first one that exists of the user's own and the
/// system's. `options` may be NULL; it and what it leads to are not needed after the call.
///
/// On success `*bus` is a new handle, to be given to kdbus_rt_close; on failure it is NULL, and
/// kdbus_rt_error(NULL) says more.
///
/// Returns 0, -ENOENT if there is no such bus, -ESHUTDOWN if nobody serves it any more, -EACCES if it is not for
/// this user, -EMFILE if the user has too many connections, -EINVAL for a NULL `bus`, a name or options that
/// cannot be right, or another error of the system.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_connect(
    name: *const c_char,
    options: Option<&Options>,
    bus: Option<&mut MaybeUninit<*mut Bus>>,
) -> c_int {
    let Some(bus) = bus else { return keep(None, &Refusal::null("bus").into()) };
    let connected = pointer::text(name, "name").map_err(Error::from);
    match connected.and_then(|name| Bus::connect(name, options)) {
        Ok(connected) => {
            bus.write(Box::into_raw(connected));
            0
        }
        Err(error) => {
            bus.write(core::ptr::null_mut());
            keep(None, &error)
        }
    }
}

/// Ends the connection at once: its names pass on, who waits for its answers learns that there will be none,
/// and what waited unread is gone. The handle must not be used any more. Messages that are still held stay
/// readable until each is freed, and the memory of the pool until all are. NULL does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_close(bus: Option<Box<Bus>>) {
    if let Some(bus) = bus {
        // With messages held, the connection does not go with the handle. What cannot be shut down has ended.
        let _ =
            rustix::net::shutdown(bus.client().transport().handle().socket(), rustix::net::Shutdown::Both);
    }
}

/// Ends the connection only if no message waits, so that none is lost, and closes the handle then.
///
/// Returns 0, and the handle must not be used any more; -EBUSY if messages wait or are held, or another error if
/// the bus is gone: then the handle is still there and has to be closed.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_byebye(bus: Option<Box<Bus>>) -> c_int {
    let Some(bus) = bus else { return keep(None, &Refusal::null("bus").into()) };
    let left = match Rc::strong_count(&bus.shared) {
        1 => bus.client().try_byebye().map_err(Error::from),
        _ => Err(ByebyeError::Busy.into()),
    };
    let code = bus.shared.finish(left);
    if code != 0 {
        // The caller keeps it.
        let _ = Box::into_raw(bus);
    }
    code
}

/// The connection's unique id; 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_id(bus: Option<&Bus>) -> u64 {
    bus.map_or(0, |bus| bus.client().id())
}

/// A descriptor for poll and epoll, readable while the bus has something for this connection. It belongs to the
/// handle: never read or close it. Functions that wait may take messages in and keep them, so receive until
/// -EAGAIN before each poll.
///
/// Returns it, or -EINVAL for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_fd(bus: Option<&Bus>) -> c_int {
    match bus {
        Some(bus) => bus.client().fd().unwrap_or(-kdbus_core::abi::Errno::EOPNOTSUPP.raw()),
        None => keep(None, &Refusal::null("bus").into()),
    }
}

/// Waits until a message can be received or `deadline` passes.
///
/// Returns 0, -ETIMEDOUT, -EINTR after a signal, -ECONNRESET if the bus is gone, or -EINVAL for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_wait(bus: Option<&mut Bus>, deadline: u64) -> c_int {
    with(bus, |bus| bus.wait(Instant::from_nanos(deadline)))
}

/// Broadcasts that were lost since the last call of this function because the pool or queue had no room. Whoever
/// mirrors another program's state has to fetch it anew. 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_lost(bus: Option<&mut Bus>) -> u64 {
    bus.map_or(0, |bus| bus.client().take_lost())
}

/// Now, on the clock of deadlines: nanoseconds of CLOCK_MONOTONIC.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_now() -> u64 {
    now().as_nanos()
}

/// The deadline that is `ns` nanoseconds from now; KDBUS_RT_FOREVER if that is beyond the clock.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_after_ns(ns: u64) -> u64 {
    now().after(core::time::Duration::from_nanos(ns)).as_nanos()
}

/// The deadline that is `ms` milliseconds from now; KDBUS_RT_FOREVER if that is beyond the clock.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_after_ms(ms: u64) -> u64 {
    now().after(core::time::Duration::from_millis(ms)).as_nanos()
}

fn now() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The clock starts at boot: neither part is negative, and the sum lasts for centuries.
    Instant::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}
