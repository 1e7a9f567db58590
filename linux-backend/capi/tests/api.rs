//! The functions of the library, called as C calls them, against a real daemon.

use std::ffi::{CStr, CString};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr::{null, null_mut};

use kdbus_rt::bus::*;
use kdbus_rt::error::*;
use kdbus_rt::held::Message;
use kdbus_rt::matches::*;
use kdbus_rt::message::*;
use kdbus_rt::metadata::*;
use kdbus_rt::names::*;
use kdbus_rt::recv::*;
use kdbus_rt::send::*;

mod common;

const ESRCH: i32 = -3;
const ENXIO: i32 = -6;
const EBADF: i32 = -9;
const EAGAIN: i32 = -11;
const EBUSY: i32 = -16;
const EEXIST: i32 = -17;
const EINVAL: i32 = -22;
const ENODATA: i32 = -61;
const EDESTADDRREQ: i32 = -89;
const ECONNRESET: i32 = -104;
const ENOBUFS: i32 = -105;
const ETIMEDOUT: i32 = -110;

/// Far beyond what anything here takes.
fn soon() -> u64 {
    kdbus_rt_after_ms(30_000)
}

/// A handle, closed at the end.
struct Bus(Option<Box<kdbus_rt::bus::Bus>>);

impl Bus {
    fn connect(daemon: &common::Bus) -> Self {
        Self::with(daemon, |_| {})
    }

    fn with(daemon: &common::Bus, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::zeroed();
        change(&mut options);
        let node = CString::new(daemon.node().as_os_str().as_bytes()).unwrap();
        let mut bus = MaybeUninit::uninit();
        let code = kdbus_rt_connect(node.as_ptr(), Some(&options), Some(&mut bus));
        assert_eq!(code, 0, "{}", text(None));
        // SAFETY: written on success, by the library's own `Box::into_raw`.
        Self(Some(unsafe { Box::from_raw(bus.assume_init()) }))
    }

    fn get(&mut self) -> Option<&mut kdbus_rt::bus::Bus> {
        self.0.as_deref_mut()
    }

    fn id(&self) -> u64 {
        kdbus_rt_id(self.0.as_deref())
    }

    fn error(&self) -> String {
        text(self.0.as_deref())
    }

    fn send(&mut self, outgoing: &Outgoing) -> i32 {
        kdbus_rt_send(self.get(), Some(outgoing), None)
    }

    fn recv(&mut self, deadline: u64) -> Result<Option<Box<Message>>, i32> {
        let mut message = MaybeUninit::uninit();
        let code = kdbus_rt_recv(self.get(), 0, 0, deadline, Some(&mut message));
        // SAFETY: written in any case; NULL on failure.
        let message = unsafe { message.assume_init() };
        assert_eq!(message.is_null(), code < 0);
        if code < 0 {
            return Err(code);
        }
        // SAFETY: the library's own `Box::into_raw`.
        Ok(Some(unsafe { Box::from_raw(message) }))
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        kdbus_rt_close(self.0.take());
    }
}

fn text(bus: Option<&kdbus_rt::bus::Bus>) -> String {
    // SAFETY: never NULL, and with a NUL.
    unsafe { CStr::from_ptr(kdbus_rt_error(bus)) }.to_str().unwrap().into()
}

fn to(id: u64, payload: &[u8]) -> Outgoing {
    Outgoing { id, payload: payload.as_ptr().cast(), payload_len: payload.len(), ..Outgoing::zeroed() }
}

fn payload(message: Option<&Message>) -> Vec<u8> {
    let mut len = MaybeUninit::uninit();
    let bytes = kdbus_rt_message_payload(message, Some(&mut len));
    // SAFETY: `len` is written in any case.
    let len = unsafe { len.assume_init() };
    if bytes.is_null() {
        return Vec::new();
    }
    // SAFETY: that many bytes of a message that is held.
    unsafe { std::slice::from_raw_parts(bytes.cast(), len) }.to_vec()
}

#[test]
fn null_is_refused_and_freeing_it_does_nothing() {
    kdbus_rt_close(None);
    kdbus_rt_message_free(None);
    let codes = [
        kdbus_rt_connect(null(), None, None),
        kdbus_rt_byebye(None),
        kdbus_rt_fd(None),
        kdbus_rt_wait(None, 0),
        kdbus_rt_name_acquire(None, c"a.b".as_ptr(), 0, None),
        kdbus_rt_name_release(None, c"a.b".as_ptr()),
        kdbus_rt_name_owner(None, c"a.b".as_ptr(), None),
        kdbus_rt_name_wait(None, c"a.b".as_ptr(), 0, None),
        kdbus_rt_list(None, 1, null_mut(), 0),
        kdbus_rt_subscribe(None, c"a".as_ptr(), None),
        kdbus_rt_match_add(None, 1, 0, null(), 0),
        kdbus_rt_match_remove(None, 1),
        kdbus_rt_send(None, Some(&to(1, b"")), None),
        kdbus_rt_send_when_room(None, Some(&to(1, b"")), 0, None),
        kdbus_rt_call(None, Some(&to(1, b"")), 0, -1, None),
        kdbus_rt_reply(None, null(), 0),
        kdbus_rt_reply_with(None, Some(&Outgoing::zeroed())),
        kdbus_rt_reply_error(None, 0, null()),
        kdbus_rt_memfd(null(), 0),
        kdbus_rt_memfd(null(), 1),
        kdbus_rt_recv(None, 0, 0, 0, None),
        kdbus_rt_peek(None, None),
        kdbus_rt_drop(None),
        kdbus_rt_message_part(None, 0, None),
        kdbus_rt_message_take_fd(None, 0),
        kdbus_rt_message_take_memfd(None, 0),
        kdbus_rt_message_notification(None, None),
        kdbus_rt_message_timestamp(None, None),
        kdbus_rt_message_creds(None, None),
        kdbus_rt_message_pids(None, None),
        kdbus_rt_message_text(None, 0, null_mut(), 0),
    ];
    assert!(codes.iter().all(|code| *code == EINVAL), "{codes:?}");
    assert_eq!(text(None), "message is NULL");
    assert_eq!((kdbus_rt_id(None), kdbus_rt_lost(None), kdbus_rt_remote_code(None)), (0, 0, 0));
    assert_eq!((kdbus_rt_message_kind(None), kdbus_rt_message_sender(None)), (0, 0));
    assert_eq!((kdbus_rt_message_payload_len(None), kdbus_rt_message_fd_count(None)), (0, 0));
    assert_eq!(kdbus_rt_message_is_about(None, c"a".as_ptr()), 0);
    assert!(kdbus_rt_message_payload(None, None).is_null());
}

#[test]
fn null_behind_a_handle_is_refused_too() {
    let daemon = common::Bus::start();
    let mut bus = Bus::connect(&daemon);
    let codes = [
        kdbus_rt_name_acquire(bus.get(), null(), 0, None),
        kdbus_rt_subscribe(bus.get(), null(), None),
        kdbus_rt_match_add(bus.get(), 1, 0, null(), 1),
        kdbus_rt_list(bus.get(), 1, null_mut(), 1),
        kdbus_rt_send(bus.get(), None, None),
        kdbus_rt_call(bus.get(), None, 0, -1, None),
        kdbus_rt_recv(bus.get(), 0, 0, 0, None),
        kdbus_rt_peek(bus.get(), None),
        bus.send(&Outgoing { part_count: 1, ..to(1, b"") }),
        bus.send(&Outgoing { fd_count: 1, ..to(1, b"") }),
    ];
    assert_eq!(codes, [EINVAL; 10]);
    let nowhere = Outgoing { payload: null(), payload_len: 1, ..to(1, b"") };
    assert_eq!(
        (bus.send(&nowhere), bus.error().as_str()),
        (EINVAL, "payload is NULL or not aligned, but its count is not 0")
    );
}

#[test]
fn messages_outlive_their_handle_and_names_do_not() {
    let daemon = common::Bus::start();
    let (mut a, mut b) = (Bus::connect(&daemon), Bus::connect(&daemon));
    let mut standing = MaybeUninit::uninit();
    assert_eq!(kdbus_rt_name_acquire(b.get(), c"org.example.B".as_ptr(), 0, Some(&mut standing)), 0);
    // SAFETY: written on success.
    assert_eq!(unsafe { standing.assume_init() }, KDBUS_RT_NAME_PRIMARY | KDBUS_RT_NAME_ACQUIRED);
    assert_eq!(kdbus_rt_name_acquire(a.get(), c"org.example.B".as_ptr(), 0, None), EEXIST);
    let by_name = Outgoing { name: c"org.example.B".as_ptr(), ..to(0, b"kept") };
    assert_eq!(a.send(&by_name), 0);
    let message = b.recv(soon()).unwrap();
    drop(b);
    let until = soon();
    while kdbus_rt_name_owner(a.get(), c"org.example.B".as_ptr(), None) == 0 {
        assert!(kdbus_rt_now() < until, "the name outlives its handle");
        std::thread::yield_now();
    }
    assert_eq!(payload(message.as_deref()), b"kept");
    assert_eq!(kdbus_rt_message_sender(message.as_deref()), a.id());
    // The connection is gone, and says so.
    assert_eq!(kdbus_rt_reply(message.as_deref(), null(), 0), ECONNRESET);
    kdbus_rt_message_free(message);
    assert_eq!(a.send(&by_name), ESRCH);
    assert_eq!(a.error(), "nobody owns the name; wait for it or start the service");
}

#[test]
fn byebye_waits_for_everything_to_be_received() {
    let daemon = common::Bus::start();
    let mut a = Bus::connect(&daemon);
    let id = a.id();
    assert_eq!(a.send(&to(id, b"to itself")), 0);
    let handle = std::ptr::from_mut(a.get().unwrap());
    assert_eq!(kdbus_rt_byebye(a.0.take()), EBUSY);
    // SAFETY: on failure the handle is still there, as the header says.
    a.0 = Some(unsafe { Box::from_raw(handle) });
    let message = a.recv(0).unwrap();
    assert_eq!(kdbus_rt_byebye(a.0.take()), EBUSY, "a message is held");
    // SAFETY: as above.
    a.0 = Some(unsafe { Box::from_raw(handle) });
    kdbus_rt_message_free(message);
    assert_eq!(kdbus_rt_byebye(a.0.take()), 0);
}

#[test]
fn a_receive_without_a_free_place_takes_nothing() {
    let daemon = common::Bus::start();
    let mut a = Bus::with(&daemon, |options| options.messages_max = 2);
    let id = a.id();
    for text in [b"1", b"2", b"3"] {
        assert_eq!(a.send(&to(id, text)), 0);
    }
    let first = a.recv(0).unwrap();
    let second = a.recv(0).unwrap();
    assert_eq!(a.recv(0).map(drop).unwrap_err(), ENOBUFS);
    assert_eq!(kdbus_rt_call(a.get(), Some(&to(id, b"")), soon(), -1, None), ENOBUFS);
    assert!(a.error().contains("messages_max"), "{}", a.error());
    kdbus_rt_message_free(first);
    let third = a.recv(0).unwrap();
    assert_eq!((payload(second.as_deref()), payload(third.as_deref())), (b"2".to_vec(), b"3".to_vec()));
    kdbus_rt_message_free(second);
    kdbus_rt_message_free(third);
    assert_eq!(a.recv(0).map(drop).unwrap_err(), EAGAIN);
    assert_eq!(a.recv(kdbus_rt_after_ms(1)).map(drop).unwrap_err(), ETIMEDOUT);
    assert_eq!(kdbus_rt_wait(a.get(), kdbus_rt_after_ns(1)), ETIMEDOUT);
}

#[test]
fn descriptors_and_memory_travel_and_can_be_taken_once() {
    let daemon = common::Bus::start();
    let (mut a, mut b) =
        (Bus::connect(&daemon), Bus::with(&daemon, |options| options.flags = KDBUS_RT_ACCEPT_FDS));
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let memfd = kdbus_rt_memfd(b"sealed".as_ptr().cast(), 6);
    assert!(memfd >= 0);
    // SAFETY: just made, and nobody else's.
    let memfd = unsafe { std::fs::File::from_raw_fd(memfd) };
    let none = Part { kind: KDBUS_RT_PART_BYTES, fd: -1, data: null(), start: 0, size: 0 };
    let parts = [
        Part { data: b"bytes".as_ptr().cast(), size: 5, ..none },
        Part { kind: KDBUS_RT_PART_ZEROS, size: 1 << 20, ..none },
        Part { kind: KDBUS_RT_PART_MEMFD, fd: memfd.as_raw_fd(), start: 2, size: 4, ..none },
    ];
    let fds = [writer.as_raw_fd()];
    let outgoing = Outgoing {
        parts: parts.as_ptr(),
        part_count: 3,
        fds: fds.as_ptr(),
        fd_count: 1,
        ..to(b.id(), b"first ")
    };
    assert_eq!(a.send(&outgoing), 0, "{}", a.error());
    let mut message = b.recv(soon()).unwrap();
    let m = message.as_deref();
    assert_eq!(
        (payload(m), kdbus_rt_message_payload_len(m)),
        (b"first bytes".to_vec(), 6 + 5 + (1 << 20) + 4)
    );
    assert_eq!(kdbus_rt_message_fd_count(m), 1);
    let mut kinds = Vec::new();
    let mut part = MaybeUninit::uninit();
    for index in 0.. {
        match kdbus_rt_message_part(m, index, Some(&mut part)) {
            // SAFETY: written on success.
            0 => kinds.push(unsafe { part.assume_init() }),
            code => {
                assert_eq!(code, ENODATA);
                break;
            }
        }
    }
    let expected = [(KDBUS_RT_PART_BYTES, 6), (KDBUS_RT_PART_BYTES, 5), (KDBUS_RT_PART_ZEROS, 1 << 20)];
    assert!(kinds.iter().map(|part| (part.kind, part.size)).take(3).eq(expected), "{kinds:?}");
    assert_eq!((kinds[3].kind, kinds[3].start, kinds[3].size), (KDBUS_RT_PART_MEMFD, 2, 4));
    assert!(kinds[3].fd >= 0);

    let taken = kdbus_rt_message_take_memfd(message.as_deref_mut(), 0);
    // SAFETY: taken out of the message, so it is the caller's.
    let mut file = unsafe { std::fs::File::from_raw_fd(taken) };
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "sealed");
    assert_eq!(kdbus_rt_message_take_memfd(message.as_deref_mut(), 0), ENODATA);
    let taken = kdbus_rt_message_take_fd(message.as_deref_mut(), 0);
    // SAFETY: as above.
    let mut passed = unsafe { std::fs::File::from_raw_fd(taken) };
    assert_eq!(kdbus_rt_message_take_fd(message.as_deref_mut(), 0), ENODATA);
    kdbus_rt_message_free(message);
    passed.write_all(b"through").unwrap();
    writer.write_all(b" both").unwrap();
    drop((passed, writer));
    content.clear();
    reader.read_to_string(&mut content).unwrap();
    assert_eq!(content, "through both");
}

#[test]
fn what_no_message_can_be_is_refused_before_it_is_sent() {
    let daemon = common::Bus::start();
    let mut a = Bus::connect(&daemon);
    let id = a.id();
    let zeroed = Outgoing::zeroed;
    let name = c"org.example.B".as_ptr();
    let topic = c"a.b".as_ptr();
    let bad = Part { kind: 9, fd: -1, data: null(), start: 0, size: 0 };
    let negative = [-1];
    for (message, expected) in [
        (zeroed(), EDESTADDRREQ),
        (Outgoing { name, topic, ..zeroed() }, EINVAL),
        (Outgoing { topic, cookie_reply: 1, ..zeroed() }, EINVAL),
        (Outgoing { name, cookie_reply: 1, ..zeroed() }, EINVAL),
        (Outgoing { name: c"single".as_ptr(), ..zeroed() }, EINVAL),
        (Outgoing { topic: c"a..b".as_ptr(), ..zeroed() }, EINVAL),
        (Outgoing { reserved: [0, 0, 0, 1], ..to(id, b"") }, EINVAL),
        (Outgoing { flags: 8, ..to(id, b"") }, EINVAL),
        (Outgoing { cookie_reply: 7, flags: KDBUS_RT_EXPECT_REPLY, ..to(id, b"") }, EINVAL),
        (Outgoing { parts: &bad, part_count: 1, ..to(id, b"") }, EINVAL),
        (Outgoing { fds: negative.as_ptr(), fd_count: 1, ..to(id, b"") }, EBADF),
        (Outgoing { name, ..zeroed() }, ESRCH),
        (to(9999, b""), ENXIO),
    ] {
        assert_eq!(a.send(&message), expected, "{message:?}: {}", a.error());
    }
    assert_eq!(kdbus_rt_call(a.get(), Some(&Outgoing { topic, ..zeroed() }), soon(), -1, None), EINVAL);
    let mut flags = MaybeUninit::uninit();
    assert_eq!(kdbus_rt_recv(a.get(), 64, 0, 0, Some(&mut flags)), EINVAL);
    assert_eq!(a.recv(0).map(drop).unwrap_err(), EAGAIN);
    assert_eq!(kdbus_rt_list(a.get(), 1 << 40, null_mut(), 0), EINVAL);

    let node = CString::new(daemon.node().as_os_str().as_bytes()).unwrap();
    let mut bus = MaybeUninit::uninit();
    for options in [
        Options { flags: 1 << 20, ..Options::zeroed() },
        Options { reserved: [1, 0, 0, 0], ..Options::zeroed() },
        Options { attach_recv: 1 << 40, ..Options::zeroed() },
        Options { pool_size: 1, ..Options::zeroed() },
        Options { messages_max: 1 << 20, ..Options::zeroed() },
        Options { description: c"".as_ptr(), ..Options::zeroed() },
    ] {
        assert_eq!(kdbus_rt_connect(node.as_ptr(), Some(&options), Some(&mut bus)), EINVAL, "{options:?}");
        // SAFETY: written in any case.
        assert!(unsafe { bus.assume_init() }.is_null());
    }
    assert_eq!(kdbus_rt_connect(c"/nowhere/at/all".as_ptr(), None, Some(&mut bus)), -2);
    assert!(text(None).starts_with("no bus at /nowhere/at/all"), "{}", text(None));
}

#[test]
fn matches_bring_signals_and_announcements() {
    let daemon = common::Bus::start();
    let (mut a, mut b) = (Bus::connect(&daemon), Bus::connect(&daemon));
    let any = Rule { kind: 0, reserved: 0, text: null(), id: KDBUS_RT_ANY, mask: null(), mask_len: 0 };
    let added = Rule { kind: KDBUS_RT_RULE_NAME_ADD, text: c"org.example.A".as_ptr(), ..any };
    assert_eq!(kdbus_rt_match_add(b.get(), 5, 0, &added, 1), 0, "{}", b.error());
    assert_eq!(kdbus_rt_name_acquire(a.get(), c"org.example.A".as_ptr(), 0, None), 0);
    let message = b.recv(soon()).unwrap();
    assert_eq!(kdbus_rt_message_kind(message.as_deref()), KDBUS_RT_KIND_NOTIFICATION);
    let mut note = MaybeUninit::uninit();
    assert_eq!(kdbus_rt_message_notification(message.as_deref(), Some(&mut note)), 0);
    // SAFETY: written on success.
    let note = unsafe { note.assume_init() };
    assert_eq!((note.kind, note.old_id, note.new_id), (KDBUS_RT_NOTE_NAME_ADD, 0, a.id()));
    // SAFETY: it has a NUL.
    assert_eq!(unsafe { CStr::from_ptr(note.name.as_ptr()) }, c"org.example.A");
    kdbus_rt_message_free(message);
    assert_eq!(kdbus_rt_match_remove(b.get(), 5), 0);
    assert_eq!(kdbus_rt_match_remove(b.get(), 5), -57);

    let rules = [
        Rule { kind: KDBUS_RT_RULE_TOPIC, text: c"x.*".as_ptr(), ..any },
        Rule { kind: KDBUS_RT_RULE_SENDER, id: a.id(), ..any },
    ];
    assert_eq!(kdbus_rt_match_add(b.get(), 6, KDBUS_RT_MATCH_REPLACE, rules.as_ptr(), 2), 0);
    assert_eq!(kdbus_rt_match_add(b.get(), 6, 2, rules.as_ptr(), 2), EINVAL);
    assert_eq!(a.send(&Outgoing { topic: c"x.y".as_ptr(), id: 0, ..to(0, b"all") }), 0);
    assert_eq!(a.send(&Outgoing { topic: c"x.z".as_ptr(), ..to(b.id(), b"one") }), 0);
    let mut head = MaybeUninit::uninit();
    assert_eq!(kdbus_rt_wait(b.get(), soon()), 0);
    assert_eq!(kdbus_rt_peek(b.get(), Some(&mut head)), 0);
    // SAFETY: written on success.
    let head = unsafe { head.assume_init() };
    assert_eq!((head.sender, head.kind), (a.id(), KDBUS_RT_KIND_SIGNAL));
    assert_eq!(kdbus_rt_drop(b.get()), 0);
    let message = b.recv(0).unwrap();
    assert_eq!(payload(message.as_deref()), b"one");
    assert_eq!(kdbus_rt_message_is_about(message.as_deref(), c"x.z".as_ptr()), 1);
    assert_eq!(kdbus_rt_message_is_about(message.as_deref(), c"x.y".as_ptr()), 0);
    assert_eq!(kdbus_rt_message_notification(message.as_deref(), None), EINVAL);
    kdbus_rt_message_free(message);
    assert_eq!(kdbus_rt_drop(b.get()), EAGAIN);
}

#[test]
fn everybody_on_the_bus_is_listed() {
    let daemon = common::Bus::start();
    let (mut a, mut b) = (Bus::connect(&daemon), Bus::connect(&daemon));
    assert_eq!(kdbus_rt_name_acquire(a.get(), c"org.example.A".as_ptr(), 0, None), 0);
    assert_eq!(kdbus_rt_name_acquire(b.get(), c"org.example.A".as_ptr(), KDBUS_RT_NAME_QUEUE, None), 0);
    let all = KDBUS_RT_LIST_UNIQUE | KDBUS_RT_LIST_NAMES | KDBUS_RT_LIST_QUEUED;
    assert_eq!(kdbus_rt_list(a.get(), all, null_mut(), 0), 2);
    let mut peers: [MaybeUninit<Peer>; 4] = [const { MaybeUninit::uninit() }; 4];
    assert_eq!(kdbus_rt_list(a.get(), all, peers.as_mut_ptr().cast(), 4), 2);
    // SAFETY: two lines were written.
    let mut lines = [&peers[0], &peers[1]].map(|peer| unsafe { peer.assume_init_ref() });
    lines.sort_by_key(|peer| peer.id);
    // SAFETY: each has a NUL.
    let names = lines.map(|peer| unsafe { CStr::from_ptr(peer.name.as_ptr()) });
    assert_eq!(names, [c"org.example.A"; 2]);
    assert_eq!([lines[0].id, lines[1].id], [a.id(), b.id()]);
    assert_ne!(lines[0].name_flags & KDBUS_RT_NAME_PRIMARY, 0);
    assert_ne!(lines[1].name_flags & KDBUS_RT_NAME_IN_QUEUE, 0);
    assert_eq!(kdbus_rt_name_release(a.get(), c"org.example.A".as_ptr()), 0);
    let mut owner = MaybeUninit::uninit();
    assert_eq!(kdbus_rt_name_wait(a.get(), c"org.example.A".as_ptr(), soon(), Some(&mut owner)), 0);
    // SAFETY: written on success.
    assert_eq!(unsafe { owner.assume_init() }, b.id());
    assert_eq!(kdbus_rt_name_wait(a.get(), c"org.example.B".as_ptr(), kdbus_rt_after_ms(1), None), ETIMEDOUT);
}

#[test]
fn metadata_is_there_if_it_was_asked_for() {
    let daemon = common::Bus::start();
    let mut a = Bus::with(&daemon, |options| options.description = c"sender".as_ptr());
    let wanted = KDBUS_RT_ATTACH_TIMESTAMP
        | KDBUS_RT_ATTACH_CREDS
        | KDBUS_RT_ATTACH_PIDS
        | KDBUS_RT_ATTACH_DESCRIPTION;
    let mut b = Bus::with(&daemon, |options| options.attach_recv = wanted);
    assert_eq!(a.send(&Outgoing { cookie: 77, priority: -4, ..to(b.id(), b"") }), 0);
    let message = b.recv(soon()).unwrap();
    let m = message.as_deref();
    assert_eq!((kdbus_rt_message_cookie(m), kdbus_rt_message_priority(m)), (77, -4));
    assert_eq!((kdbus_rt_message_destination(m), kdbus_rt_message_cookie_reply(m)), (b.id(), 0));
    assert_eq!((kdbus_rt_message_kind(m), kdbus_rt_message_deadline(m)), (KDBUS_RT_KIND_PLAIN, 0));
    let (mut time, mut creds, mut pids) =
        (MaybeUninit::uninit(), MaybeUninit::uninit(), MaybeUninit::uninit());
    assert_eq!(kdbus_rt_message_timestamp(m, Some(&mut time)), 0);
    assert_eq!(kdbus_rt_message_creds(m, Some(&mut creds)), 0);
    assert_eq!(kdbus_rt_message_pids(m, Some(&mut pids)), 0);
    // SAFETY: all written on success.
    let (time, creds, pids) = unsafe { (time.assume_init(), creds.assume_init(), pids.assume_init()) };
    assert!(time.seqnum > 0 && time.monotonic_ns <= kdbus_rt_now());
    assert_eq!(creds.euid, u64::from(rustix::process::geteuid().as_raw()));
    assert_eq!(pids.pid, u64::from(std::process::id()));

    let mut buffer = [1_u8; 8];
    let mut ask = |which, size| {
        let len = kdbus_rt_message_text(m, which, buffer.as_mut_ptr().cast(), size);
        (len, buffer)
    };
    assert_eq!(ask(KDBUS_RT_TEXT_DESCRIPTION, 8), (6, *b"sender\0\0"));
    assert_eq!(ask(KDBUS_RT_TEXT_DESCRIPTION, 4), (6, *b"sen\0er\0\0"));
    assert_eq!(ask(KDBUS_RT_TEXT_DESCRIPTION, 0).0, 6);
    assert_eq!(ask(KDBUS_RT_TEXT_EXE, 8).0, ENODATA);
    assert_eq!(ask(KDBUS_RT_TEXT_DESTINATION, 8).0, ENODATA);
    assert_eq!(ask(99, 8).0, EINVAL);
    kdbus_rt_message_free(message);
}

#[test]
fn a_reply_may_come_as_a_message_of_its_own() {
    let daemon = common::Bus::start();
    let (mut a, mut b) = (Bus::connect(&daemon), Bus::connect(&daemon));
    let mut cookie = MaybeUninit::uninit();
    let call = Outgoing { flags: KDBUS_RT_EXPECT_REPLY, reply_until: soon(), ..to(b.id(), b"?") };
    assert_eq!(kdbus_rt_send(a.get(), Some(&call), Some(&mut cookie)), 0);
    // SAFETY: written on success.
    let cookie = unsafe { cookie.assume_init() };
    let request = b.recv(soon()).unwrap();
    let r = request.as_deref();
    assert_eq!((kdbus_rt_message_kind(r), kdbus_rt_message_deadline(r) > 0), (KDBUS_RT_KIND_CALL, true));
    let answer = Outgoing { payload_type: 9, ..to(0, b"!") };
    assert_eq!(kdbus_rt_reply_with(r, Some(&to(1, b""))), EINVAL);
    assert_eq!(kdbus_rt_reply_with(r, Some(&answer)), 0, "{}", b.error());
    assert_eq!(kdbus_rt_reply(r, null(), 0), -57, "once is enough");
    kdbus_rt_message_free(request);
    let reply = a.recv(soon()).unwrap();
    let r = reply.as_deref();
    assert_eq!((kdbus_rt_message_kind(r), kdbus_rt_message_cookie_reply(r)), (KDBUS_RT_KIND_REPLY, cookie));
    assert_eq!((payload(r), kdbus_rt_message_payload_type(r)), (b"!".to_vec(), 9));
    kdbus_rt_message_free(reply);
}

#[test]
fn a_bus_that_is_gone_is_told_by_every_function() {
    let mut daemon = common::Bus::start();
    let mut a = Bus::connect(&daemon);
    let id = a.id();
    daemon.stop();
    assert_eq!(a.recv(soon()).map(drop).unwrap_err(), ECONNRESET);
    let codes = [
        a.send(&to(id, b"")),
        kdbus_rt_wait(a.get(), soon()),
        kdbus_rt_name_acquire(a.get(), c"a.b".as_ptr(), 0, None),
        kdbus_rt_subscribe(a.get(), c"a".as_ptr(), None),
        kdbus_rt_list(a.get(), 1, null_mut(), 0),
        kdbus_rt_drop(a.get()),
        kdbus_rt_call(a.get(), Some(&to(id, b"")), soon(), -1, None),
    ];
    assert_eq!(codes, [ECONNRESET; 7]);
    assert!(a.error().contains("connect again"), "{}", a.error());
    assert!(kdbus_rt_fd(a.0.as_deref()) >= 0, "and readable for good");
}
