//! Descriptors that clients had a hand in, and the threads that close them.
//!
//! The last close of a file may wait for as long as whoever made the file likes: a network socket lingers, a file
//! system in user space is asked first, and a Unix socket closes whatever lies unread in its queue. So the loop
//! closes only what cannot wait, and hands everything else to threads that have nothing else to do.
//!
//! One thread takes in what the loop hands over and looks whose it is; the others close. Each user has a share of these
//! (see [`Accounts`]), so who passes files that are slow to close holds up its own only. The socket of a client without
//! descriptors unread in it is nobody's: closing it waits for nobody, and it waits for no user's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use kdbus_linux::local::socket::Descriptors;
use kdbus_linux::rt;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, StatxFlags};
use rustix::io::Errno;
use rustix::net::{self, RecvAncillaryBuffer, RecvFlags, ReturnFlags, Shutdown};

use crate::accounts::{Accounts, CLOSING_MOST, Whose};
use crate::process;

/// Descriptors that can be handed over before they are taken in; more are lost. It takes a loop that does not let other
/// threads run, because who takes in waits for nobody.
const HANDED_OVER: usize = 1 << 14;
/// Packets that are taken out of the socket of a client that went: more than a sender has room for at the usual limits.
const PACKETS_MOST: usize = 1024;
/// What a user may have waiting, whatever the limit of descriptors is.
const WAITING_LEAST: usize = 64;
const WAITING_MOST: usize = 4096;
/// Bytes of a thread's stack: there is a loop on it and a system call.
const STACK: usize = 64 << 10;
/// Blocks of 512 bytes that a memory file may have to be freed by the loop itself.
const SMALL: u64 = (4 << 20) / 512;

static CLOSER: OnceLock<Closer> = OnceLock::new();

struct Closer {
    sender: SyncSender<Closing>,
    receiver: Mutex<Receiver<Closing>>,
    desk: Mutex<Desk>,
    work: Condvar,
    is_started: AtomicBool,
    /// How many of a user may wait before it is crowded out.
    waiting_most: usize,
    /// A user may be.
    is_crowded: AtomicBool,
}

/// What the loop hands over.
struct Closing {
    file: OwnedFd,
    uid: u32,
    /// It is the socket of a client, and was shut down.
    is_client: bool,
}

/// What the threads that close share. The loop never waits for it.
struct Desk {
    accounts: Accounts<OwnedFd>,
    threads: usize,
    idle: usize,
}

/// Starts the threads of this process, once. What is not started closes descriptors in place.
pub(crate) fn start() -> std::io::Result<()> {
    let closer = CLOSER.get_or_init(|| {
        let (sender, receiver) = sync_channel(HANDED_OVER);
        let accounts = Accounts::new(rustix::process::geteuid().as_raw());
        Closer {
            sender,
            receiver: Mutex::new(receiver),
            desk: Mutex::new(Desk { accounts, threads: 0, idle: 0 }),
            work: Condvar::new(),
            is_started: AtomicBool::new(false),
            waiting_most: waiting_most(process::descriptor_limit()),
            is_crowded: AtomicBool::new(false),
        }
    });
    if !closer.is_started.swap(true, Ordering::Relaxed) {
        let started = closer.start_one().and_then(|()| spawn(|| closer.take_in()));
        closer.is_started.store(started.is_ok(), Ordering::Relaxed);
        return started;
    }
    Ok(())
}

/// Closes a descriptor that a client of the user `uid` brought, without waiting for anybody. At most two system calls and
/// a wake-up.
pub(crate) fn close(file: OwnedFd, uid: u32) {
    if !closes_at_once(file.as_fd()) {
        hand_over(Closing { file, uid, is_client: false });
    }
}

/// Closes the socket of a client of the user `uid`. Its other end knows at once. One system call and a wake-up.
pub(crate) fn hang_up(socket: OwnedFd, uid: u32) {
    // Whatever its client sends is in its queue now, or never.
    let _ = net::shutdown(&socket, Shutdown::Both);
    hand_over(Closing { file: socket, uid, is_client: true });
}

/// Whether so many descriptors of a user wait behind those that hold up its share that it must bring no others. Mostly a look
/// at one word; never waits.
pub(crate) fn is_crowded(uid: u32) -> bool {
    let Some(closer) = CLOSER.get().filter(|closer| closer.is_crowded.load(Ordering::Relaxed)) else {
        return false;
    };
    // Who cannot be asked about now is the next time.
    let desk = closer.desk.try_lock();
    desk.is_ok_and(|desk| desk.accounts.held_up(Whose::User(uid)) >= closer.waiting_most)
}

fn hand_over(closing: Closing) {
    let Some(closer) = CLOSER.get() else {
        return;
    };
    if let Err(TrySendError::Full(unsent) | TrySendError::Disconnected(unsent)) =
        closer.sender.try_send(closing)
    {
        // Better lost than waited for.
        std::mem::forget(unsent.file);
    }
}

impl Closer {
    /// Puts what is handed over on somebody's account, for ever.
    fn take_in(&self) {
        // The loop's class is inherited, and closing is not urgent. Going down is always permitted.
        let _ = rt::schedule(rt::Class::Other, 0);
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Closing { file, uid, is_client }) = receiver.recv() {
            let nobodys = is_client && read_up(file.as_fd());
            let whose = if nobodys { Whose::Nobody } else { Whose::User(uid) };
            let mut desk = self.desk();
            if let Err(file) = desk.accounts.add(whose, file) {
                std::mem::forget(file);
            }
            if desk.accounts.held_up(whose) >= self.waiting_most {
                self.is_crowded.store(true, Ordering::Relaxed);
            }
            drop(desk);
            self.work.notify_one();
        }
    }

    fn start_one(&'static self) -> std::io::Result<()> {
        let mut desk = self.desk();
        desk.threads += 1;
        desk.idle += 1;
        drop(desk);
        let started = spawn(|| self.close_all());
        if started.is_err() {
            let mut desk = self.desk();
            desk.threads -= 1;
            desk.idle -= 1;
        }
        started
    }

    /// Closes what waits, for ever.
    fn close_all(&'static self) {
        let _ = rt::schedule(rt::Class::Other, 0);
        let mut desk = self.desk();
        loop {
            let Some((whose, file)) = desk.accounts.next() else {
                desk = self.work.wait(desk).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            desk.idle -= 1;
            let is_last = desk.idle == 0 && desk.threads < CLOSING_MOST;
            drop(desk);
            if is_last {
                // Somebody to go on while this one is held up; without one, the others wait.
                let _ = self.start_one();
            }
            drop(file);
            desk = self.desk();
            desk.accounts.done(whose);
            desk.idle += 1;
            if desk.accounts.is_empty() {
                self.is_crowded.store(false, Ordering::Relaxed);
            }
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("kdbusd-close".into()).stack_size(STACK);
    thread.spawn(run).map(|_| ())
}

/// An eighth of the descriptors that this process may open.
fn waiting_most(limit: Option<u64>) -> usize {
    let share = limit.map_or(u64::MAX, |limit| limit / 8);
    usize::try_from(share).unwrap_or(WAITING_MOST).clamp(WAITING_LEAST, WAITING_MOST)
}

/// Whether the last close of a file is short: memory of a bounded size, and pipes. No file system is asked.
fn closes_at_once(file: BorrowedFd<'_>) -> bool {
    if fs::fcntl_get_seals(file).is_ok() {
        // Unlike `fstat`, this counts with the same width on every machine.
        return fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BLOCKS)
            .is_ok_and(|stat| stat.stx_blocks <= SMALL);
    }
    file_type(file) == Some(FileType::Fifo)
}

/// Takes packets without descriptors out of a packet socket that was shut down, until there are no others, and says whether
/// there are none, so that its close waits for nobody.
fn read_up(socket: BorrowedFd<'_>) -> bool {
    for _ in 0..PACKETS_MOST {
        match next_packet(socket) {
            Ok(Next::End) => return true,
            Ok(Next::Bare) => {}
            Ok(Next::WithDescriptors) | Err(_) => return false,
        }
        if net::recv(socket, &mut [0; 1], RecvFlags::DONTWAIT).is_err() {
            return false;
        }
    }
    false
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Bare,
    WithDescriptors,
    End,
}

/// What comes next in a packet socket that was shut down; it stays there.
///
/// The length does not tell: a packet may have descriptors and no bytes, or neither. But a socket that asks for credentials
/// has some with each packet, and is told that they were cut off where it has no place for them; the end of its queue has
/// none.
fn next_packet(socket: BorrowedFd<'_>) -> Result<Next, Errno> {
    let is_cut_off = |credentials| {
        net::sockopt::set_socket_passcred(socket, credentials)?;
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let look = || net::recvmsg(socket, &mut [], &mut RecvAncillaryBuffer::default(), flags);
        // That its other end did not read everything either is told once, and before anything else.
        let seen = look().or_else(|error| if error == Errno::CONNRESET { look() } else { Err(error) })?;
        Ok(seen.flags.contains(ReturnFlags::CTRUNC))
    };
    if !is_cut_off(true)? {
        return Ok(Next::End);
    }
    Ok(if is_cut_off(false)? { Next::WithDescriptors } else { Next::Bare })
}

/// The type of a file. Unlike `fstat`, it does not ask a file system that is another process.
pub(crate) fn file_type(file: BorrowedFd<'_>) -> Option<FileType> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = fs::statx(file, c"", flags, StatxFlags::TYPE).ok()?;
    Some(FileType::from_raw_mode(stat.stx_mode.into()))
}

/// Descriptors of a packet. Dropping them does not wait.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) fds: Descriptors,
    /// The user who sent them.
    pub(crate) uid: u32,
}

impl Batch {
    /// None yet, from a client of this user.
    pub(crate) const fn of(uid: u32) -> Self {
        Self { fds: Descriptors::new(), uid }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        while let Some(file) = self.fds.pop() {
            close(file, self.uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    };

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn send(socket: &OwnedFd, bytes: &[u8], file: Option<&OwnedFd>) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
        if file.is_some() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        }
        net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    }

    #[test]
    fn a_socket_that_was_shut_down_is_read_up_to_the_first_packet_with_descriptors() {
        let (file, _reader) = pair();
        let cases: [&[(&[u8], bool)]; 7] = [
            &[],
            &[(b"packet", false), (b"packet", false)],
            &[(b"packet", true)],
            &[(b"", true)],
            &[(b"", false), (b"", true)],
            &[(b"packet", true), (b"", false)],
            &[(b"", false), (b"", false)],
        ];
        let ways = [(false, false), (true, false), (true, true)];
        for (packets, (is_gone, is_reset)) in cases.iter().flat_map(|case| ways.map(|way| (case, way))) {
            let (ours, theirs) = pair();
            for (bytes, has_file) in *packets {
                send(&theirs, bytes, has_file.then_some(&file)).unwrap();
            }
            if is_reset {
                send(&ours, b"never read", None).unwrap();
            }
            let theirs = (!is_gone).then_some(theirs);
            net::shutdown(&ours, Shutdown::Both).unwrap();
            if let Some(theirs) = &theirs {
                assert_eq!(send(theirs, b"", Some(&file)), Err(Errno::PIPE));
            }
            let first = match packets.first() {
                None => Next::End,
                Some((_, false)) => Next::Bare,
                Some((_, true)) => Next::WithDescriptors,
            };
            assert_eq!(next_packet(ours.as_fd()), Ok(first));
            let is_bare = packets.iter().all(|(_, has_file)| !has_file);
            assert_eq!(read_up(ours.as_fd()), is_bare, "{packets:?}, gone: {is_gone}, reset: {is_reset}");
            if !is_bare {
                assert_eq!(next_packet(ours.as_fd()), Ok(Next::WithDescriptors), "nothing takes it out");
            }
        }
    }

    #[test]
    fn what_is_no_socket_is_not_taken_for_one_that_is_read_up() {
        assert!(!read_up(fs::open("/dev/null", fs::OFlags::RDONLY, fs::Mode::empty()).unwrap().as_fd()));
    }
}
