//! Points inside the library at which a test program stops or ends its own process.
//!
//! Without the feature `points` a pass does nothing, and the compiler leaves it out. With it, a program that has
//! [set a hook](set_hook) is called there; what shared memory and sockets hold at that moment is what a process leaves
//! that dies just there.

/// A place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "points"), allow(unreachable_pub))]
pub enum Point {
    /// Room in a lane is reserved and the head written, but no byte of the message.
    Reserved,
    /// A message is written into its lane and not committed.
    Written,
    /// A call has its word, and nothing of it is in a lane.
    CallBegun,
    /// The word of a call says that it is answered, and the reply is not committed.
    CallAnswered,
    /// A message is committed.
    Committed,
    /// A message is committed, and its receiver's bell, which has to be rung, is not.
    BeforeBell,
    /// A sender has said that it waits for room in a lane, and does not sleep yet.
    RoomAsked,
    /// A message was copied out of its lane and examined, and waits in the queue; its lane has not got its room back.
    Copied,
    /// A reply that nobody waits for was taken out of its lane, which has its room back.
    Ignored,
    /// A message is received, and its lane has not got its room back.
    Received,
    /// A call by lane was ended because it is dropped, and kdbusd does not know.
    CallDropped,
    /// A call by lane was ended because its time is over, and the caller is not told.
    CallExpired,
    /// An entry was taken out of kdbusd's queue, and not returned.
    Taken,
    /// A command was sent, and its answer not read.
    CommandSent,
    /// A lane was brought, and kdbusd not told that it is mapped.
    LaneBrought,
    /// A lane to somebody was given, and kdbusd not told that it is mapped.
    LaneGiven,
}

#[cfg(feature = "points")]
static HOOK: std::sync::OnceLock<fn(Point)> = std::sync::OnceLock::new();

/// Has `hook` called at each place, from now on and for good. False if there is one already.
#[cfg(feature = "points")]
pub fn set_hook(hook: fn(Point)) -> bool {
    HOOK.set(hook).is_ok()
}

#[cfg(test)]
type Hook = std::boxed::Box<dyn FnMut(Point)>;

#[cfg(test)]
std::thread_local! {
    static OWN: core::cell::RefCell<Option<Hook>> = const { core::cell::RefCell::new(None) };
}

/// Has `hook` called at each place that this thread passes by from now on.
#[cfg(test)]
pub(super) fn set_own_hook(hook: impl FnMut(Point) + 'static) {
    OWN.set(Some(std::boxed::Box::new(hook)));
}

/// Passes by a place.
#[inline(always)]
pub(super) fn pass(place: Point) {
    #[cfg(feature = "points")]
    if let Some(hook) = HOOK.get() {
        hook(place);
    }
    #[cfg(test)]
    OWN.with_borrow_mut(|hook| hook.iter_mut().for_each(|hook| hook(place)));
    #[cfg(not(feature = "points"))]
    let _ = place;
}
