//! Peers that share memory and run in turns of a few accesses, in an order that a seed chooses.
//!
//! Each peer is a thread of the real machine, of which only one runs at any moment: whoever has the turn. At each access to
//! shared memory the turn may end, and the seed says who is next, and for how many accesses. It also says at which access a
//! peer is killed or stopped for a while, and which rings of a bell come late. So a seed is one interleaving, the same each
//! time. Every access is seen by all at once; orders that a weaker memory allows are for a model checker.

use core::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use kdbus_core::channel::Words;

use crate::machine::Random;

/// Accesses of a turn at most.
const TURN_MAX: u64 = 16;
/// Turns that a stopped peer misses, or by which a ring is late, at most.
const PAUSE_MAX: u64 = 60;
/// Turns, on average, for which some peers are favoured.
const FAVOUR: u64 = 20;
/// Turns after which a play is said to go on for ever.
const TURNS_MAX: u64 = 200_000;

/// With what a peer that is killed leaves.
struct Killed;

/// Words that peers of a stage share. All zero at first.
#[derive(Clone, Debug)]
pub struct Region(Arc<[AtomicU64]>);

impl Region {
    /// A region of `count` words.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    /// The words, for whoever looks at them when the play is over.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// What a seed may bring besides an order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mishaps {
    /// Up to this access, one of the peers that can be killed may be; 0 for none.
    pub kill_within: u64,
    /// Whether peers are stopped for a while.
    pub stops: bool,
    /// Whether rings come late, and peers wake up for nothing.
    pub delays: bool,
}

/// A peer's program.
type Part<'p> = Box<dyn FnOnce(&Actor) + Send + 'p>;

/// Peers and the seed that runs them.
pub struct Stage<'p> {
    random: Random,
    mishaps: Mishaps,
    parts: Vec<(Part<'p>, bool)>,
}

/// How one play went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Play {
    /// Who was killed.
    pub killed: Option<usize>,
    /// Accesses of each peer.
    pub accesses: Vec<u64>,
    /// Turns.
    pub turns: u64,
    /// Stops and late rings.
    pub pauses: u64,
}

/// What a peer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For its turn only.
    Turn,
    /// For its bell.
    Bell,
    /// For the end of another peer that it did not hear of.
    End,
    /// For a time when nobody else can do anything.
    Rest,
    /// It has ended.
    Over,
}

#[derive(Debug)]
struct Member {
    wait: Wait,
    /// How likely its turns are.
    weight: u64,
    /// Its bell was rung.
    is_rung: bool,
    /// Others that have ended and of which it did not hear.
    ended: Vec<usize>,
    /// The turn up to which it is stopped.
    stopped_until: u64,
    accesses: u64,
    /// Accesses before which it is killed, and stopped.
    kill_at: Option<u64>,
    stop_at: Option<u64>,
}

struct State {
    random: Random,
    delays: bool,
    members: Vec<Member>,
    current: usize,
    /// Nobody has begun yet.
    is_open: bool,
    /// Accesses left in this turn.
    left: u64,
    turn: u64,
    pauses: u64,
    /// Rings that are on their way: whose bell, and when they come.
    rings: Vec<(usize, u64)>,
    killed: Option<usize>,
    failed: Option<String>,
}

struct Shared {
    state: Mutex<State>,
    turns: Vec<Condvar>,
}

/// A peer, as its own program sees it.
pub struct Actor {
    index: usize,
    shared: Arc<Shared>,
}

/// A region as one peer sees it: each access may end its turn, and its life.
#[derive(Clone)]
pub struct Shown<'a> {
    region: Region,
    actor: &'a Actor,
}

impl<'p> Stage<'p> {
    /// A stage without peers.
    #[must_use]
    pub fn new(seed: u64, mishaps: Mishaps) -> Self {
        Self { random: Random::new(seed), mishaps, parts: Vec::new() }
    }

    /// Adds a peer, which the seed may kill. Its number is that of the peers before.
    #[must_use]
    pub fn peer(mut self, part: impl FnOnce(&Actor) + Send + 'p) -> Self {
        self.parts.push((Box::new(part), true));
        self
    }

    /// Adds a peer that is not killed, such as the bus.
    #[must_use]
    pub fn immortal(mut self, part: impl FnOnce(&Actor) + Send + 'p) -> Self {
        self.parts.push((Box::new(part), false));
        self
    }

    /// Plays until all peers have ended.
    ///
    /// # Errors
    ///
    /// What the first peer that panicked said, or that the play does not end.
    pub fn play(self) -> Result<Play, String> {
        let Self { mut random, mishaps, parts } = self;
        let mortals: Vec<usize> = (0..parts.len()).filter(|index| parts[*index].1).collect();
        let mut members: Vec<Member> = parts.iter().map(|_| Member::new()).collect();
        if mishaps.kill_within > 0 && !mortals.is_empty() {
            let who = mortals[random.below(mortals.len() as u64) as usize];
            members[who].kill_at = Some(1 + random.below(mishaps.kill_within));
        }
        if mishaps.stops {
            for member in &mut members {
                member.stop_at = Some(1 + random.below(64));
            }
        }
        let state = State {
            random,
            delays: mishaps.delays,
            members,
            current: 0,
            is_open: false,
            left: 0,
            turn: 0,
            pauses: 0,
            rings: Vec::new(),
            killed: None,
            failed: None,
        };
        let turns = parts.iter().map(|_| Condvar::new()).collect();
        let shared = Arc::new(Shared { state: Mutex::new(state), turns });
        thread::scope(|scope| {
            for (index, (part, _)) in parts.into_iter().enumerate() {
                let actor = Actor { index, shared: Arc::clone(&shared) };
                scope.spawn(move || actor.live(part));
            }
            let mut state = shared.lock();
            state.is_open = true;
            shared.next(&mut state);
        });
        let state = shared.lock();
        match &state.failed {
            Some(text) => Err(text.clone()),
            None => Ok(Play {
                killed: state.killed,
                accesses: state.members.iter().map(|member| member.accesses).collect(),
                turns: state.turn,
                pauses: state.pauses,
            }),
        }
    }
}

impl Member {
    const fn new() -> Self {
        Self {
            wait: Wait::Turn,
            weight: 1,
            is_rung: false,
            ended: Vec::new(),
            stopped_until: 0,
            accesses: 0,
            kill_at: None,
            stop_at: None,
        }
    }

    fn can_run(&self) -> bool {
        match self.wait {
            Wait::Turn => true,
            Wait::Bell => self.is_rung,
            Wait::End => !self.ended.is_empty(),
            Wait::Rest | Wait::Over => false,
        }
    }
}

impl State {
    /// Who goes on; `None` if all have ended.
    fn choose(&mut self) -> Option<usize> {
        loop {
            self.turn += 1;
            let turn = self.turn;
            let mut due = Vec::new();
            self.rings.retain(|(who, at)| {
                if *at <= turn {
                    due.push(*who);
                }
                *at > turn
            });
            due.into_iter().for_each(|who| self.members[who].is_rung = true);
            let ready: Vec<usize> = (0..self.members.len())
                .filter(|who| self.members[*who].can_run() && self.members[*who].stopped_until <= turn)
                .collect();
            if !ready.is_empty() {
                return Some(self.pick(&ready));
            }
            // Time goes on until somebody who is stopped, or a ring that is late, comes.
            let is_coming = |member: &Member| member.can_run() && member.stopped_until > turn;
            if !self.rings.is_empty() || self.members.iter().any(is_coming) {
                continue;
            }
            // Nobody can do anything: those who wait for that are told, one at a time, then those who sleep.
            let waiting = |wait| (0..self.members.len()).find(|who| self.members[*who].wait == wait);
            return waiting(Wait::Rest).or_else(|| waiting(Wait::Bell)).or_else(|| waiting(Wait::End));
        }
    }
}

impl State {
    /// One of those who can go on. Some are favoured for a while, so that others stand where they are for long.
    fn pick(&mut self, ready: &[usize]) -> usize {
        if self.random.below(FAVOUR) == 0 {
            for member in &mut self.members {
                member.weight = [1, 8, 64][self.random.below(3) as usize];
            }
        }
        let all: u64 = ready.iter().map(|who| self.members[*who].weight).sum();
        let mut at = self.random.below(all);
        for who in ready {
            let weight = self.members[*who].weight;
            if at < weight {
                return *who;
            }
            at -= weight;
        }
        ready[0]
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the turn to somebody.
    fn next(&self, state: &mut State) {
        let Some(next) = state.choose() else { return };
        state.current = next;
        // Most turns are short: what goes wrong mostly goes wrong between two accesses that follow each other.
        state.left = match state.random.below(3) {
            0 => 1,
            1 => 1 + state.random.below(4),
            _ => 1 + state.random.below(TURN_MAX),
        };
        if let Some(turn) = self.turns.get(next) {
            turn.notify_one();
        }
    }
}

impl Actor {
    /// Runs the peer's program, from its first turn to its end.
    fn live(self, part: Part<'_>) {
        drop(self.await_turn(self.shared.lock()));
        let ended = panic::catch_unwind(AssertUnwindSafe(|| part(&self)));
        let mut state = self.shared.lock();
        if let Err(reason) = ended
            && !reason.is::<Killed>()
            && state.failed.is_none()
        {
            let text = reason.downcast_ref::<String>().cloned();
            let text = text.or_else(|| reason.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            state.failed = Some(text.unwrap_or_else(|| "a panic without a text".to_owned()));
        }
        state.members[self.index].wait = Wait::Over;
        for (_, other) in state.members.iter_mut().enumerate().filter(|(other, _)| *other != self.index) {
            other.ended.push(self.index);
        }
        self.shared.next(&mut state);
    }

    fn await_turn<'s>(&self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        while !state.is_open || state.current != self.index || state.left == 0 {
            let turn = &self.shared.turns[self.index];
            state = turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Lets the turn go on elsewhere until `wait` is over. False if it never will be: nobody can do anything.
    fn give_way(&self, wait: Wait) -> bool {
        let mut state = self.shared.lock();
        assert!(state.turn < TURNS_MAX, "the play goes on for ever");
        state.members[self.index].wait = wait;
        state.left = 0;
        self.shared.next(&mut state);
        let mut state = self.await_turn(state);
        let member = &mut state.members[self.index];
        let came = member.can_run();
        member.wait = Wait::Turn;
        drop(state);
        came
    }

    /// What comes before each access.
    fn access(&self) {
        let mut state = self.shared.lock();
        let turn = state.turn;
        let member = &mut state.members[self.index];
        member.accesses += 1;
        if member.kill_at == Some(member.accesses) {
            state.killed = Some(self.index);
            drop(state);
            panic::resume_unwind(Box::new(Killed));
        }
        if member.stop_at == Some(member.accesses) {
            let pause = 1 + state.random.below(PAUSE_MAX);
            let again = state.random.below(96);
            let member = &mut state.members[self.index];
            member.stopped_until = turn + pause;
            member.stop_at = Some(member.accesses + 1 + again);
            state.left = 1;
            state.pauses += 1;
        }
        state.left -= 1;
        if state.left == 0 {
            drop(state);
            self.give_way(Wait::Turn);
        }
    }

    /// A region as this peer sees it.
    #[must_use]
    pub fn map(&self, region: &Region) -> Shown<'_> {
        Shown { region: region.clone(), actor: self }
    }

    /// Ends this turn, for a peer that looks again and again.
    pub fn pause(&self) {
        self.give_way(Wait::Turn);
    }

    /// Rings the bell of a peer. Like an access, before which this one may be killed.
    pub fn ring(&self, other: usize) {
        self.access();
        let mut state = self.shared.lock();
        if state.delays && state.random.below(3) == 0 {
            let at = state.turn + 1 + state.random.below(PAUSE_MAX);
            state.rings.push((other, at));
            state.pauses += 1;
        } else {
            state.members[other].is_rung = true;
        }
    }

    /// Sleeps until the own bell was rung, or woken for nothing. False if nobody can ring it any more.
    pub fn sleep(&self) -> bool {
        self.access();
        let mut state = self.shared.lock();
        if state.delays && state.random.below(8) == 0 {
            return true;
        }
        drop(state);
        let rung = self.give_way(Wait::Bell);
        self.shared.lock().members[self.index].is_rung = false;
        rung
    }

    /// Sleeps until another peer has ended, and returns its number. `None` if nobody will.
    #[must_use]
    pub fn next_end(&self) -> Option<usize> {
        let is_there = !self.shared.lock().members[self.index].ended.is_empty();
        if !is_there && !self.give_way(Wait::End) {
            return None;
        }
        self.shared.lock().members[self.index].ended.pop()
    }

    /// Returns when nobody else can do anything: all sleep.
    pub fn rest(&self) {
        self.give_way(Wait::Rest);
    }

    /// A number below `end` that the seed chooses.
    #[must_use]
    pub fn below(&self, end: u64) -> u64 {
        self.shared.lock().random.below(end)
    }
}

impl Shown<'_> {
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.actor.access();
        self.region.0.get(index)
    }
}

// Only one thread runs at a time, and hands over by a lock.
const ORDER: Ordering = Ordering::Relaxed;

impl Words for Shown<'_> {
    fn count(&self) -> usize {
        self.region.0.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.word(index).map_or(0, |word| word.load(ORDER))
    }

    fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index) {
            word.store(value, ORDER);
        }
    }

    fn swap(&self, index: usize, value: u64) -> u64 {
        self.word(index).map_or(0, |word| word.swap(value, ORDER))
    }

    fn set_bits(&self, index: usize, bits: u64) -> u64 {
        self.word(index).map_or(0, |word| word.fetch_or(bits, ORDER))
    }

    fn replace(&self, index: usize, expected: u64, new: u64) -> bool {
        self.word(index).is_some_and(|word| word.compare_exchange(expected, new, ORDER, ORDER).is_ok())
    }

    fn fence(&self) {
        self.actor.access();
    }
}

impl fmt::Debug for Stage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("mishaps", &self.mishaps).field("peers", &self.parts.len()).finish()
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor").field("index", &self.index).finish_non_exhaustive()
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("words", &self.region.0.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two peers count up a word each in two accesses; what comes out depends on the order.
    fn count(seed: u64, mishaps: Mishaps) -> (u64, Play) {
        let region = Region::new(1);
        let part = |actor: &Actor| {
            let words = actor.map(&region);
            for _ in 0..20 {
                words.store(0, words.load(0) + 1);
            }
        };
        let play = Stage::new(seed, mishaps).peer(part).peer(part).play().unwrap();
        (region.words()[0].load(ORDER), play)
    }

    #[test]
    fn a_seed_is_one_interleaving() {
        let mishaps = Mishaps { kill_within: 60, stops: true, delays: true };
        for seed in 0..20 {
            assert_eq!(count(seed, mishaps), count(seed, mishaps));
        }
        let outcomes: std::collections::BTreeSet<_> =
            (0..20).map(|seed| count(seed, Mishaps::default()).0).collect();
        assert!(outcomes.len() > 5, "orders differ: {outcomes:?}");
    }

    #[test]
    fn who_is_killed_makes_no_access_more_and_the_others_hear_of_it() {
        let region = Region::new(2);
        let mishaps = Mishaps { kill_within: 1, ..Mishaps::default() };
        let play = Stage::new(5, mishaps)
            .peer(|actor| actor.map(&region).store(0, 1))
            .immortal(|actor| {
                assert_eq!(actor.next_end(), Some(0));
                actor.map(&region).store(1, 1);
                assert_eq!(actor.next_end(), None);
            })
            .play()
            .unwrap();
        assert_eq!(play.killed, Some(0));
        assert_eq!((region.words()[0].load(ORDER), region.words()[1].load(ORDER)), (0, 1));
    }

    #[test]
    fn a_sleeper_wakes_by_its_bell_and_learns_that_nobody_rings() {
        let rung = AtomicU64::new(0);
        Stage::new(1, Mishaps::default())
            .peer(|actor| {
                assert!(actor.sleep());
                rung.store(1, ORDER);
                assert!(!actor.sleep());
            })
            .peer(|actor| {
                actor.ring(0);
                actor.rest();
                assert_eq!(rung.load(ORDER), 1);
            })
            .play()
            .unwrap();
    }

    #[test]
    fn a_panic_of_a_peer_and_a_play_without_end_are_told() {
        let failed = Stage::new(1, Mishaps::default()).peer(|_| panic!("wrong")).play();
        assert_eq!(failed, Err("wrong".to_owned()));
        let endless = Stage::new(1, Mishaps::default())
            .peer(|actor| {
                loop {
                    actor.pause()
                }
            })
            .play();
        assert_eq!(endless, Err("the play goes on for ever".to_owned()));
    }
}
