//! Signals for threads that wait in a command.
#![allow(unsafe_code)]

use std::os::unix::thread::{JoinHandleExt, RawPthread};
use std::sync::Once;
use std::thread::JoinHandle;

extern "C" fn nothing(_: libc::c_int) {}

/// Sends a signal whose handler does nothing to a thread, with or without `SA_RESTART`.
pub(crate) fn interrupt<T>(thread: &JoinHandle<T>, restart: bool) {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        install(libc::SIGUSR1, libc::SA_RESTART);
        install(libc::SIGUSR2, 0);
    });
    let thread: RawPthread = thread.as_pthread_t();
    // SAFETY: the thread is not joined before its handle is gone, so the number is still its own.
    unsafe { libc::pthread_kill(thread, if restart { libc::SIGUSR1 } else { libc::SIGUSR2 }) };
}

fn install(signal: libc::c_int, flags: libc::c_int) {
    // SAFETY: all zeros are a valid value of this record of numbers and a handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = flags;
    // SAFETY: the handler does nothing, which is safe at any point of the program.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}
