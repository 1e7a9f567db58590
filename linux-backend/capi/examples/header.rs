//! Writes `include/kdbus_rt.h` anew: `cargo run -p kdbus-capi --example header`.

#[path = "../tests/common/header.rs"]
mod header;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    std::fs::write(header::PATH, header::generate()?)?;
    println!("wrote {}", header::PATH);
    Ok(())
}
