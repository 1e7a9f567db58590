//! The floor: what two processes can do with shared memory and nothing else, asleep on a futex or a pipe, or looking.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use rustix::event::epoll;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::thread::futex;

use crate::case::{Case, Kind, System};
use crate::control::AREA;
use crate::end::Packets;
use crate::shared::{PAGE, Shared};

/// Messages that a ring holds at most.
const SLOTS_MAX: usize = 256;
/// Bytes that it may take.
const RING_BYTES: usize = 8 << 20;

/// One end of two rings, one each way.
pub struct Rings {
    from: Ring,
    to: Ring,
    waits: Waits,
}

/// How an end waits for the other one, and wakes it.
enum Waits {
    /// It looks again.
    Spinning,
    /// On the word that says so.
    Futex,
    /// In an edge-triggered set, for a byte in a pipe.
    Pipe {
        set: OwnedFd,
        /// Kept open. Nobody reads it before it is full: each write is an event of its own.
        _own: OwnedFd,
        theirs: OwnedFd,
    },
}

/// A ring with one writer and one reader.
struct Ring {
    shared: Rc<Shared>,
    at: usize,
    slots: usize,
    bytes: usize,
    /// What this end has written or read.
    mine: u32,
    /// What is known of the other end's count, so that its cache line is left alone while that suffices.
    theirs: u32,
}

/// Bytes that the area of shared memory has to have for a case.
#[must_use]
pub const fn area(case: &Case) -> usize {
    2 * ring_bytes(case.bytes)
}

const fn slots(bytes: usize) -> usize {
    let fit = RING_BYTES / bytes;
    // A power of two, because counts wrap around.
    let most = if fit < SLOTS_MAX { fit } else { SLOTS_MAX };
    if most < 2 { 2 } else { 1 << most.ilog2() }
}

const fn ring_bytes(bytes: usize) -> usize {
    PAGE + (slots(bytes) * stride(bytes)).next_multiple_of(PAGE)
}

const fn stride(bytes: usize) -> usize {
    bytes.next_multiple_of(64)
}

impl Rings {
    /// The client's end, or the server's.
    ///
    /// # Errors
    ///
    /// If there are no pipes.
    pub fn new(shared: &Rc<Shared>, case: &Case, dir: &Path, is_client: bool) -> io::Result<Self> {
        let ring = |at| Ring {
            shared: shared.clone(),
            at,
            slots: slots(case.bytes),
            bytes: case.bytes,
            mine: 0,
            theirs: 0,
        };
        let (there, back) = (ring(AREA), ring(AREA + ring_bytes(case.bytes)));
        let (to, from) = if is_client { (there, back) } else { (back, there) };
        let waits = match case.system {
            System::ShmPipe => Waits::in_pipes(dir, is_client)?,
            _ if case.spins() => Waits::Spinning,
            _ => Waits::Futex,
        };
        Ok(Self { from, to, waits })
    }
}

impl Waits {
    /// Pipes with names in `dir`; whoever comes first makes them.
    fn in_pipes(dir: &Path, is_client: bool) -> io::Result<Self> {
        let open = |name| {
            let path = dir.join(name);
            match rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(io::Error::from(error)),
            }
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            Ok(rustix::fs::open(&path, flags, Mode::empty())?)
        };
        let (client, server) = (open("client.bell")?, open("server.bell")?);
        let (own, theirs) = if is_client { (client, server) } else { (server, client) };
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&set, &own, epoll::EventData::new_u64(0), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Self::Pipe { set, _own: own, theirs })
    }

    const fn spins(&self) -> bool {
        matches!(self, Self::Spinning)
    }

    /// Sleeps on `word` while `is_idle` holds.
    fn sleep(&self, word: &AtomicU32, is_idle: impl Fn() -> bool) {
        word.store(1, SeqCst);
        if is_idle() {
            // Woken, or something came in between: the caller looks again.
            match self {
                Self::Spinning => {}
                Self::Futex => {
                    let _ = futex::wait(word, futex::Flags::empty(), 1, None);
                }
                Self::Pipe { set, .. } => {
                    let mut events = [const { std::mem::MaybeUninit::uninit() }; 4];
                    let _ = epoll::wait(set, &mut events[..], None);
                }
            }
        }
        word.store(0, Relaxed);
    }

    fn wake(&self, word: &AtomicU32) {
        if word.load(SeqCst) == 0 {
            return;
        }
        word.store(0, Relaxed);
        match self {
            Self::Spinning => {}
            Self::Futex => {
                let _ = futex::wake(word, futex::Flags::empty(), 1);
            }
            Self::Pipe { theirs, .. } => {
                if rustix::io::write(theirs, &[1]) == Err(rustix::io::Errno::AGAIN) {
                    // Full of bytes that nobody reads: each end has both ends of it.
                    let _ = rustix::io::read(theirs, &mut [0; 1 << 16]);
                    let _ = rustix::io::write(theirs, &[1]);
                }
            }
        }
    }
}

impl Packets for Rings {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.push(bytes, &self.waits);
        Ok(())
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(self.from.pop(buffer, &self.waits))
    }
}

impl Ring {
    fn written(&self) -> &AtomicU32 {
        self.shared.word(self.at)
    }

    fn read(&self) -> &AtomicU32 {
        self.shared.word(self.at + 128)
    }

    fn reader_sleeps(&self) -> &AtomicU32 {
        self.shared.word(self.at + 256)
    }

    fn writer_sleeps(&self) -> &AtomicU32 {
        self.shared.word(self.at + 384)
    }

    fn slot(&self, count: u32) -> usize {
        self.at + PAGE + (count as usize & (self.slots - 1)) * stride(self.bytes)
    }

    fn push(&mut self, bytes: &[u8], waits: &Waits) {
        while self.mine.wrapping_sub(self.theirs) as usize >= self.slots {
            self.theirs = self.read().load(Acquire);
            if self.mine.wrapping_sub(self.theirs) as usize >= self.slots {
                if waits.spins() {
                    std::hint::spin_loop();
                } else {
                    let full = self.theirs;
                    waits.sleep(self.writer_sleeps(), || self.read().load(SeqCst) == full);
                }
            }
        }
        self.shared.write(self.slot(self.mine), bytes);
        self.mine = self.mine.wrapping_add(1);
        if waits.spins() {
            self.written().store(self.mine, Release);
        } else {
            self.written().store(self.mine, SeqCst);
            waits.wake(self.reader_sleeps());
        }
    }

    fn pop(&mut self, buffer: &mut [u8], waits: &Waits) -> Option<usize> {
        while self.mine == self.theirs {
            self.theirs = self.written().load(Acquire);
            if self.mine == self.theirs {
                if waits.spins() {
                    std::hint::spin_loop();
                    return None;
                }
                let empty = self.theirs;
                waits.sleep(self.reader_sleeps(), || self.written().load(SeqCst) == empty);
            }
        }
        let buffer = buffer.get_mut(..self.bytes)?;
        self.shared.read(self.slot(self.mine), buffer);
        self.mine = self.mine.wrapping_add(1);
        self.read().store(self.mine, if waits.spins() { Release } else { SeqCst });
        // A writer that waits is woken when half of the ring is free, not for each slot.
        if !waits.spins() && self.theirs.wrapping_sub(self.mine) as usize <= self.slots / 2 {
            waits.wake(self.writer_sleeps());
        }
        Some(self.bytes)
    }
}

/// One buffer that a sender writes and all receivers read, woken with one call.
pub struct Board {
    shared: Rc<Shared>,
    seen: u32,
}

impl Board {
    /// An end of it.
    #[must_use]
    pub const fn new(shared: Rc<Shared>) -> Self {
        Self { shared, seen: 0 }
    }
}

impl Packets for Board {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // All have read what was there before: the sender has waited for that.
        self.shared.write(AREA + PAGE, bytes);
        self.shared.word(AREA).fetch_add(1, Release);
        futex::wake(self.shared.word(AREA), futex::Flags::empty(), i32::MAX as u32)?;
        Ok(())
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let word = self.shared.word(AREA);
        while word.load(Acquire) == self.seen {
            // Woken, or something came in between: look again.
            let _ = futex::wait(word, futex::Flags::empty(), self.seen, None);
        }
        self.seen = self.seen.wrapping_add(1);
        self.shared.read(AREA + PAGE, buffer);
        Ok(Some(buffer.len()))
    }
}

/// The end of shared memory for a case.
///
/// # Errors
///
/// If it takes pipes, and there are none.
pub fn end(shared: &Rc<Shared>, case: &Case, dir: &Path, is_client: bool) -> io::Result<Box<dyn Packets>> {
    Ok(match case.kind {
        Kind::Broadcast => Box::new(Board::new(shared.clone())),
        Kind::Call | Kind::CallSpin | Kind::Stream => Box::new(Rings::new(shared, case, dir, is_client)?),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::case::Place;

    #[test]
    fn a_stream_longer_than_the_ring_comes_through_in_order() {
        for system in [System::ShmFutex, System::ShmPipe, System::ShmSpin] {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            let case = Case { system, kind: Kind::Stream, bytes: 64, place: Place::TwoCpus };
            let shared = Rc::new(Shared::create(AREA + area(&case)).unwrap());
            let file = shared.as_fd();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let shared = Rc::new(Shared::open(file).unwrap());
                    let mut end = Rings::new(&shared, &case, dir, true).unwrap();
                    for count in 0..5_000_u64 {
                        let mut bytes = [0; 64];
                        bytes[..8].copy_from_slice(&count.to_ne_bytes());
                        end.send(&bytes).unwrap();
                    }
                });
                let mut end = Rings::new(&shared, &case, dir, false).unwrap();
                let mut buffer = [0; 64];
                for count in 0..5_000_u64 {
                    while end.recv(&mut buffer).unwrap().is_none() {
                        std::thread::yield_now();
                    }
                    assert_eq!(buffer[..8], count.to_ne_bytes());
                }
            });
        }
    }
}
