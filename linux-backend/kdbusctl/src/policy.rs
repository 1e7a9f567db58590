//! `policy`: looks at a policy file of kdbusd, without any bus.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kdbus_policy::{Level, NameRules, Policy, PolicyError, Subject};
use serde_json::{Value, json};

use crate::failure::{Exit, Failure};
use crate::{Global, output};

/// Arguments of `policy`.
#[derive(Debug, Args)]
pub(crate) struct PolicyOf {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check a policy file as kdbusd would; everything that is wrong is told with its line
    Check {
        /// The file
        file: PathBuf,
    },
    /// Show what a policy file grants
    Show {
        /// The file
        file: PathBuf,
        /// Only what this user may do, by name or number, with all of its groups
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        /// Only the rules that decide about this name
        #[arg(long)]
        name: Option<String>,
    },
}

impl PolicyOf {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        match &self.action {
            Action::Check { file } => {
                let policy = match Policy::load(file) {
                    Ok(policy) => policy,
                    Err(error) => {
                        tell(global, &error)?;
                        // Everything is said.
                        return Err(Failure::new(Exit::Failed, ""));
                    }
                };
                let rules: usize = policy.names().iter().map(|name| name.rules.len()).sum();
                let names = policy.names().len();
                if global.json {
                    return output::line(json!({ "file": file, "names": names, "rules": rules }));
                }
                output::line(format_args!("{}: {names} names, {rules} rules, all well", file.display()))
            }
            Action::Show { file, user, name } => {
                let policy = load(file)?;
                let names: Vec<&NameRules> = match name {
                    None => policy.names().iter().collect(),
                    Some(name) => policy.rules_for(name).into_iter().collect(),
                };
                if let (Some(name), true) = (name, names.is_empty()) {
                    let text = format!("{}: no rules are for {name}", file.display());
                    return Err(Failure::new(Exit::NobodyThere, text));
                }
                match user {
                    None => show(global, &names),
                    Some(user) => {
                        let subject = Subject::of_user(user).map_err(Failure::usage)?;
                        show_for(global, &names, &subject)
                    }
                }
            }
        }
    }
}

/// Each problem on a line: here they are the result.
fn tell(global: &Global, error: &PolicyError) -> Result<(), Failure> {
    if !global.json {
        return error.lines().try_for_each(output::line);
    }
    error.problems().iter().try_for_each(|problem| {
        let (line, what, fix) = (problem.line, &problem.what, &problem.fix);
        output::line(json!({ "file": error.place(), "line": line, "what": what, "fix": fix }))
    })
}

fn load(file: &std::path::Path) -> Result<Policy, Failure> {
    Policy::load(file).map_err(|error| Failure::new(Exit::Failed, error.to_string()))
}

/// Who has each right.
fn show(global: &Global, names: &[&NameRules]) -> Result<(), Failure> {
    let who = |rules: &NameRules, level| -> Vec<String> {
        rules.rules.iter().filter(|rule| rule.level == level).map(|rule| rule.who.to_string()).collect()
    };
    if global.json {
        let value = |rules: &&NameRules| -> Value {
            json!({
                "name": rules.name,
                "own": who(rules, Level::Own),
                "talk": who(rules, Level::Talk),
                "see": who(rules, Level::See),
            })
        };
        let names: Vec<Value> = names.iter().map(value).collect();
        return output::line(json!({ "names": names }));
    }
    let cell = |rules: &NameRules, level| {
        let all = who(rules, level);
        if all.is_empty() { "-".into() } else { all.join(",") }
    };
    let rows = names.iter().map(|rules| {
        let [own, talk, see] = [Level::Own, Level::Talk, Level::See].map(|level| cell(rules, level));
        [rules.name.clone(), own, talk, see]
    });
    output::line(output::table(["NAME", "OWN", "TALK", "SEE"], rows))
}

/// What somebody may do with each name.
fn show_for(global: &Global, names: &[&NameRules], subject: &Subject) -> Result<(), Failure> {
    let may = |rules: &NameRules| rules.level(subject).map(Level::word);
    if global.json {
        let value = |rules: &&NameRules| json!({ "name": rules.name, "may": may(rules) });
        let names: Vec<Value> = names.iter().map(value).collect();
        return output::line(json!({ "uid": subject.uid, "groups": subject.groups, "names": names }));
    }
    let rows = names.iter().map(|rules| [rules.name.clone(), may(rules).unwrap_or("nothing").to_owned()]);
    output::line(output::table(["NAME", "MAY"], rows))
}
