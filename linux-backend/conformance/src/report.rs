//! What is printed.

use std::io::{Write, stdout};

use kdbus_conformance::CaseInfo;

/// One number of a case, as the table of cases has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) number: u16,
    pub(crate) info: &'static CaseInfo,
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
    /// The module shows a defect that is known of it.
    Known(String),
}

/// Counts and prints.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    passed: usize,
    failed: usize,
    skipped: usize,
    known: usize,
}

impl Report {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json, passed: 0, failed: 0, skipped: 0, known: 0 }
    }

    /// One line that names a case.
    pub(crate) fn list(&self, case: Case) {
        let what = case.info.name.replace('_', " ");
        if self.json {
            let line = serde_json::json!({ "case": case.number, "chapter": case.info.chapter, "name": what });
            print(&line.to_string());
        } else {
            print(&format!("case {} {}: {what}", case.number, case.info.chapter));
        }
    }

    /// One line for a case that ended. `number` is 0 for what has none.
    pub(crate) fn case(&mut self, number: u16, verdict: &Verdict) {
        let (word, text) = match verdict {
            Verdict::Passed => ("ok", None),
            Verdict::Failed(why) => ("FAILED", Some(why)),
            Verdict::Skipped(why) => ("skipped", Some(why)),
            Verdict::Known(why) => ("known difference", Some(why)),
        };
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Failed(_) => self.failed += 1,
            Verdict::Skipped(_) => self.skipped += 1,
            Verdict::Known(_) => self.known += 1,
        }
        if self.json {
            print(&serde_json::json!({ "case": number, "result": word, "text": text }).to_string());
        } else {
            let text = text.map(|text| format!(": {text}")).unwrap_or_default();
            print(&format!("case {number} {word}{text}"));
        }
    }

    /// The last line. Whether no case failed.
    pub(crate) fn close(&self) -> bool {
        let Self { json, passed, failed, skipped, known } = *self;
        if json {
            let line = serde_json::json!(
                { "passed": passed, "failed": failed, "skipped": skipped, "known_differences": known }
            );
            print(&line.to_string());
        } else {
            if known > 0 {
                print(&format!("{known} known differences"));
            }
            print(&format!("{passed} passed, {failed} failed, {skipped} skipped"));
        }
        failed == 0
    }
}

/// A line that is seen at once; a reader that has gone is no reason to stop.
fn print(line: &str) {
    let mut out = stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
