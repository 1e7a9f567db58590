//! Files and command lines, and what is wrong with them.

use super::*;

fn load(text: &str, set: &[&str]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kdbusd.toml");
    std::fs::write(&file, text).unwrap();
    let arguments = Arguments {
        config: Some(file),
        set: set.iter().map(ToString::to_string).collect(),
        ..Arguments::default()
    };
    Config::load(&arguments, 0, Some("/run/kdbus".into())).map_err(|error| ConfigError {
        place: error.place.rsplit('/').next().unwrap_or_default().into(),
        ..error
    })
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = load("", &[]).unwrap();
    assert_eq!(config, Config::new(0, "/run/kdbus".into()));
    assert_eq!((config.bus[0].name.as_str(), config.bus[0].access), ("system", Access::World));
}

#[test]
fn the_example_file_says_what_holds_without_it() {
    assert_eq!(load(include_str!("../kdbusd.toml"), &[]), Ok(Config::new(0, "/run/kdbus".into())));
}

#[test]
fn what_is_printed_can_be_read_back() {
    let config = Config::new(7, "/x/y".into());
    assert_eq!(load(&config.to_toml(), &[]), Ok(config));
}

#[test]
fn a_group_in_the_file_changes_only_what_it_names() {
    let config = load("[memory]\npools = \"32 MiB\"\n", &[]).unwrap();
    assert_eq!(config.memory, Memory { pools: Bytes(32 << 20), ..Memory::default() });
}

#[test]
fn the_command_line_wins_over_the_file() {
    let set = ["capacity.clients=8", "schedule.policy=fifo", "schedule.priority=3"];
    let config = load("[capacity]\nclients = 9\n", &set).unwrap();
    assert_eq!(config.capacity.clients, 8);
    assert_eq!(config.schedule, Schedule { policy: Policy::Fifo, priority: 3 });
    assert_eq!(load("", &set[1..2]).unwrap_err().fix, "choose 1 to 99");
}

#[test]
fn errors_name_the_line_and_the_way_out() {
    let unknown = load("\n[capacity]\nclient = 9\n", &[]).unwrap_err();
    assert_eq!((unknown.place.as_str(), unknown.line), ("kdbusd.toml", Some(3)));
    assert!(unknown.what.contains("client"), "{unknown}");
    let zero = load("\n\n[capacity]\nclients = 0\n", &[]).unwrap_err();
    assert_eq!(zero.to_string(), "kdbusd.toml:4: capacity.clients is 0; choose 1 to 16384");
    let unit = load("[memory]\npools = \"3 apples\"\n", &[]).unwrap_err();
    assert_eq!(unit.line, Some(2));
    let setting = load("", &["capacity.clients"]).unwrap_err();
    assert_eq!(setting.to_string(), "--set capacity.clients: there is no '='; write --set key=value");
}

#[test]
fn a_file_needs_no_root_if_the_command_line_has_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kdbusd.toml");
    std::fs::write(&file, "log = \"debug\"\n").unwrap();
    let arguments = Arguments { config: Some(file), root: Some("/x".into()), ..Arguments::default() };
    let config = Config::load(&arguments, 1000, None).unwrap();
    assert_eq!((config.root, config.log), ("/x".into(), LogLevel::Debug));
}

#[test]
fn a_user_without_a_runtime_directory_is_told_so() {
    let error = Config::load(&Arguments::default(), 1000, None).unwrap_err();
    assert!(error.fix.contains("XDG_RUNTIME_DIR"), "{error}");
}
