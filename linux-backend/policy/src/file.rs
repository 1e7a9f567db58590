//! Reading and checking the text of a file.

use kdbus_core::{NameError, PolicyName};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::Problem;
use crate::policy::{Level, NameRules, Rule};
use crate::who::Who;

/// What a rule is called in the file, and what it is.
const LISTS: [(&str, Level); 3] = [("own", Level::Own), ("talk", Level::Talk), ("see", Level::See)];

const BEGIN: &str = "begin the rules for each name with [[name]]";

/// All names of a file with their rules, or all that is wrong with it, in any order. Users and groups are looked up as
/// of now.
pub(crate) fn read(text: &str) -> Result<Vec<NameRules>, Vec<Problem>> {
    let mut reader = Reader { text, problems: Vec::new(), names: Vec::new() };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        reader.problem(at, error.message().replace('\n', " "), "see docs/policy.md for the form of the file");
    }
    // What is left of a file that is no TOML would only lead to complaints about the rest.
    let names = if errors.is_empty() { reader.file(table.get_ref()) } else { Vec::new() };
    if reader.problems.is_empty() { Ok(names) } else { Err(reader.problems) }
}

/// Goes through a file and notes what is wrong.
struct Reader<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    /// Names so far, and their lines.
    names: Vec<(String, usize)>,
}

impl Reader<'_> {
    fn problem(&mut self, at: usize, what: impl Into<String>, fix: impl Into<String>) {
        let line = Some(self.line(at));
        self.problems.push(Problem { line, what: what.into(), fix: fix.into() });
    }

    /// The line, from 1, of byte `at`.
    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    fn file(&mut self, table: &DeTable<'_>) -> Vec<NameRules> {
        let mut all = Vec::new();
        for (key, value) in table {
            let at = key.span().start;
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("name", DeValue::Array(tables)) => {
                    all.extend(tables.iter().filter_map(|table| self.entry(table)));
                }
                ("name", _) => self.problem(at, "name is no list", BEGIN),
                (other, _) => self.problem(at, format!("unknown key {other:?}"), BEGIN),
            }
        }
        all
    }

    /// One `[[name]]`; none if its name is unusable.
    fn entry(&mut self, value: &Spanned<DeValue<'_>>) -> Option<NameRules> {
        let at = value.span().start;
        let DeValue::Table(table) = value.get_ref() else {
            self.problem(at, "this is no table", BEGIN);
            return None;
        };
        let mut name = None;
        let mut lists = [None; LISTS.len()];
        for (key, value) in table {
            let key_text = key.get_ref().as_ref();
            if key_text == "name" {
                name = Some(value);
            } else if let Some(list) = LISTS.iter().position(|(word, _)| *word == key_text) {
                lists[list] = Some(value);
            } else {
                let fix = "a name has name, own, talk and see";
                self.problem(key.span().start, format!("unknown key {key_text:?}"), fix);
            }
        }
        let mut rules = Vec::new();
        for ((_, level), list) in LISTS.into_iter().zip(lists) {
            if let Some(list) = list {
                self.list(level, list, &mut rules);
            }
        }
        let Some(name) = name else {
            self.problem(at, "the name is missing", "add name = \"org.example.Mixer\"");
            return None;
        };
        self.name(name).map(|name| NameRules { name, rules })
    }

    fn name(&mut self, value: &Spanned<DeValue<'_>>) -> Option<String> {
        let at = value.span().start;
        let DeValue::String(name) = value.get_ref() else {
            self.problem(at, "name is no text", "write it in quotes: \"org.example.Mixer\"");
            return None;
        };
        if let Err(error) = PolicyName::from_bytes(name.as_bytes()) {
            let fix = match error {
                _ if name.contains('*') => "a * is the whole last element: org.example.*",
                NameError::Length => "write 3 to 255 bytes",
                _ => "give one such as org.example.Mixer or org.example.*",
            };
            self.problem(at, format!("{:?} is no name: {error}", name.as_ref()), fix);
            return None;
        }
        if let Some((_, first)) = self.names.iter().find(|(other, _)| other == name.as_ref()) {
            let what = format!("{:?} is there twice, first in line {first}", name.as_ref());
            self.problem(at, what, "put all rules for a name under one [[name]]");
            return None;
        }
        let line = self.line(at);
        self.names.push((name.to_string(), line));
        Some(name.to_string())
    }

    fn list(&mut self, level: Level, list: &Spanned<DeValue<'_>>, rules: &mut Vec<Rule>) {
        let DeValue::Array(list) = list.get_ref() else {
            let what = format!("{} is no list", level.word());
            return self.problem(list.span().start, what, "write it in brackets: [\"user:audio\"]");
        };
        for value in list {
            let at = value.span().start;
            let DeValue::String(text) = value.get_ref() else {
                self.problem(at, "somebody is no text", "write it in quotes: \"user:1000\"");
                continue;
            };
            match Who::parse(text) {
                Err((what, fix)) => self.problem(at, what, fix),
                Ok(who) if rules.contains(&Rule { level, who }) => {
                    self.problem(at, format!("{text:?} is there twice"), "leave one of them out");
                }
                Ok(who) => rules.push(Rule { level, who }),
            }
        }
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
