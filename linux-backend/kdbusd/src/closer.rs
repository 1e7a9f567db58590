//! Descriptors that clients had a hand in, and the threads that close them.
//!
//! The last close of a file may wait for as long as whoever made the file likes: a network socket lingers, a file
//! system in user space is asked first, and a Unix socket closes whatever lies unread in its queue. So the loop
//! closes only what cannot wait, and hands everything else to threads that have nothing else to do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};

use kdbus_linux::local::socket::Descriptors;
use kdbus_linux::rt;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, StatxFlags};

/// Descriptors that can wait to be closed; a process that may open more leaks them beyond that.
const WAITING: usize = 1 << 14;
/// Threads that may be held up before the others' descriptors wait behind them.
const THREADS: usize = 64;
/// Bytes of a thread's stack: there is a loop on it and a system call.
const STACK: usize = 64 << 10;
/// Blocks of 512 bytes that a memory file may have to be freed by the loop itself.
const SMALL: u64 = (4 << 20) / 512;

static CLOSER: OnceLock<Closer> = OnceLock::new();

struct Closer {
    queue: SyncSender<OwnedFd>,
    waiting: Mutex<Receiver<OwnedFd>>,
    threads: AtomicUsize,
    idle: AtomicUsize,
}

/// Starts the threads of this process, once. What is not started closes descriptors in place.
pub(crate) fn start() -> std::io::Result<()> {
    let closer = CLOSER.get_or_init(|| {
        let (queue, waiting) = sync_channel(WAITING);
        let (threads, idle) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Closer { queue, waiting: Mutex::new(waiting), threads, idle }
    });
    if closer.threads.load(Ordering::Relaxed) == 0 { closer.spawn() } else { Ok(()) }
}

/// Closes a descriptor without waiting for anybody. At most two system calls and a wake-up.
pub(crate) fn close(file: OwnedFd) {
    if closes_at_once(file.as_fd()) {
        return;
    }
    let Some(closer) = CLOSER.get() else {
        return;
    };
    if let Err(unsent) = closer.queue.try_send(file) {
        // Better lost than waited for. It takes more descriptors than fit here that are being held up.
        let (std::sync::mpsc::TrySendError::Full(file) | std::sync::mpsc::TrySendError::Disconnected(file)) =
            unsent;
        std::mem::forget(file);
    }
}

impl Closer {
    fn spawn(&'static self) -> std::io::Result<()> {
        self.threads.fetch_add(1, Ordering::Relaxed);
        self.idle.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("kdbusd-close".into()).stack_size(STACK);
        let spawned = thread.spawn(|| self.run());
        if spawned.is_err() {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            self.idle.fetch_sub(1, Ordering::Relaxed);
        }
        spawned.map(|_| ())
    }

    fn run(&'static self) {
        // The loop's class is inherited, and closing is not urgent. Going down is always permitted.
        let _ = rt::schedule(rt::Class::Other, 0);
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(file) = next else {
                return;
            };
            let last = self.idle.fetch_sub(1, Ordering::Relaxed) == 1;
            if last && self.threads.load(Ordering::Relaxed) < THREADS {
                // Somebody to go on while this one is held up; without one, the others wait.
                let _ = self.spawn();
            }
            drop(file);
            self.idle.fetch_add(1, Ordering::Relaxed);
        }
    }
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

/// The type of a file. Unlike `fstat`, it does not ask a file system that is another process.
pub(crate) fn file_type(file: BorrowedFd<'_>) -> Option<FileType> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = fs::statx(file, c"", flags, StatxFlags::TYPE).ok()?;
    Some(FileType::from_raw_mode(stat.stx_mode.into()))
}

/// Descriptors of a packet. Dropping them does not wait.
#[derive(Debug, Default)]
pub(crate) struct Batch(pub(crate) Descriptors);

impl Drop for Batch {
    fn drop(&mut self) {
        while let Some(file) = self.0.pop() {
            close(file);
        }
    }
}
