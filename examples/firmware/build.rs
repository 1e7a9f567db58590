//! How the program is linked: by itself, with nothing of the C library, and with defmt's table of log strings.

fn main() {
    let script = format!("{}/firmware.x", std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed={script}");
    let arguments = [
        "-nostartfiles",
        "-nostdlib",
        // Nobody but the kernel loads it; and the indices of log strings are absolute symbols.
        "-static",
        "-no-pie",
        "-Wl,--build-id=none,--gc-sections,--no-eh-frame-hdr",
        // Segments need not start on a page that a larger page size would have.
        "-Wl,-z,max-page-size=4096,-z,norelro",
        &format!("-Wl,-T,{script}"),
    ];
    for argument in arguments {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
