//! Gives the shared library the name that programs ask for at run time: it changes with the ABI.

fn main() {
    // The same number as `KDBUS_RT_ABI_VERSION`; a test compares them.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkdbus_rt.so.1");
    println!("cargo:rerun-if-changed=build.rs");
}
