//! The suite's world over the seam of the kernel transport: raw ioctls, for a loop-back and a module alike.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kdbus_conformance::{
    Apart, BadAddress, Body, CallApart, Ended, Node, Payload, Poll, Skip, Transported, Who, World,
};
use kdbus_core::Instant;
use kdbus_core::abi::{CmdHello, Command, Errno};
use kdbus_linux::kernel::{KernelTransport, Ready, Seam};
use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use zerocopy::FromBytes;

use crate::argument::{Buffer, MSG_ADDRESS, Outgoing, put};
use crate::call::{Call, Progress};
use crate::danger;
use crate::descriptors::{self, errno};
use crate::platform::{self, Platform};
use crate::signal;

/// How long a call that has to end may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long a call is watched before it is said to wait.
const GRACE: Duration = Duration::from_millis(5);

/// A user of a case, in the world that named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User(usize);

/// The right to be the one case that runs: numbers of descriptors are those of the whole process.
#[derive(Debug)]
struct Turn;

static TAKEN: Mutex<bool> = Mutex::new(false);
static GIVEN_BACK: Condvar = Condvar::new();

impl Turn {
    fn take() -> Self {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = GIVEN_BACK.wait_while(taken, |taken| *taken);
        *waited.unwrap_or_else(PoisonError::into_inner) = true;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
        GIVEN_BACK.notify_one();
    }
}

/// Processes of several users on one domain behind the seam.
///
/// One exists at a time: [`new`](Self::new) waits until another thread has dropped its own.
#[derive(Debug)]
pub struct SeamWorld<P: Platform> {
    platform: P,
    users: Vec<Who>,
    /// Place of each numbered user, once there is one.
    numbered: Vec<User>,
    _turn: Turn,
}

impl<P: Platform> SeamWorld<P> {
    /// A world on the platform that `make` makes, once no other world has descriptors of this process.
    pub fn new(make: impl FnOnce() -> P) -> Self {
        let turn = Turn::take();
        let platform = make();
        let owner = platform::user(&platform, 0);
        Self { platform, users: vec![owner], numbered: Vec::new(), _turn: turn }
    }

    fn add(&mut self, who: Who) -> User {
        self.users.push(who);
        User(self.users.len() - 1)
    }

    fn open_path(&mut self, user: User, path: &str) -> Result<Handle<P>, Errno> {
        let platform = self.platform.clone();
        let fd = self.platform.run(&self.users[user.0], || platform.seam().open(path))?;
        Ok(Handle { fd: Some(fd), pool: OnceLock::new(), user, platform })
    }

    /// Holds back what would bring the kernel down, whatever case it is in.
    fn check(&self, request: u32, arg: &[u8], message: &[u8]) {
        if self.platform.is_module()
            && let Some(danger) = danger::of(request, arg, message)
        {
            panic!("{danger}");
        }
    }

    fn raw(&self, handle: &Handle<P>, request: u32, arg: &mut Buffer) -> Result<(), Errno> {
        let (platform, node) = (&self.platform, handle.fd());
        platform.run(&self.users[handle.user.0], || arg.run(platform.seam(), node.as_fd(), request))
    }
}

/// An open node.
#[derive(Debug)]
pub struct Handle<P: Platform> {
    fd: Option<OwnedFd>,
    pool: OnceLock<Mapping>,
    user: User,
    platform: P,
}

impl<P: Platform> Handle<P> {
    fn fd(&self) -> &OwnedFd {
        self.fd.as_ref().expect("open until dropped")
    }
}

impl<P: Platform> Drop for Handle<P> {
    fn drop(&mut self) {
        self.pool.take();
        if let Some(fd) = self.fd.take() {
            self.platform.seam().close(fd);
        }
    }
}

/// A pool as the client has it mapped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pages belong to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; through a shared reference they are only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn read(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        offset.checked_add(len).filter(|end| *end <= self.len as u64)?;
        // Byte by byte and not by a system call: that one is left out of small kernels.
        let byte = |at: u64| {
            // SAFETY: it lies in the mapping, whose file never shrinks. The bus may write beside what it published,
            // and then this reads the one byte or the other.
            unsafe { self.start.add(at as usize).read_volatile() }
        };
        Some((offset..offset + len).map(byte).collect())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the pages are this value's own, and nothing of them is borrowed: they are read by copies.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl<P: Platform> World for SeamWorld<P> {
    type User = User;
    type Handle = Handle<P>;
    type Call = Call;

    fn owner(&mut self) -> User {
        User(0)
    }

    fn user(&mut self, number: usize) -> Result<User, Skip> {
        if !self.platform.has_users() {
            return Err(Skip::because("needs root, to be several users"));
        }
        while self.numbered.len() < number {
            let who = platform::user(&self.platform, self.numbered.len() + 1);
            let user = self.add(who);
            self.numbered.push(user);
        }
        Ok(self.numbered[number - 1])
    }

    fn sibling(&mut self, of: User) -> Result<User, Skip> {
        let who = Who { pid: self.platform.new_pid(), ..self.users[of.0].clone() };
        Ok(self.add(who))
    }

    fn apart(&mut self, of: User) -> Result<User, Skip> {
        if !self.platform.has_namespaces() {
            return Err(Skip::because("needs processes in namespaces of their own"));
        }
        let who = Who { pid: self.platform.new_pid(), apart: true, ..self.users[of.0].clone() };
        Ok(self.add(who))
    }

    fn who(&mut self, user: User) -> Who {
        self.users[user.0].clone()
    }

    fn become_user(&mut self, user: User, number: usize) -> Result<(), Skip> {
        let other = self.user(number)?;
        let pid = self.users[user.0].pid;
        self.users[user.0] = Who { pid, ..self.users[other.0].clone() };
        Ok(())
    }

    fn open_control(&mut self, user: User) -> Result<Handle<P>, Errno> {
        let path = format!("{}/control", self.platform.root());
        self.open_path(user, &path)
    }

    fn open(&mut self, user: User, bus: &str, endpoint: &str) -> Result<Handle<P>, Errno> {
        let path = format!("{}/{bus}/{endpoint}", self.platform.root());
        self.open_path(user, &path)
    }

    fn close(&mut self, handle: Handle<P>) {
        drop(handle);
    }

    fn node(&mut self, bus: &str, endpoint: Option<&str>) -> Option<Node> {
        self.platform.node(bus, endpoint)
    }

    fn ioctl(&mut self, handle: &Handle<P>, request: u32, arg: &mut [u8]) -> Result<(), Errno> {
        self.check(request, arg, &[]);
        let mut buffer = Buffer::new(arg);
        let result = self.raw(handle, request, &mut buffer);
        arg.copy_from_slice(buffer.bytes_mut());
        // A command that only asks leaves no connection, and no pool to map.
        if request == Command::Hello.request()
            && result.is_ok()
            && let Ok((hello, _)) = CmdHello::read_from_prefix(arg)
            && let Ok(start) = self.platform.seam().mmap(handle.fd().as_fd(), hello.pool_size as usize, false)
        {
            let _ = handle.pool.set(Mapping { start, len: hello.pool_size as usize });
        }
        result
    }

    fn ioctl_at(
        &mut self,
        handle: &Handle<P>,
        request: u32,
        arg: &[u8],
        at: BadAddress,
    ) -> Result<Result<(), Errno>, Skip> {
        let shifted = [&[0; 4][..], arg].concat();
        let mut buffer = Buffer::new(&shifted);
        let address = match at {
            BadAddress::Null => 0,
            BadAddress::Unaligned => buffer.address() as usize + 4,
        };
        let platform = &self.platform;
        let node = handle.fd();
        Ok(platform.run(&self.users[handle.user.0], || {
            // SAFETY: nothing is mapped at address 0, and behind the other there is room for any command.
            unsafe {
                platform.seam().ioctl(node.as_fd(), request, std::ptr::with_exposed_provenance_mut(address))
            }
        }))
    }

    fn send(&mut self, handle: &Handle<P>, command: &mut [u8], body: Option<Body<'_>>) -> Result<(), Errno> {
        let request = Command::Send.request();
        let Some(body) = body else {
            put(command, MSG_ADDRESS, 0);
            return self.ioctl(handle, request, command);
        };
        self.check(request, command, body.message);
        let mut outgoing = Outgoing::new(command, body.message, body.payload);
        let result = self.raw(handle, request, &mut outgoing.command);
        command.copy_from_slice(outgoing.command.bytes_mut());
        body.message.copy_from_slice(outgoing.message());
        result
    }

    fn start(
        &mut self,
        handle: &Handle<P>,
        command: Vec<u8>,
        message: Vec<u8>,
        payload: Vec<Payload>,
    ) -> Call {
        self.check(Command::Send.request(), &command, &message);
        let progress = Arc::new(Progress::default());
        let (platform, who) = (self.platform.clone(), self.users[handle.user.0].clone());
        // A descriptor of its own: the case may close the handle while the call waits.
        let node = descriptors::duplicate(handle.fd().as_raw_fd()).expect("a descriptor is left");
        let told = Arc::clone(&progress);
        let thread = std::thread::spawn(move || {
            platform.enter(&who);
            let mut outgoing = Outgoing::new(&command, &message, &payload);
            told.update(|state| state.issued = true);
            let result = outgoing.command.run(platform.seam(), node.as_fd(), Command::Send.request());
            platform.seam().close(node);
            let command = outgoing.command.bytes_mut().to_vec();
            told.update(|state| state.ended = Some(Ended { result, command }));
        });
        progress.wait(PATIENCE, |state| state.issued);
        // Nothing tells when the command sleeps; cases wait until its message has come.
        progress.wait(GRACE, |state| state.ended.is_some());
        Call { thread, progress }
    }

    fn finish(&mut self, call: Call) -> Ended {
        assert!(call.progress.wait(PATIENCE, |state| state.ended.is_some()), "the call does not end");
        call.thread.join().expect("a thread that has ended its call panics no more");
        let ended = call.progress.state.lock().unwrap_or_else(PoisonError::into_inner).ended.take();
        ended.expect("it has ended")
    }

    fn is_waiting(&mut self, call: &Call) -> bool {
        !call.progress.has_ended()
    }

    fn interrupt(&mut self, call: &mut Call, restart: bool) -> Result<(), Skip> {
        if restart {
            signal::interrupt(&call.thread, true);
            call.progress.wait(GRACE, |state| state.ended.is_some());
            return Ok(());
        }
        // A signal that comes before the command or after it does nothing.
        let patient = std::time::Instant::now() + PATIENCE;
        while !call.progress.has_ended() && std::time::Instant::now() < patient {
            signal::interrupt(&call.thread, false);
            call.progress.wait(GRACE, |state| state.ended.is_some());
        }
        Ok(())
    }

    fn poll(&mut self, handle: &Handle<P>) -> Poll {
        self.wait(handle, 0)
    }

    fn wait(&mut self, handle: &Handle<P>, until: u64) -> Poll {
        let until = Some(Instant::from_nanos(until));
        let ready = self.platform.seam().poll(handle.fd().as_fd(), until).expect("a node can be polled");
        Poll { readable: ready.readable, writable: ready.writable, hung_up: ready.hung_up }
    }

    fn pool(&mut self, handle: &Handle<P>, offset: u64, len: u64) -> Option<Vec<u8>> {
        handle.pool.get()?.read(offset, len)
    }

    fn map(&mut self, handle: &Handle<P>, len: u64, writable: bool) -> Result<Result<(), Errno>, Skip> {
        let mapped = self.platform.seam().mmap(handle.fd().as_fd(), len as usize, writable);
        Ok(mapped.map(|start| drop(Mapping { start, len: len as usize })))
    }

    fn make_mapping_writable(&mut self, handle: &Handle<P>) -> Result<Result<(), Errno>, Skip> {
        let len = rustix::param::page_size();
        let start = match self.platform.seam().mmap(handle.fd().as_fd(), len, false) {
            Ok(start) => start,
            Err(errno) => return Ok(Err(errno)),
        };
        let mapping = Mapping { start, len };
        let flags = rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE;
        // SAFETY: the pages are this function's own, and nothing of them is borrowed.
        let changed = unsafe { rustix::mm::mprotect(mapping.start.as_ptr().cast(), len, flags) };
        Ok(changed.map_err(errno))
    }

    fn now(&mut self) -> u64 {
        now()
    }

    fn sleep_until(&mut self, at: u64) {
        std::thread::sleep(Duration::from_nanos(at.saturating_sub(now())));
    }

    fn memfd(&mut self, _: User, content: &[u8], sealed: bool) -> i32 {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("case", flags).expect("a descriptor is left");
        assert_eq!(rustix::io::pwrite(&file, content, 0), Ok(content.len()));
        if sealed {
            let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&file, all).expect("nobody has it mapped");
        }
        file.into_raw_fd()
    }

    fn pipe(&mut self, _: User) -> (i32, i32) {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (reader, writer) = rustix::pipe::pipe_with(flags).expect("descriptors are left");
        (reader.into_raw_fd(), writer.into_raw_fd())
    }

    fn event(&mut self, _: User) -> i32 {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        rustix::event::eventfd(0, flags).expect("a descriptor is left").into_raw_fd()
    }

    fn regular_file(&mut self, user: User) -> i32 {
        // Memory without a name is a regular file too, and there wherever a kernel runs.
        self.memfd(user, b"", false)
    }

    fn unix_socket(&mut self, _: User) -> i32 {
        let made =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        made.expect("a descriptor is left").into_raw_fd()
    }

    fn path_only(&mut self, _: User) -> i32 {
        let opened = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        opened.expect("there is a root directory").into_raw_fd()
    }

    fn handle_fd(&mut self, handle: &Handle<P>) -> i32 {
        handle.fd().as_raw_fd()
    }

    fn read_fd(&mut self, _: User, fd: i32, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len];
        let count = descriptors::with(fd, |fd| match rustix::io::pread(fd, &mut bytes, 0) {
            Err(rustix::io::Errno::SPIPE) => rustix::io::read(fd, &mut bytes),
            other => other,
        })?;
        bytes.truncate(count);
        Ok(bytes)
    }

    fn write_fd(&mut self, _: User, fd: i32, bytes: &[u8]) -> Result<(), Errno> {
        descriptors::with(fd, |fd| rustix::io::write(fd, bytes).map(|_| ()))
    }

    fn close_fd(&mut self, _: User, fd: i32) -> Result<(), Errno> {
        descriptors::close(fd)
    }

    fn is_close_on_exec(&mut self, _: User, fd: i32) -> Result<bool, Errno> {
        descriptors::with(fd, |fd| {
            rustix::io::fcntl_getfd(fd).map(|flags| flags.contains(rustix::io::FdFlags::CLOEXEC))
        })
    }

    fn leave_spare_fds(&mut self, _: User, spare: usize) -> Result<(), Skip> {
        self.platform.leave_spare_fds(spare)
    }
}

/// The seam of a platform, with every system call made as one user.
#[derive(Clone, Debug)]
pub struct UserSeam<P: Platform> {
    platform: P,
    who: Who,
}

// SAFETY: each call is one of the platform's seam, made in a thread that is somebody else.
unsafe impl<P: Platform> Seam for UserSeam<P> {
    fn open(&self, path: &str) -> Result<OwnedFd, Errno> {
        self.platform.run(&self.who, || self.platform.seam().open(path))
    }

    unsafe fn ioctl(&self, node: BorrowedFd<'_>, request: u32, arg: *mut c_void) -> Result<(), Errno> {
        let address = arg.expose_provenance();
        self.platform.run(&self.who, || {
            // SAFETY: the caller's promise. It waits until the other thread is done with its argument.
            unsafe {
                self.platform.seam().ioctl(node, request, std::ptr::with_exposed_provenance_mut(address))
            }
        })
    }

    fn mmap(&self, node: BorrowedFd<'_>, len: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        self.platform.seam().mmap(node, len, writable)
    }

    fn poll(&self, node: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<Ready, Errno> {
        self.platform.seam().poll(node, deadline)
    }

    fn close(&self, node: OwnedFd) {
        self.platform.seam().close(node);
    }
}

impl<P: Platform> Transported for SeamWorld<P> {
    type Transport = KernelTransport<UserSeam<P>>;

    fn connect(&mut self, user: User, bus: &str, endpoint: &str) -> Result<Self::Transport, Errno> {
        let seam = UserSeam { platform: self.platform.clone(), who: self.users[user.0].clone() };
        KernelTransport::over(seam, &format!("{}/{bus}/{endpoint}", self.platform.root()))
    }

    fn borrow<'a>(&'a self, _: User, number: i32) -> Option<BorrowedFd<'a>>
    where
        Self::Transport: 'a,
    {
        descriptors::with(number, |fd| rustix::io::fcntl_getfd(fd).map(|_| ())).ok()?;
        // SAFETY: it is open, and stays so until the case closes it, for which it needs the world alone.
        Some(unsafe { BorrowedFd::borrow_raw(number) })
    }

    fn keep(&mut self, _: User, fd: OwnedFd) -> i32 {
        fd.into_raw_fd()
    }

    fn wait_apart(
        &mut self,
        user: User,
        transport: Self::Transport,
        call: CallApart,
    ) -> Result<Apart<Self::Transport>, Self::Transport> {
        let cancel = match call.cancel {
            None => None,
            Some(number) => match self.borrow(user, number).map(|fd| fd.try_clone_to_owned()) {
                Some(Ok(fd)) => Some(fd),
                _ => return Err(transport),
            },
        };
        Ok(std::thread::spawn(move || {
            let ended = call.make(&transport, cancel.as_ref().map(AsFd::as_fd));
            (transport, ended)
        }))
    }
}
