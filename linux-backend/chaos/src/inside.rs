//! Points inside the library, of which a client knows nothing until it stops there.
//!
//! What the library calls there is a plain function, so all that it needs lies in statics of the process.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use kdbus_linux::local::point::{self, Point as Place};
use rustix::process::{Signal, getpid, kill_process};
use zerocopy::IntoBytes;

use crate::point::Point;
use crate::record::{Kind, Record, now};

/// Code of the point at which the process stops; this for none.
const NONE: u32 = u32::MAX;

static PLAN: AtomicU32 = AtomicU32::new(NONE);
/// How often the process passes by before.
static PASSES: AtomicU32 = AtomicU32::new(0);
/// Whether it may stop now.
static LIVE: AtomicBool = AtomicBool::new(false);
/// Where it writes down that it stops.
static LOG: Mutex<Option<File>> = Mutex::new(None);

/// Has the process stop once it has passed by `point` this often, while it is [live](set_live).
pub(crate) fn plan(point: Point, passes: u32) {
    point::set_hook(pass);
    PASSES.store(passes, Ordering::Relaxed);
    PLAN.store(point.code(), Ordering::Relaxed);
}

/// Has it stop nowhere.
pub(crate) fn forget_plan() {
    PLAN.store(NONE, Ordering::Relaxed);
}

/// Says whether it may stop from now on.
pub(crate) fn set_live(live: bool) {
    LIVE.store(live, Ordering::Relaxed);
}

/// Says where the process writes its history.
pub(crate) fn set_log(file: File) {
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
}

fn pass(place: Place) {
    let plan = PLAN.load(Ordering::Relaxed);
    let is_planned = Point::from_code(plan).is_some_and(|point| point.place() == Some(place));
    if !is_planned || !LIVE.load(Ordering::Relaxed) {
        return;
    }
    let left = PASSES.load(Ordering::Relaxed);
    if left > 0 {
        return PASSES.store(left - 1, Ordering::Relaxed);
    }
    forget_plan();
    // Nobody reads what a client could not write: its history ends here, or it is found hanging.
    let record = Record { kind: Kind::At.code(), detail: plan, at: now(), ..Record::default() };
    if let Some(file) = &mut *LOG.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = file.write_all(record.as_bytes());
    }
    let mut out = io::stdout().lock();
    let _ = out.write_all(format!("at {plan}\n").as_bytes());
    let _ = out.flush();
    drop(out);
    let _ = kill_process(getpid(), Signal::STOP);
}
