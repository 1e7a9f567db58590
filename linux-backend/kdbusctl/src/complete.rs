//! `completions`: what a shell needs to complete this program's command line.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::Arguments;
use crate::failure::Failure;

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(crate) struct Complete {
    /// The shell
    shell: Shell,
}

impl Complete {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "kdbusctl", &mut script);
        crate::output::block(&String::from_utf8_lossy(&script))
    }
}
