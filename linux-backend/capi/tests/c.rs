//! The header and the library as C sees them: compiled, linked and run against a real daemon.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

mod common;

use common::{Bus, header, libraries, package};

/// What the client prints, whichever way it was linked.
const SAID: &str = "\
echo: hello
known: yes
refused: Remote I/O error, code 1, the callee answered with an error: no such method (error 1)
late: Connection timed out, no answer came until the deadline
cancelled: Operation canceled
memfd: 65536
signal: 1 served
by priority: mute
by priority: block 1
by priority: block 2
";

/// Whether `program` runs; says in one line what is left out if it does not.
fn has(program: &str, what: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        // Straight to the descriptor, so that it shows whether or not tests are captured.
        let line = format!("skipped: {what}: {program} is not there\n");
        let _ = rustix::io::write(std::io::stderr(), line.as_bytes());
    }
    there
}

fn succeed(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}

/// Compiles only, with every warning an error.
fn check(compiler: &str, language: &str) {
    let mut command = Command::new(compiler);
    command.args(["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]).arg(language);
    succeed(command.args(["-x", if compiler == "cc" { "c" } else { "c++" }]).arg(header::PATH));
}

/// The program that the documentation shows, as a whole one.
fn documented() -> String {
    let page = std::fs::read_to_string(package().join("../../docs/c-api.md")).unwrap();
    let (_, rest) = page.split_once("```c\n").unwrap();
    let (shown, _) = rest.split_once("```").unwrap();
    let (include, body) = shown.split_once("\n\n").unwrap();
    format!("#include <stdio.h>\n{include}\nint main(void)\n{{\n{body}\nreturn 0;\n}}\n")
}

/// An installed library and the example, compiled in both ways.
struct Example {
    dir: tempfile::TempDir,
}

impl Example {
    fn build() -> Option<Self> {
        if !["cc", "make", "pkg-config"].iter().all(|program| has(program, "the C example")) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let example = Self { dir };
        let mut install = Command::new("make");
        install.arg("-sC").arg(package()).arg("install").arg(set("LIBS", libraries()));
        succeed(install.arg(set("PREFIX", example.dir.path())));
        for (folder, more) in [("shared", None), ("static", Some("STATIC=1"))] {
            let out = example.dir.path().join(folder);
            std::fs::create_dir(&out).unwrap();
            let mut make = Command::new("make");
            make.env("PKG_CONFIG_PATH", example.libraries().join("pkgconfig")).env_remove("MAKEFLAGS");
            make.arg("-sC").arg(package().join("../../examples/c")).arg(set("OUT", out)).args(more);
            succeed(&mut make);
        }
        Some(example)
    }

    fn libraries(&self) -> PathBuf {
        self.dir.path().join("lib")
    }

    /// One of the two programs, by `runner` if there is one.
    fn program(&self, runner: &[&str], folder: &str, name: &str, bus: &Path) -> Command {
        let path = self.dir.path().join(folder).join(name);
        let mut command = match runner {
            [] => Command::new(&path),
            [runner, arguments @ ..] => {
                let mut command = Command::new(runner);
                command.args(arguments).arg(&path);
                command
            }
        };
        command.env("KDBUS_BUS", bus).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if folder == "shared" {
            command.env("LD_LIBRARY_PATH", self.libraries());
        }
        command
    }

    /// Runs both programs on a bus of their own; what the client and the service print.
    fn run(&self, runner: &[&str], folder: &str) -> (String, String) {
        let bus = Bus::start();
        let service = self.program(runner, folder, "service", &bus.node()).spawn().unwrap();
        let mut client = self.program(runner, folder, "client", &bus.node());
        let client = client.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (said, errors) = (text(client.stdout), text(client.stderr));
        if !client.status.success() {
            // Nobody stops the service then.
            let mut service = service;
            service.kill().unwrap();
            service.wait().unwrap();
            panic!("client by {runner:?}: {}\n{said}{errors}", client.status);
        }
        let service = service.wait_with_output().unwrap();
        assert!(
            service.status.success(),
            "service by {runner:?}: {}\n{}",
            service.status,
            text(service.stderr)
        );
        (said, text(service.stdout))
    }
}

fn set(variable: &str, value: impl AsRef<OsStr>) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(variable);
    argument.push("=");
    argument.push(value);
    argument
}

#[test]
fn the_committed_header_is_the_one_of_the_sources() {
    let committed = std::fs::read_to_string(header::PATH).unwrap();
    assert!(
        committed == header::generate().unwrap(),
        "include/kdbus_rt.h is not what the sources say: run `cargo run -p kdbus-capi --example header`"
    );
}

#[test]
fn the_header_stands_alone_in_c_and_in_cpp() {
    if has("cc", "the header in C") {
        check("cc", "-std=c11");
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("shown.c");
        std::fs::write(&program, documented()).unwrap();
        let mut command = Command::new("cc");
        command.args(["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-std=c11", "-I"]);
        succeed(command.arg(package().join("include")).arg(program));
    }
    if has("c++", "the header in C++") {
        check("c++", "-std=c++11");
    }
}

#[test]
fn the_example_runs_with_both_libraries() {
    let Some(example) = Example::build() else { return };
    for folder in ["shared", "static"] {
        let (client, service) = example.run(&[], folder);
        assert_eq!((client.as_str(), service.as_str()), (SAID, "served 5 calls\n"), "{folder}");
    }
}

#[test]
fn the_example_keeps_its_memory_in_order() {
    if !has("valgrind", "the C example's memory") {
        return;
    }
    let Some(example) = Example::build() else { return };
    // Memory that nothing leads to any more, or that is read without having been written, is an error.
    let runner = [
        "valgrind",
        "--quiet",
        "--error-exitcode=99",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
    ];
    let (client, _) = example.run(&runner, "shared");
    assert!(client.ends_with("by priority: block 2\n"), "{client}");
}

#[test]
fn the_shared_library_shows_only_its_own_names() {
    if !has("nm", "the names of the shared library") {
        return;
    }
    let output =
        succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(libraries().join("libkdbus_rt.so")));
    let names = String::from_utf8(output.stdout).unwrap();
    let header = std::fs::read_to_string(header::PATH).unwrap();
    let mut count = 0;
    for name in names.lines().filter_map(|line| line.split_whitespace().last()) {
        assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
        count += 1;
    }
    assert!(count > 40, "{count} names");
    let headed = header.lines().filter(|line| {
        !line.starts_with("//") && line.contains("kdbus_rt_") && line.contains('(') && !line.starts_with(' ')
    });
    assert_eq!(headed.count(), count);
}
