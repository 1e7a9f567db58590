//! The daemon under test.

use std::collections::hash_map::RandomState;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command as Program, Stdio};

use kdbus_conformance::CaseInfo;

use crate::world::{DaemonWorld, FORKS, configuration};

/// The variable that says which way each message takes.
const SEED: &str = "KDBUS_TEST_SEED";

/// Lanes of each client.
const LANES: usize = 2;
/// As many that most of them are cold.
const MANY_LANES: usize = 12;

/// Cases that fill a pool, a queue or a quota to the brim, know where in a pool a message lies, or count the messages of a bus.
/// What came by lane is in none of them.
const BEYOND_THE_POOL: [&str; 13] = [
    "a_failed_import_leaves_a_gap",
    "a_reply_that_failed_cannot_be_repeated",
    "a_broadcast_to_a_full_receiver_counts_as_lost",
    "a_full_pool_charges_nobody",
    "a_full_service_loses_everything",
    "a_message_lost_on_its_way_is_charged_to_nobody",
    "a_message_takes_up_to_a_sixth_of_the_pool",
    "a_queued_message_cannot_be_freed",
    "a_pool_full_of_unfreed_slices_is_full",
    "a_user_queues_up_to_256_messages",
    "adjacent_free_slices_become_one",
    "an_unheard_call_counts_beyond_its_deadline",
    "what_does_not_fit_a_service_is_lost",
];

/// A running daemon with a tree of its own, ended on drop.
pub(crate) struct Daemon {
    process: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    fn start(configuration: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Other users have to get at the nodes.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = directory.path().join("kdbusd.toml");
        std::fs::write(&file, configuration).unwrap();
        let forks = FORKS.write();
        // A shell, because the daemon tells on a descriptor of its own that it is ready. What is built for another
        // machine is run by an emulator.
        let mut process = Program::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" --ready-fd 3 3>&1"])
            .args(std::env::var_os("KDBUS_TEST_RUNNER"))
            .args([env!("CARGO_BIN_EXE_kdbusd"), "--config"])
            .arg(&file)
            .arg("--root")
            .arg(directory.path().join("tree"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        drop(forks);
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "kdbusd did not start: {:?}", process.wait());
        Self { process, directory }
    }

    /// A world with a daemon of its own.
    pub(crate) fn world(case: &CaseInfo) -> DaemonWorld<Self> {
        let daemon = Self::start(&configuration(case.needs()));
        DaemonWorld::new(daemon.directory.path().join("tree"), daemon)
    }

    /// The same where every message that can goes past the daemon.
    pub(crate) fn world_with_lanes(case: &CaseInfo) -> DaemonWorld<Self> {
        Self::world_with(case, LANES)
    }

    fn world_with(case: &CaseInfo, each: usize) -> DaemonWorld<Self> {
        if BEYOND_THE_POOL.contains(&case.name) {
            println!(
                "through kdbusd alone: {}: a lane's room comes on top of the pool's and the quota's",
                case.name
            );
            return Self::world(case);
        }
        let lanes = (each * case.needs().connections).min(4096);
        let capacity =
            format!("[capacity]\nlanes = {lanes}\nlanes-per-user = {lanes}\nlanes-per-connection = {each}\n");
        let configuration =
            configuration(case.needs()).replace("[capacity]\n", &capacity) + "lane = \"4 KiB\"\n";
        let daemon = Self::start(&configuration);
        DaemonWorld::new(daemon.directory.path().join("tree"), daemon).with_lanes(each)
    }

    /// The same where a seed chooses for each message which way it takes: `KDBUS_TEST_SEED`, or another one each time.
    pub(crate) fn world_with_detours(case: &CaseInfo) -> DaemonWorld<Self> {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().expect("KDBUS_TEST_SEED is a number"),
            Err(_) => u64::from(std::hash::BuildHasher::hash_one(&RandomState::new(), case.name) as u32),
        };
        // The test harness shows it if the case fails.
        println!("ways chosen by {SEED}={seed}");
        Self::world_with(case, MANY_LANES).with_detours(seed)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
