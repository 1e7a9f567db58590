//! Packs programs into an initramfs that the kernel can run without anything else.
//!
//! ```text
//! pack-initramfs OUTPUT PATH=FILE…
//! ```
//!
//! Each FILE becomes an executable at PATH; the directories on the way, `/run` and `/dev/console` are made. One of the
//! paths should be `init`.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use cpio::newc::{Builder, ModeFileType, trailer};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next() {
        Some(output) => pack(&output, &arguments.collect::<Vec<_>>()),
        None => Err("give the file to write, then PATH=FILE for each program".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pack-initramfs: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pack(output: &str, programs: &[String]) -> Result<(), Box<dyn Error>> {
    let programs: Vec<(&str, &str)> = programs
        .iter()
        .map(|program| program.split_once('=').ok_or_else(|| format!("{program} is not PATH=FILE")))
        .collect::<Result<_, _>>()?;
    let mut archive = Archive { file: BufWriter::new(File::create(output)?), entries: 0 };
    let paths = programs.iter().map(|(path, _)| Path::new(*path));
    let on_the_way = paths.flat_map(|path| path.ancestors().skip(1)).filter_map(Path::to_str);
    // In order, so that each comes behind the one that it is in.
    let directories: BTreeSet<&str> =
        on_the_way.chain(["dev", "run"]).filter(|path| !path.is_empty()).collect();
    for directory in directories {
        archive.add(Builder::new(directory).mode(0o755).set_mode_file_type(ModeFileType::Directory), &[])?;
    }
    // Where the kernel opens the standard descriptors of init.
    let console = Builder::new("dev/console").mode(0o600).rdev_major(5).rdev_minor(1);
    archive.add(console.set_mode_file_type(ModeFileType::Char), &[])?;
    for (path, file) in programs {
        let bytes = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        archive.add(Builder::new(path).mode(0o755).set_mode_file_type(ModeFileType::Regular), &bytes)?;
    }
    trailer(archive.file)?.flush()?;
    Ok(())
}

struct Archive {
    file: BufWriter<File>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, entry: Builder, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
        self.entries += 1;
        let mut entry = entry.ino(self.entries).nlink(1).write(&mut self.file, u32::try_from(bytes.len())?);
        entry.write_all(bytes)?;
        entry.finish()?;
        Ok(())
    }
}
