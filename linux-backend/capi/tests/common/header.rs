//! The header, out of the sources.

use std::path::Path;

/// Where the committed header is.
pub(crate) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include/kdbus_rt.h");

/// The header as it has to be.
pub(crate) fn generate() -> Result<String, Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml"))?;
    // The files in the order in which a reader wants them; sources alone, so no other crate is looked for.
    let files =
        ["version", "error", "bus", "names", "matches", "send", "recv", "message", "metadata", "held"];
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in files {
        builder = builder.with_src(folder.join("src").join(file).with_extension("rs"));
    }
    let mut header = Vec::new();
    builder.generate()?.write(&mut header);
    Ok(String::from_utf8(header)?)
}
