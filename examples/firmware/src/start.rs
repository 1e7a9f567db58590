//! The entry point, the exit and the panic handler: what a C library or the standard library brings otherwise.
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};

// The kernel enters with the stack pointer at the number of arguments, and nothing to return to.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {enter}",
    "ud2",
    enter = sym enter,
);
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl {enter}",
    "brk #1",
    enter = sym enter,
);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the firmware example knows how x86_64 and aarch64 enter a program");

/// What the kernel laid on the stack of a new program.
pub(crate) struct Process {
    arguments: *const *const c_char,
    environment: *const *const c_char,
}

impl Process {
    /// The arguments, without the name of the program.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = &'static CStr> {
        // SAFETY: the kernel ends the arguments with a null pointer; see `enter`.
        unsafe { strings(self.arguments) }.skip(1)
    }

    /// The environment, each variable as `NAME=value`.
    pub(crate) fn environment(&self) -> impl Iterator<Item = &'static CStr> {
        // SAFETY: the kernel ends the environment with a null pointer; see `enter`.
        unsafe { strings(self.environment) }
    }
}

/// The strings of a list that a null pointer ends.
///
/// # Safety
///
/// The list and its strings are there, with their ends, and unchanged for as long as the process lives.
unsafe fn strings(list: *const *const c_char) -> impl Iterator<Item = &'static CStr> {
    (0..)
        // SAFETY: nothing before the null pointer was null, so the list goes on up to here.
        .map(move |index| unsafe { *list.add(index) })
        .take_while(|string| !string.is_null())
        // SAFETY: the caller says that each is a string with an end.
        .map(|string| unsafe { CStr::from_ptr(string) })
}

/// # Safety
///
/// `stack` is the stack pointer that the kernel started the process with.
unsafe extern "C" fn enter(stack: *const usize) -> ! {
    // SAFETY: there lie the number of arguments, the arguments, a null pointer, the environment and a null
    // pointer. Nothing here or in rustix changes them.
    let process = unsafe {
        let arguments = stack.add(1).cast();
        Process { arguments, environment: stack.add(*stack + 2).cast() }
    };
    // SAFETY: this is the environment of the start, and nothing else of rustix has been called.
    unsafe { rustix::param::init(process.environment.cast_mut().cast()) };
    exit(crate::run(&process));
}

/// Ends the process.
pub(crate) fn exit(status: u8) -> ! {
    // SAFETY: the call does not return and touches no memory.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("syscall", in("rax") 231, in("rdi") usize::from(status), options(noreturn, nostack));
        #[cfg(target_arch = "aarch64")]
        asm!("svc 0", in("x8") 94, in("x0") usize::from(status), options(noreturn, nostack));
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => defmt::error!("panic in {=str}, line {=u32}", at.file(), at.line()),
        None => defmt::error!("panic"),
    }
    exit(101)
}

/// The precompiled core names it where panics could unwind; here they end the process, and nobody calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
