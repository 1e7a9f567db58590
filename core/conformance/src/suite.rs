//! What runs the cases, and says which there are.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::bench::{Bench, Outcome};
use crate::world::{Skip, World};

/// One case: its numbers, its chapter and what it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaseInfo {
    /// Numbers in the table.
    pub numbers: &'static [u16],
    /// The chapter, which is the file it stands in.
    pub chapter: &'static str,
    /// The behaviour, in words joined by underscores.
    pub name: &'static str,
}

/// Capacities that a domain has to have for a case; [`Default`] is what most cases are content with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Connections.
    pub connections: usize,
    /// Messages that wait at one connection.
    pub messages: usize,
    /// Slices of one pool.
    pub slices: usize,
    /// Names, and as many claims to them.
    pub names: usize,
    /// Matches.
    pub matches: usize,
    /// Buses.
    pub buses: usize,
    /// Awaited replies.
    pub calls: usize,
}

impl Default for Needs {
    fn default() -> Self {
        Self { connections: 16, messages: 32, slices: 72, names: 8, matches: 24, buses: 4, calls: 16 }
    }
}

impl CaseInfo {
    /// What the case needs.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        if self.chapter == "quota" {
            (needs.messages, needs.slices, needs.calls) = (600, 1300, 130);
        }
        match self.name {
            "a_user_has_at_most_16_buses" => needs.buses = 17,
            "a_user_has_at_most_1024_connections" => {
                (needs.connections, needs.messages, needs.slices) = (1026, 4, 8);
            }
            "a_query_that_does_not_fit_is_refused" | "a_pool_full_of_unfreed_slices_is_full" => {
                needs.slices = 300
            }
            "adjacent_free_slices_become_one" => needs.connections = 80,
            "a_reply_that_failed_cannot_be_repeated"
            | "a_broadcast_to_a_full_receiver_counts_as_lost"
            | "what_does_not_fit_a_service_is_lost"
            | "a_full_service_loses_everything" => (needs.messages, needs.slices) = (300, 700),
            "a_connection_has_at_most_4096_matches" => needs.matches = 4097,
            "a_connection_has_at_most_256_names" => needs.names = 260,
            _ => {}
        }
        needs
    }
}

/// Cases that commands alone cannot bring about, with the reason.
pub const NOT_EXPRESSED: &[(u16, &str)] =
    &[(160, "needs the receiver to leave between lookup and delivery, which no command order brings about")];

/// Makes a `#[test]` for each case. `$make` is a function or closure that takes the case's [`CaseInfo`] and
/// returns a new world for it.
///
/// Cases that cannot be expressed print one line each, `skipped: ...`.
#[macro_export]
macro_rules! conformance_tests {
    ($make:expr) => {
        $crate::__conformance_list! { @tests [$make] }

        #[test]
        fn cases_beyond_commands_are_reported() {
            $crate::report_not_expressed();
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_expand {
    (@tests [$make:expr] $($chapter:ident { $([$($number:literal),*] $name:ident;)* })*) => {
        $(
            mod $chapter {
                #[allow(unused_imports, reason = "the world may be named by its path")]
                use super::*;

                $(
                    #[test]
                    fn $name() {
                        $crate::run(stringify!($chapter), stringify!($name), $make);
                    }
                )*
            }
        )*
    };
    (@infos [] $($chapter:ident { $([$($number:literal),*] $name:ident;)* })*) => {
        &[$($(
            CaseInfo {
                numbers: &[$($number),*],
                chapter: stringify!($chapter),
                name: stringify!($name),
            },
        )*)*]
    };
    (@find [$world:ty, $wanted:expr]
        $($chapter:ident { $([$($number:literal),*] $name:ident;)* })*) => {
        match $wanted {
            $($(
                (stringify!($chapter), stringify!($name)) => Some($crate::$chapter::$name::<$world>),
            )*)*
            _ => None,
        }
    };
}

/// Every case, in the order of the chapters.
#[must_use]
pub const fn cases() -> &'static [CaseInfo] {
    crate::__conformance_list! { @infos [] }
}

fn find<W: World>(chapter: &str, name: &str) -> Option<fn(&mut Bench<W>) -> Outcome> {
    crate::__conformance_list! { @find [W, (chapter, name)] }
}

/// Runs one case over a new world. A case that the world cannot express prints a line.
///
/// # Panics
///
/// If the case fails, or if there is none of that name.
pub fn run<W: World>(chapter: &str, name: &str, make: impl FnOnce(&CaseInfo) -> W) {
    if let Err(skip) = try_run(chapter, name, make) {
        report(&format!("{chapter}::{name}"), &skip.0);
    }
}

/// Runs one case over a new world.
///
/// # Errors
///
/// [`Skip`] if the world cannot express it.
///
/// # Panics
///
/// If the case fails, or if there is none of that name.
pub fn try_run<W: World>(chapter: &str, name: &str, make: impl FnOnce(&CaseInfo) -> W) -> Result<(), Skip> {
    let run = find::<W>(chapter, name);
    let info = cases().iter().find(|case| (case.chapter, case.name) == (chapter, name));
    let (Some(run), Some(info)) = (run, info) else { panic!("no case {chapter}::{name}") };
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut Bench::new(make(info)))));
    outcome.unwrap_or_else(|panic| match panic.downcast::<Skip>() {
        Ok(skip) => Err(*skip),
        Err(panic) => resume_unwind(panic),
    })
}

/// Ends the case at hand: this world cannot express it. For where no result can say so.
pub(crate) fn skip(reason: &str) -> ! {
    resume_unwind(Box::new(Skip::because(reason)))
}

/// Prints a line for each case that commands alone cannot bring about.
pub fn report_not_expressed() {
    for (number, reason) in NOT_EXPRESSED {
        report(&format!("case {number}"), reason);
    }
}

/// One visible line: past the test harness, which shows what passing tests print to nobody.
fn report(what: &str, reason: &str) {
    let _ = writeln!(io::stderr(), "skipped: {what}: {reason}");
}

/// The table of all cases, as it stands in `docs/conformance.md`.
#[must_use]
pub fn table() -> String {
    let mut rows: Vec<(u16, String)> = Vec::new();
    for case in cases() {
        for number in case.numbers {
            let behaviour = case.name.replace('_', " ");
            rows.push((*number, format!("| {number} | {behaviour} | `{}` |\n", case.chapter)));
        }
    }
    for (number, reason) in NOT_EXPRESSED {
        rows.push((*number, format!("| {number} | not expressed: {reason} | |\n")));
    }
    rows.sort();
    let mut text = String::from(
        "# Conformance\n\n\
         What every transport shows. One suite, `core/conformance`, runs over each of them; a case that a\n\
         transport cannot express prints a line `skipped: ...` when the suite runs.\n\n\
         Cases from 400 on are ours, beyond what is known of the module.\n\n\
         | case | behaviour | chapter |\n|---|---|---|\n",
    );
    for (_, row) in rows {
        let _ = write!(text, "{row}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Highest number of a case that is known of the module.
    const LAST: u16 = 363;

    /// Numbers from here on are cases of our own.
    const OWN: u16 = 400;

    #[test]
    fn every_number_stands_in_one_place() {
        let mut seen = BTreeSet::new();
        let listed = cases().iter().flat_map(|case| case.numbers).chain(NOT_EXPRESSED.iter().map(|(n, _)| n));
        for number in listed {
            assert!(seen.insert(*number), "case {number} stands in two places");
            assert!(*number <= LAST || *number >= OWN, "there is no case {number}");
        }
        let missing: Vec<u16> = (1..=LAST).filter(|number| !seen.contains(number)).collect();
        assert_eq!(missing, []);
    }

    #[test]
    fn the_documented_table_is_the_list_of_cases() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md");
        if std::env::var_os("KDBUS_WRITE_DOCS").is_some() {
            let former = std::fs::read_to_string(path).unwrap_or_default();
            let behind = former.find("\n## ").map_or("", |at| &former[at..]);
            std::fs::write(path, table() + behind).unwrap();
        }
        let documented = std::fs::read_to_string(path).unwrap();
        assert!(
            documented.split("\n## ").next() == Some(&table()),
            "docs/conformance.md is out of date: run this test with KDBUS_WRITE_DOCS=1"
        );
    }
}
