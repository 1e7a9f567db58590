//! The kdbus message bus in user space, for any stock Linux kernel.
fn main() {}
