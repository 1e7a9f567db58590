//! What came of the blocks that a sound card was given.

/// What a card did, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Played {
    /// Frames that the card took.
    pub frames: u64,
    /// Frames that were not there when the card wanted them.
    pub missing: u64,
    /// Frames for which there was no room any more.
    pub dropped: u64,
    /// Whether the card failed on the way.
    pub is_broken: bool,
}
