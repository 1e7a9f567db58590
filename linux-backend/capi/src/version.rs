//! Which library this is.
#![allow(unsafe_code, reason = "exports names; there is no unsafe block")]

use core::ffi::c_char;

/// First number of the library's version.
pub const KDBUS_RT_VERSION_MAJOR: u32 = 0;
/// Second number of the library's version.
pub const KDBUS_RT_VERSION_MINOR: u32 = 1;
/// Third number of the library's version.
pub const KDBUS_RT_VERSION_PATCH: u32 = 0;
/// Version of the binary interface. Programs that were compiled against one number run with every library
/// of that number; it is the number in the library's soname.
pub const KDBUS_RT_ABI_VERSION: u32 = 1;

/// The version of the library that is there at run time, as text: "0.1.0". Never NULL, never freed.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_version() -> *const c_char {
    const TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    TEXT.as_ptr().cast()
}

/// The binary interface of the library that is there at run time: KDBUS_RT_ABI_VERSION when it was built.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_abi_version() -> u32 {
    KDBUS_RT_ABI_VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_package() {
        let numbers = format!("{KDBUS_RT_VERSION_MAJOR}.{KDBUS_RT_VERSION_MINOR}.{KDBUS_RT_VERSION_PATCH}");
        assert_eq!(numbers, env!("CARGO_PKG_VERSION"));
    }
}
