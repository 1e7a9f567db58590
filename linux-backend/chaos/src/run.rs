//! The conductor: rounds, deaths, pauses, and the checks between them.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::audit::Watch;
use crate::check::{Check, Finding, check};
use crate::client::{Outcome, Role};
use crate::daemon::{Daemon, Gauges};
use crate::fleet::{Member, Said, Start, State, Word};
use crate::history::History;
use crate::point::Point;
use crate::report::Report;

/// How long a round lasts.
const ROUND: Duration = Duration::from_secs(5);
/// Rounds between two times at which everybody leaves.
const ROUNDS_TOGETHER: u64 = 6;
/// How long anybody may take to come to rest or to leave. Not a measurement: who needs this long hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// KiB that the daemon's own memory may have grown since the first time that everybody had left: pages of
/// tables allocated at its start that are touched for the first time.
pub const MEMORY_SLACK: u64 = 4096;
/// A run as long as this sends clients to each point so often that one comes there.
const ENOUGH_FOR_ALL_POINTS: Duration = Duration::from_secs(60);
/// Findings after which a run ends.
const ENOUGH: usize = 20;

/// What a run is made with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What all choices follow from.
    pub seed: u64,
    /// How long it goes on.
    pub span: Duration,
    /// Clients at a time, at least [`CLIENTS_MIN`].
    pub clients: u32,
    /// The daemon's program.
    pub kdbusd: PathBuf,
    /// Where the histories of a round go in which something was found.
    pub histories: Option<PathBuf>,
    /// Where a line goes every few seconds.
    pub progress: bool,
}

/// One activator, one monitor, one raw client and two workers.
pub const CLIENTS_MIN: u32 = 5;
/// More would not find places in the daemon's default tables.
pub const CLIENTS_MAX: u32 = 64;

/// Runs until the time is over, `stop` is set, or something was found.
///
/// # Errors
///
/// If the daemon or the clients cannot be started, or the machine refuses something.
pub fn run(settings: &Settings, stop: &Arc<AtomicBool>) -> Outcome<Report> {
    let dir = tempfile::Builder::new().prefix("kdbus-chaos-").tempdir()?;
    let (daemon, transport) = Daemon::start(&settings.kdbusd, dir.path(), settings.clients)?;
    let watch = Watch::new(transport)?;
    let base = daemon.gauges()?;
    let (sender, receiver) = channel();
    let mut conductor = Conductor {
        settings,
        stop,
        random: fastrand::Rng::with_seed(settings.seed),
        dir: dir.path().to_owned(),
        round_dir: PathBuf::new(),
        daemon,
        watch,
        base,
        steady: None,
        members: Vec::new(),
        incarnations: HashMap::new(),
        vacant: Vec::new(),
        gone: Vec::new(),
        plans: Vec::new(),
        ended_well: HashSet::new(),
        sender,
        receiver,
        report: Report::new(settings),
    };
    conductor.play()?;
    let Conductor { daemon, watch, mut report, members, .. } = conductor;
    drop((members, watch));
    let ended_early = stop.load(Ordering::Relaxed) || !report.findings.is_empty();
    if settings.span >= ENOUGH_FOR_ALL_POINTS && !ended_early {
        let missed = report.points.iter().filter(|(_, [_, reached])| *reached == 0);
        let text = |(point, [planned, _]): (&Point, &[u64; 2])| {
            format!("{planned} clients were to stop {}, and none came there", point.text())
        };
        let missed: Vec<_> = missed.map(text).collect();
        report.findings.extend(missed.into_iter().map(|text| finding(Check::Points, text)));
    }
    let reached = report.points.values().filter(|[_, reached]| *reached > 0).count() as u64;
    report.tally.checks.insert(Check::Points, reached);
    if let Err(error) = daemon.stop() {
        report.findings.push(finding(Check::Progress, error.to_string()));
    }
    Ok(report)
}

struct Conductor<'a> {
    settings: &'a Settings,
    stop: &'a Arc<AtomicBool>,
    random: fastrand::Rng,
    dir: PathBuf,
    round_dir: PathBuf,
    daemon: Daemon,
    watch: Watch,
    /// What the daemon had before anybody came.
    base: Gauges,
    /// What it had the first time that everybody had left.
    steady: Option<Gauges>,
    members: Vec<Member>,
    incarnations: HashMap<u32, u32>,
    /// Numbers without a process, and when they get one.
    vacant: Vec<(u32, Instant)>,
    /// Histories of this round whose processes are gone.
    gone: Vec<(u32, u32, Role, PathBuf)>,
    /// Points for the next workers, the next one last.
    plans: Vec<Point>,
    /// Processes that were told to leave.
    ended_well: HashSet<(u32, u32)>,
    sender: Sender<Said>,
    receiver: Receiver<Said>,
    report: Report,
}

fn finding(check: Check, text: String) -> Finding {
    Finding { check, text, message: None, involved: Vec::new() }
}

impl Conductor<'_> {
    fn play(&mut self) -> Outcome<()> {
        let began = Instant::now();
        let until = began + self.settings.span;
        let mut rounds = 0;
        loop {
            self.round(until)?;
            rounds += 1;
            let over = self.is_over() || Instant::now() >= until;
            if over || rounds == 1 || rounds % ROUNDS_TOGETHER == 0 {
                self.everybody_leaves()?;
            }
            self.report.rounds = rounds;
            self.report.seconds = began.elapsed().as_secs_f64();
            if self.settings.progress {
                eprintln!("{}", self.report.line());
            }
            if over || !self.report.findings.is_empty() {
                return Ok(());
            }
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One round: everybody works, some die, all come to rest, and what they saw is checked.
    fn round(&mut self, end: Instant) -> Outcome<()> {
        self.round_dir = self.dir.join(format!("round-{}", self.report.rounds));
        std::fs::create_dir(&self.round_dir)?;
        // While there is a monitor, nothing goes by lane; so two rounds of three are without.
        if self.is_without_monitor() {
            self.leave(|role| role == Role::Monitor)?;
        }
        for member in &mut self.members {
            member.run(&self.round_dir);
        }
        let numbers: HashSet<_> = self.members.iter().map(|member| member.number).collect();
        self.vacant.clear();
        for number in (0..self.settings.clients).filter(|number| !numbers.contains(number)) {
            if self.role(number) != Role::Monitor || !self.is_without_monitor() {
                self.start(number)?;
            }
        }
        let until = (Instant::now() + ROUND).min(end);
        while Instant::now() < until && !self.is_over() && self.report.findings.len() < ENOUGH {
            self.tick()?;
        }
        self.rest()?;
        self.check_round()?;
        self.gone.clear();
        if self.report.findings.is_empty() {
            std::fs::remove_dir_all(&self.round_dir)?;
        }
        Ok(())
    }

    const fn is_without_monitor(&self) -> bool {
        !self.report.rounds.is_multiple_of(3)
    }

    fn role(&self, number: u32) -> Role {
        // The last ones are special, whatever the number of clients; more activators than names there are not.
        match self.settings.clients - number {
            1 => Role::Raw,
            2 => Role::Monitor,
            3 => Role::Activator,
            4 if self.settings.clients >= 8 => Role::Activator,
            5 if self.settings.clients >= 12 => Role::Raw,
            _ => Role::Worker,
        }
    }

    fn start(&mut self, number: u32) -> Outcome<()> {
        let role = self.role(number);
        let incarnation = *self.incarnations.entry(number).and_modify(|count| *count += 1).or_insert(0);
        let point = self.choose_point(role);
        if let Some(point) = point {
            self.report.points.entry(point).or_default()[0] += 1;
        }
        let random = &mut self.random;
        let point = point.map(|point| (point, random.u32(0..point.passes())));
        let seed = random.u64(..);
        let start =
            Start { node: self.daemon.node(), dir: &self.dir, number, incarnation, role, seed, point };
        let mut member = Member::start(&start, &self.sender)?;
        member.run(&self.round_dir);
        self.members.push(member);
        self.report.processes += 1;
        Ok(())
    }

    /// Where a client stops, if it does. Workers are sent to one point after the other, so that none is left out.
    fn choose_point(&mut self, role: Role) -> Option<Point> {
        let random = &mut self.random;
        match role {
            Role::Worker if random.u32(0..10) < 8 => {
                if self.plans.is_empty() {
                    self.plans.extend(Point::OF_WORKERS);
                    if cfg!(feature = "points") {
                        self.plans.extend(Point::OF_LIBRARY);
                    }
                    random.shuffle(&mut self.plans);
                }
                self.plans.pop()
            }
            Role::Worker => None,
            Role::Activator => match random.u32(0..4) {
                0 | 1 => Some(Point::Activator),
                2 if cfg!(feature = "points") => Some(Point::Taken),
                _ => None,
            },
            Role::Monitor => match random.u32(0..4) {
                0 | 1 => Some(Point::Monitor),
                2 if cfg!(feature = "points") => Some(Point::Taken),
                _ => None,
            },
            Role::Raw => match random.u32(0..8) {
                0 => Some(Point::Mapped),
                1..4 => Some(Point::ReturnedNotFreed),
                _ => Some(Point::TakenNotReturned),
            },
        }
    }

    /// A few milliseconds of a round.
    fn tick(&mut self) -> Outcome<()> {
        self.hear(Duration::from_millis(5));
        self.watch.listen()?;
        if let Some(status) = self.daemon.ended()? {
            self.report.findings.push(finding(Check::Progress, format!("kdbusd ended with {status}")));
            return Err(format!("kdbusd ended with {status}; seed {}", self.settings.seed).into());
        }
        self.bury()?;
        let now = Instant::now();
        self.resume(now, false)?;
        let due: Vec<_> =
            self.vacant.iter().filter(|(_, at)| *at <= now).map(|(number, _)| *number).collect();
        self.vacant.retain(|(_, at)| *at > now);
        for number in due {
            self.start(number)?;
        }
        if self.random.u32(0..250) == 0 {
            self.kill_one(|state| state == State::Running, None)?;
        }
        if self.random.u32(0..30) == 0 && !self.members.is_empty() {
            let chosen = self.random.usize(0..self.members.len());
            let span = Duration::from_millis(self.random.u64(1..200));
            let member = &mut self.members[chosen];
            if member.state == State::Running {
                member.signal(Signal::STOP);
                member.state = State::Stopped { until: now + span, killed_at: None };
                self.report.pauses += 1;
            }
        }
        Ok(())
    }

    /// Takes in what the clients say, for which it waits.
    fn hear(&mut self, span: Duration) {
        let mut said = self.receiver.recv_timeout(span).ok();
        while let Some(Said { number, incarnation, word }) = said {
            said = self.receiver.try_recv().ok();
            let known = |member: &&mut Member| (member.number, member.incarnation) == (number, incarnation);
            let Some(member) = self.members.iter_mut().find(known) else { continue };
            match word {
                Word::Ready => {}
                Word::At(point) => {
                    member.point = None;
                    self.report.points.entry(point).or_default()[1] += 1;
                    // Most die there; the others go on, as if nothing had been.
                    let pause = if point.stops() { self.random.u64(0..60) } else { self.random.u64(0..3) };
                    let dies = member.role == Role::Raw || !point.stops() || self.random.u32(0..5) > 0;
                    let until = Instant::now() + Duration::from_millis(pause);
                    member.state = State::Stopped { until, killed_at: dies.then_some(point) };
                }
                Word::Quiet | Word::Drained(_) => member.said = Some(word),
            }
        }
    }

    /// Ends pauses that are over, or all of them.
    fn resume(&mut self, now: Instant, all: bool) -> Outcome<()> {
        let mut dying = Vec::new();
        for member in &mut self.members {
            let State::Stopped { until, killed_at } = member.state else { continue };
            if until > now && !all {
                continue;
            }
            match killed_at {
                Some(point) => dying.push((member.number, point)),
                None => {
                    member.go_on();
                    member.state = State::Running;
                }
            }
        }
        for (number, point) in dying {
            self.kill(number, Some(point))?;
        }
        Ok(())
    }

    fn kill_one(&mut self, may: impl Fn(State) -> bool, point: Option<Point>) -> Outcome<()> {
        let running: Vec<_> =
            self.members.iter().filter(|member| may(member.state)).map(|member| member.number).collect();
        if running.is_empty() {
            return Ok(());
        }
        let chosen = running[self.random.usize(0..running.len())];
        self.kill(chosen, point)
    }

    /// Kills a client, and looks at once whether the bus still knows it.
    fn kill(&mut self, number: u32, point: Option<Point>) -> Outcome<()> {
        let Some(at) = self.members.iter().position(|member| member.number == number) else { return Ok(()) };
        let mut member = self.members.swap_remove(at);
        // It may have ended by itself before, which is no death of ours.
        if let Some(status) = member.ended() {
            return self.account_for(&member, status.to_string());
        }
        member.kill();
        *self.report.kills.entry(point).or_default() += 1;
        let history = History::read(member.number, member.incarnation, &member.history)?;
        let own: HashSet<_> =
            history.records.iter().map(|record| record.own).filter(|own| *own != 0).collect();
        *self.report.tally.checks.entry(Check::Names).or_default() += 1;
        for text in self.watch.remains(&own)? {
            let involved = vec![(member.number, member.incarnation)];
            self.report.findings.push(Finding { check: Check::Names, text, message: None, involved });
        }
        self.part_from(&member);
        Ok(())
    }

    fn part_from(&mut self, member: &Member) {
        self.gone.push((member.number, member.incarnation, member.role, member.history.clone()));
        // Somebody else goes where this one did not come.
        self.plans.extend(member.point.filter(|_| member.role == Role::Worker));
        let again = Instant::now() + Duration::from_millis(self.random.u64(0..100));
        self.vacant.push((member.number, again));
    }

    /// Finds processes that ended by themselves.
    fn bury(&mut self) -> Outcome<()> {
        let mut at = 0;
        while at < self.members.len() {
            match self.members[at].ended() {
                None => at += 1,
                Some(status) => {
                    let member = self.members.swap_remove(at);
                    self.account_for(&member, status.to_string())?;
                }
            }
        }
        Ok(())
    }

    fn account_for(&mut self, member: &Member, status: String) -> Outcome<()> {
        let process = (member.number, member.incarnation);
        if !self.ended_well.remove(&process) {
            let text = format!(
                "client {}.{} ({:?}) ended by itself, {status}: {}",
                process.0,
                process.1,
                member.role,
                member.complaints()
            );
            let involved = vec![process];
            self.report.findings.push(Finding { check: Check::Clients, text, message: None, involved });
        }
        self.part_from(member);
        Ok(())
    }
}

impl Conductor<'_> {
    /// Brings everybody to rest: first nothing more is begun, then every queue is emptied.
    fn rest(&mut self) -> Outcome<()> {
        self.resume(Instant::now(), true)?;
        // These come to no rest.
        let raw: Vec<_> = self
            .members
            .iter()
            .filter(|member| member.role == Role::Raw)
            .map(|member| member.number)
            .collect();
        for number in raw {
            self.kill(number, None)?;
        }
        for (line, phase) in [("quiet", "come to rest"), ("drain", "empty its queue")] {
            self.members.iter_mut().for_each(|member| member.tell(line));
            let began = Instant::now();
            loop {
                self.hear(Duration::from_millis(2));
                self.watch.listen()?;
                self.bury()?;
                // One that was about to stop at its point when the round ended.
                self.resume(Instant::now(), true)?;
                let silent = |member: &&Member| {
                    !matches!(
                        (line, member.said),
                        ("quiet", Some(Word::Quiet)) | ("drain", Some(Word::Drained(_)))
                    )
                };
                let waiting: Vec<_> =
                    self.members.iter().filter(silent).map(|member| member.number).collect();
                if waiting.is_empty() {
                    break;
                }
                // One that was stopped just before it would have stopped itself has been continued once too few.
                self.members
                    .iter()
                    .filter(|member| silent(member))
                    .for_each(|member| member.signal(Signal::CONT));
                if began.elapsed() > PATIENCE {
                    for number in waiting {
                        self.find_hanging(number, phase)?;
                    }
                    break;
                }
            }
        }
        *self.report.tally.checks.entry(Check::Progress).or_default() += 1;
        Ok(())
    }

    fn find_hanging(&mut self, number: u32, what: &str) -> Outcome<()> {
        let Some(member) = self.members.iter().find(|member| member.number == number) else { return Ok(()) };
        let text = format!("client {}.{} ({:?}) does not {what}", number, member.incarnation, member.role);
        let involved = vec![(number, member.incarnation)];
        self.report.findings.push(Finding { check: Check::Progress, text, message: None, involved });
        self.kill(number, None)
    }

    /// Compares the histories of this round, and the daemon's numbers with them.
    fn check_round(&mut self) -> Outcome<()> {
        let mut histories = Vec::new();
        let mut monitors = HashSet::new();
        let present = self
            .members
            .iter()
            .map(|member| (member.number, member.incarnation, member.role, member.history.clone()));
        for (number, incarnation, role, path) in present.chain(self.gone.iter().cloned()) {
            let history = History::read(number, incarnation, &path)?;
            if role == Role::Monitor {
                monitors.extend(history.records.iter().map(|record| record.own));
            }
            histories.push(history);
        }
        let verdict = check(&histories);
        let mut findings = verdict.findings;
        self.report.add(&verdict.tally);
        let dropped = self.report.tally.dropped;
        self.watch.listen()?;
        let announced = self.watch.announced(&verdict.connections, &monitors, &mut findings);
        let numbers = self.watch.numbers(&verdict.connections, dropped, &mut findings)?;
        for (check, made) in [(Check::Announced, announced), (Check::Numbers, numbers)] {
            *self.report.tally.checks.entry(check).or_default() += made;
        }
        self.report.by_lane = self.watch.by_lane;
        self.report.findings.extend(findings);
        if let (Some(dir), false) = (&self.settings.histories, self.report.findings.is_empty()) {
            std::fs::create_dir_all(dir)?;
            for history in &histories {
                let path = dir.join(format!("{}-{}.txt", history.client, history.incarnation));
                std::fs::write(path, history.last_steps(usize::MAX).join("\n"))?;
            }
        }
        let kept: Vec<_> = self.report.findings.iter().take(ENOUGH).cloned().collect();
        for finding in kept {
            self.report.steps.extend(steps(&finding, &histories));
        }
        if !self.report.findings.is_empty() {
            self.report.steps.push("kdbusd, last words:".to_owned());
            self.report.steps.extend(self.daemon.last_words().into_iter().map(|line| format!("    {line}")));
        }
        Ok(())
    }

    /// Has those of some roles leave.
    fn leave(&mut self, who: impl Fn(Role) -> bool) -> Outcome<()> {
        for member in self.members.iter_mut().filter(|member| who(member.role)) {
            self.ended_well.insert((member.number, member.incarnation));
            member.tell("leave");
        }
        let began = Instant::now();
        while let Some(number) =
            self.members.iter().find(|member| who(member.role)).map(|member| member.number)
        {
            self.hear(Duration::from_millis(2));
            self.bury()?;
            if began.elapsed() > PATIENCE {
                self.find_hanging(number, "leave")?;
            }
        }
        self.gone.clear();
        Ok(())
    }

    /// Everybody leaves, and the daemon has to be as it was.
    fn everybody_leaves(&mut self) -> Outcome<()> {
        self.leave(|_| true)?;
        self.watch.listen()?;
        // Descriptors that clients passed are closed by a thread of their own.
        let mut gauges = self.daemon.gauges()?;
        let began = Instant::now();
        while (gauges.descriptors > self.base.descriptors || gauges.mappings > self.base.mappings)
            && began.elapsed() < PATIENCE / 6
        {
            std::thread::sleep(Duration::from_millis(10));
            self.watch.listen()?;
            gauges = self.daemon.gauges()?;
        }
        let steady = *self.steady.get_or_insert(gauges);
        self.report.gauges = [self.base, steady, gauges];
        for (check, what, now, then) in [
            (Check::Descriptors, "descriptors", gauges.descriptors as u64, self.base.descriptors as u64),
            (Check::Mappings, "mapped memory files", gauges.mappings as u64, self.base.mappings as u64),
            (Check::Memory, "KiB of memory", gauges.memory, steady.memory + MEMORY_SLACK),
        ] {
            *self.report.tally.checks.entry(check).or_default() += 1;
            if now > then {
                let text = format!("with everybody gone, kdbusd has {now} {what}; at most {then} are right");
                self.report.findings.push(finding(check, text));
            }
        }
        Ok(())
    }
}

/// The last steps of those who are involved in a finding, and all steps about its message.
fn steps(finding: &Finding, histories: &[History]) -> Vec<String> {
    const LAST: usize = 12;
    let mut lines = vec![format!("{}: {}", finding.check.text(), finding.text)];
    let sent_at = finding.message.and_then(|id| histories.iter().find_map(|history| history.sent_at(id)));
    for history in histories {
        let process = (history.client, history.incarnation);
        let about = finding.message.map(|id| history.steps_about(id)).unwrap_or_default();
        if !about.is_empty() {
            lines.push(format!("  client {}.{} about the message:", process.0, process.1));
            lines.extend(about.into_iter().map(|line| format!("    {line}")));
        }
        if let (true, Some((from, to))) = (finding.involved.contains(&process), sent_at) {
            lines.push(format!("  client {}.{} at that time:", process.0, process.1));
            let near = history.steps_between(from, to, 5 * LAST);
            lines.extend(near.into_iter().map(|line| format!("    {line}")));
        }
        if finding.involved.contains(&process) {
            lines.push(format!("  client {}.{}, last steps:", process.0, process.1));
            lines.extend(history.last_steps(LAST).into_iter().map(|line| format!("    {line}")));
        }
    }
    lines
}
