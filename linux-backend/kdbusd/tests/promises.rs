//! That every test that SECURITY.md names is there, in the file that it names.

use std::path::Path;

/// A promise without a path names a file here.
const HERE: &str = "linux-backend/kdbusd/tests";

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_the_promises_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let (_, promises) = page.split_once("## Promises").unwrap();
    let rows = promises.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut found = 0;
    for row in rows {
        let tests = row.rsplit('|').nth(1).unwrap();
        // What is no test in a file: programs that the continuous integration runs.
        let tests = tests.split_once("(`.ci/run`)").map_or(tests, |(_, rest)| rest);
        let mut names = Vec::new();
        for word in quoted(tests) {
            if !word.ends_with(".rs") {
                names.push(word);
                continue;
            }
            let path = if word.contains('/') { root.join(word) } else { root.join(HERE).join(word) };
            let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{word}: {error}"));
            for name in names.drain(..) {
                // A function, the name in a list of a file with a `main` of its own, or a line such as an attribute.
                let is_line = name.contains(['(', '!', ' ']);
                let forms = [format!("fn {name}("), format!("\"{name}\"")];
                let is_there = forms.iter().any(|form| source.contains(form));
                assert!(is_there || (is_line && source.contains(name)), "{name} is not in {word}");
                found += 1;
            }
        }
        assert!(names.is_empty(), "{names:?} are in no file");
    }
    assert!(found > 60, "only {found} tests are named");
}
