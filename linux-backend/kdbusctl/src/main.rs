//! Looks at and talks to a kdbus from the command line.
fn main() {}
