//! What stands in for sound cards in a program that was built without.

use std::fmt;

use crate::block::Block;
use crate::played::Played;

/// A card, of which there is none.
#[derive(Clone, Copy, Debug)]
pub enum SoundCard {}

impl SoundCard {
    /// Opens none.
    ///
    /// # Errors
    ///
    /// Always, with what to do.
    pub const fn open(_name: &str) -> Result<Self, SoundError> {
        Err(SoundError)
    }

    /// Knows none.
    ///
    /// # Errors
    ///
    /// Always, with what to do.
    pub const fn names() -> Result<Vec<(String, String)>, SoundError> {
        Err(SoundError)
    }

    /// Is never called, for there is no card.
    pub const fn play(&mut self, _block: &Block) {
        match *self {}
    }

    /// Is never called, for there is no card.
    pub const fn finish(self) -> Played {
        match self {}
    }
}

/// This program was built without sound cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoundError;

impl fmt::Display for SoundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this program was built without sound cards; to have them, install libasound2-dev and pkg-config and build with\n    \
             cargo build --release -p kdbus-examples --features sound-card --bin audio-pipeline",
        )
    }
}

impl std::error::Error for SoundError {}
