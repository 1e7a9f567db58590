//! Running cases, each in a world of its own, and telling what came of it.

use std::any::Any;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use kdbus_conformance::{CaseInfo, NOT_EXPRESSED, OverTransport, Skip, Transported, cases, try_run};
use kdbus_conformance_cli::{LoopbackPlatform, ModulePlatform, SeamWorld};
use kdbusd::Running;
use kdbusd::config::{Arguments, Config};

use crate::local::{DaemonWorld, configuration};
use crate::report::{Case, Report, Verdict};
use crate::{Transport, sim};

/// Cases that are never run on a module, because they can bring its kernel down.
const NOT_ON_A_MODULE: &[(u16, &str)] = &[
    (180, "B2: an empty list of descriptors makes the module follow a null pointer"),
    (429, "B12: the module crashes when a match with a NEGOTIATE item is removed"),
];

/// Cases in which a module is known to do something else.
const KNOWN_OF_A_MODULE: &[(u16, &str)] = &[
    (157, "B8: zeros are marked by the byte before the payload"),
    (183, "B10: peeking installs descriptors"),
    (203, "B6: a pool without room keeps the charge"),
    (220, "B5: a callee's death is reported twice"),
    (231, "B5: a callee's death is reported besides"),
    (328, "B11: wildcards are plain names"),
    (329, "B11: wildcards are plain names"),
    (339, "B10: descriptors go to monitors that take none"),
    (402, "B6: a pool without room keeps the charge"),
    (404, "B13: who has no visible name is not listed at all"),
    (417, "O1: a late deadline holds up an early one"),
    (422, "B14: a reply to an interrupted call is lost"),
    (423, "O2: a reply to an interrupted call stays for good"),
    (473, "B14: what ends an interrupted call is lost, and the call is sent again"),
    (474, "B14: what ends an interrupted call is lost, and the call is sent again"),
];

/// The case that every bus passes: a message to oneself.
const PLAIN: u16 = 151;

/// What the cases are run over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) transport: Transport,
    pub(crate) root: Option<&'a str>,
    /// Through the transport that clients use.
    pub(crate) client: bool,
}

/// The cases with these numbers, or all of them, by number.
pub(crate) fn choose(numbers: &[u16]) -> Result<Vec<Case>, String> {
    let all = cases().iter().flat_map(|info| info.numbers.iter().map(move |number| (*number, info)));
    let mut all: Vec<Case> = all.map(|(number, info)| Case { number, info }).collect();
    all.sort_by_key(|case| case.number);
    if numbers.is_empty() {
        return Ok(all);
    }
    let known = |number: &u16| all.iter().any(|case| case.number == *number);
    if let Some(number) = numbers.iter().find(|number| !known(number)) {
        let reason = NOT_EXPRESSED.iter().find(|(other, _)| other == number).map(|(_, reason)| *reason);
        return Err(match reason {
            Some(reason) => format!("case {number} cannot be run: it {reason}"),
            None => format!("there is no case {number}; --list shows them all"),
        });
    }
    all.retain(|case| numbers.contains(&case.number));
    Ok(all)
}

/// Runs cases and reports each. Numbers that share a case get its one result.
pub(crate) fn all(chosen: &[Case], target: Target<'_>, report: &mut Report) {
    std::panic::set_hook(Box::new(|info| {
        let what = text(info.payload()).unwrap_or("panicked").to_owned();
        let place = info.location().map(|at| format!(" ({}:{})", file_name(at.file()), at.line()));
        let what = describe(&what) + &place.unwrap_or_default();
        let mut last = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        // The first one is the cause of those that follow from it.
        last.get_or_insert(what);
    }));
    let plain =
        cases().iter().find(|info| info.numbers.contains(&PLAIN)).map(|info| Case { number: PLAIN, info });
    let works = plain.is_some_and(|case| one(case, target, true) == Verdict::Passed);
    let mut done: Vec<(&str, &str, Verdict)> = Vec::new();
    for case in chosen {
        let (chapter, name) = (case.info.chapter, case.info.name);
        let before = done.iter().find(|(a, b, _)| (*a, *b) == (chapter, name)).map(|(.., verdict)| verdict);
        let verdict = before.cloned().unwrap_or_else(|| {
            let verdict = one(*case, target, works);
            done.push((chapter, name, verdict.clone()));
            verdict
        });
        report.case(case.number, &verdict);
    }
    for (number, reason) in NOT_EXPRESSED.iter().filter(|_| chosen.len() == everything()) {
        report.case(*number, &Verdict::Skipped((*reason).to_owned()));
    }
    let _ = std::panic::take_hook();
}

fn everything() -> usize {
    cases().iter().map(|info| info.numbers.len()).sum()
}

/// Where the bus does not even `work`, nothing is put down to a known defect.
fn one(case: Case, target: Target<'_>, works: bool) -> Verdict {
    let Target { transport, root, client } = target;
    let on_module = transport == Transport::Kernel;
    let listed = |list: &[(u16, &str)]| {
        let found = list.iter().find(|(number, _)| case.info.numbers.contains(number));
        found.filter(|_| on_module).map(|(_, reason)| (*reason).to_owned())
    };
    if let Some(reason) = listed(NOT_ON_A_MODULE) {
        return Verdict::Skipped(reason);
    }
    *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let ended = catch_unwind(AssertUnwindSafe(|| match transport {
        Transport::Sim => over(case, client, sim::SimWorld::new),
        Transport::Local => match root {
            Some(root) => over(case, client, |_| DaemonWorld::new(root.into(), ())),
            None => over(case, client, own_daemon),
        },
        Transport::Loopback => {
            over(case, client, |case| SeamWorld::new(|| LoopbackPlatform::new(&case.needs())))
        }
        Transport::Kernel => {
            let root = root.unwrap_or(kdbus_linux::kernel::ROOT);
            over(case, client, |_| SeamWorld::new(|| ModulePlatform::new(root)))
        }
    }));
    match ended {
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(Skip(reason))) => Verdict::Skipped(reason),
        Err(_) => {
            let why = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
            let why = why.unwrap_or_else(|| "panicked".to_owned());
            match listed(KNOWN_OF_A_MODULE).filter(|_| works) {
                Some(known) => Verdict::Known(format!("{known}; {why}")),
                None => Verdict::Failed(why),
            }
        }
    }
}

fn over<W: Transported>(case: Case, client: bool, make: impl FnOnce(&CaseInfo) -> W) -> Result<(), Skip> {
    let (chapter, name) = (case.info.chapter, case.info.name);
    if client {
        try_run(chapter, name, |case| OverTransport(make(case)))
    } else {
        try_run(chapter, name, make)
    }
}

/// A kdbusd in this process, with a tree in a directory of its own; the daemon ends before the directory goes.
fn own_daemon(case: &CaseInfo) -> DaemonWorld<(Running, tempfile::TempDir)> {
    let directory = tempfile::tempdir().expect("a directory for the tree");
    // Other users have to get at the nodes.
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("it is ours");
    let file = directory.path().join("kdbusd.toml");
    std::fs::write(&file, configuration(case.needs())).expect("it is ours");
    let root = directory.path().join("tree");
    let arguments = Arguments { config: Some(file), root: Some(root.clone()), ..Arguments::default() };
    let uid = rustix::process::geteuid().as_raw();
    let config = Config::load(&arguments, uid, None).expect("the configuration is good");
    let running = Running::start(&config).unwrap_or_else(|error| panic!("kdbusd does not start: {error}"));
    DaemonWorld::new(root, (running, directory))
}

/// The words of a panic.
fn text(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// What a failed assertion says, in one line: what was expected and what came.
fn describe(message: &str) -> String {
    let mut head = String::new();
    let (mut got, mut expected) = (None, None);
    for line in message.lines().map(str::trim) {
        if let Some(value) = line.strip_prefix("left: ") {
            got = Some(value.to_owned());
        } else if let Some(value) = line.strip_prefix("right: ") {
            expected = Some(value.to_owned());
        } else if !line.is_empty() {
            head = if head.is_empty() { line.to_owned() } else { format!("{head} {line}") };
        }
    }
    let detail = head
        .strip_prefix("assertion `left == right` failed")
        .map(|detail| detail.trim_start_matches(':').trim_start().to_owned());
    match (detail, expected, got) {
        (Some(detail), Some(expected), Some(got)) => {
            let detail = if detail.is_empty() { detail } else { format!(" [{detail}]") };
            format!("expected {expected}, got {got}{detail}")
        }
        _ => message.lines().map(str::trim).collect::<Vec<_>>().join(" "),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_comparison_says_what_was_expected() {
        let message = "assertion `left == right` failed: 15\n  left: Ok(())\n right: Err(EBUSY)";
        assert_eq!(describe(message), "expected Err(EBUSY), got Ok(()) [15]");
        assert_eq!(describe("nothing came in"), "nothing came in");
    }

    #[test]
    fn what_a_module_does_otherwise_is_said_of_cases_that_there_are() {
        let all = choose(&[]).unwrap();
        for (number, _) in NOT_ON_A_MODULE.iter().chain(KNOWN_OF_A_MODULE) {
            assert!(all.iter().any(|case| case.number == *number), "{number}");
        }
    }

    #[test]
    fn numbers_without_a_case_are_refused() {
        assert_eq!(choose(&[17, 18]).map(|chosen| chosen.len()).ok(), Some(2));
        assert!(choose(&[9999]).unwrap_err().contains("--list"));
        assert!(choose(&[160]).unwrap_err().contains("between lookup and delivery"));
    }
}
