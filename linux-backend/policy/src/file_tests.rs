//! Files that are right, and what is said of those that are not.

use super::*;
use crate::Policy;

fn wrong(text: &str) -> Vec<String> {
    Policy::parse(text).unwrap_err().lines().collect()
}

/// The one thing that is wrong with the lines of a name; they begin in line 3.
fn wrong_rules(lines: &str) -> String {
    let problems = wrong(&format!("[[name]]\nname = \"a.b\"\n{lines}\n"));
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.into_iter().next().unwrap()
}

#[test]
fn a_file_has_users_and_groups_by_name_and_by_number() {
    let names = read(
        "# comment\n[[name]]\nname = \"a.b\"\nsee = [\"world\"]\nown = [\"user:root\", \"uid:7\", \"user:8\"]\n\
         talk = [\"group:root\", \"gid:9\"]\n[[name]]\nname = \"a.*\"\n",
    )
    .unwrap();
    let [first, second] = names.as_slice() else { panic!("{names:?}") };
    let rules: Vec<_> = first.rules.iter().map(|rule| (rule.level, rule.who)).collect();
    let expected = [
        (Level::Own, Who::User(0)),
        (Level::Own, Who::User(7)),
        (Level::Own, Who::User(8)),
        (Level::Talk, Who::Group(0)),
        (Level::Talk, Who::Group(9)),
        (Level::See, Who::World),
    ];
    assert_eq!(rules, expected);
    assert_eq!((second.name.as_str(), second.rules.len()), ("a.*", 0));
    assert_eq!(read(""), Ok(vec![]));
}

#[test]
fn what_is_given_as_an_example_can_be_used() {
    let docs = include_str!("../../../docs/policy.md");
    let block = docs.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    for (text, names) in [(block, 2), (include_str!("../../kdbusd/policy.toml"), 3)] {
        // Not every machine has these.
        let known = ["user:audio", "user:camera", "group:audio", "group:video"];
        let text = known.iter().fold(text.to_owned(), |text, who| text.replace(who, "gid:29"));
        assert_eq!(read(&text).unwrap().len(), names);
    }
}

#[test]
fn everything_that_is_wrong_is_told_with_its_line() {
    let text = "[[name]]\nname = \"a.b\"\nhear = []\nown = [\n  \"world\",\n  \"user:no-such-user\",\n]\n\n\
                [[names]]\n[[name]]\ntalk = [\"world\"]\n";
    let expected = [
        "policy:3: unknown key \"hear\"; a name has name, own, talk and see",
        "policy:6: there is no user \"no-such-user\" on this machine; create it first, or give its number as \"uid:UID\"",
        "policy:9: unknown key \"names\"; begin the rules for each name with [[name]]",
        "policy:10: the name is missing; add name = \"org.example.Mixer\"",
    ];
    assert_eq!(wrong(text), expected);
    let error = Policy::parse(text).unwrap_err();
    let line = format!("{} (and 3 more; `kdbusctl policy check` tells all)", expected[0]);
    assert_eq!((error.to_string(), error.problems().len()), (line, 4));
}

#[test]
fn wrong_types_are_told() {
    assert!(wrong_rules("own = \"world\"").starts_with("policy:3: own is no list; write it in brackets"));
    assert!(wrong_rules("own = [7]").starts_with("policy:3: somebody is no text; write it in quotes"));
    assert!(wrong("name = 3")[0].starts_with("policy:1: name is no list"));
    assert!(wrong("name = [3]")[0].starts_with("policy:1: this is no table"));
    assert!(wrong("[[name]]\nname = 3")[0].starts_with("policy:2: name is no text"));
    assert!(wrong("[[name]\n")[0].starts_with("policy:1: "));
    assert!(wrong_rules("own = [\"world\"").starts_with("policy:3: "));
    assert!(wrong_rules("own = []\nown = []").starts_with("policy:4: duplicate key"));
}

#[test]
fn names_and_their_wildcards_are_checked() {
    let fix = |name: &str| {
        let problems = wrong(&format!("[[name]]\nname = {name:?}\n"));
        assert!(problems.len() == 1 && problems[0].starts_with("policy:2: "), "{problems:?}");
        problems[0].rsplit_once("; ").unwrap().1.to_owned()
    };
    for wildcard in ["*", "a.*.b", "a.b*", "a.**", ".*", "a.*.*"] {
        assert_eq!(fix(wildcard), "a * is the whole last element: org.example.*", "{wildcard}");
    }
    for name in ["a", "a..b", "a.1b", "a.b ", ".a.b", "a.\u{e4}"] {
        assert!(fix(name).starts_with("give one such as"), "{name}");
    }
    for name in [String::new(), format!("a.{}", "b".repeat(254))] {
        assert_eq!(fix(&name), "write 3 to 255 bytes");
    }
}

#[test]
fn nothing_is_there_twice() {
    let told = wrong("[[name]]\nname = \"a.b\"\n[[name]]\nname = \"a.*\"\n[[name]]\nname = \"a.b\"\n");
    let expected =
        "policy:6: \"a.b\" is there twice, first in line 2; put all rules for a name under one [[name]]";
    assert_eq!(told, [expected]);
    // However it is written.
    let told = wrong_rules("talk = [\"user:root\", \"world\", \"uid:0\"]\nsee = [\"world\"]");
    assert_eq!(told, "policy:3: \"uid:0\" is there twice; leave one of them out");
}
