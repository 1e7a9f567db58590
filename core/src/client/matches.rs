//! Matches: which signals and notifications a connection hears.

use super::connection::{Connection, Link};
use super::encode::Buffer;
use super::error::MatchError;
use super::registry::RecordKind;
use super::topic::{FILTER_MAX, TopicPattern};
use super::transport::{Failure, Transport};
use crate::WellKnownName;
use crate::abi::{
    BloomParameter, CmdMatch, Command, IdChange, ItemType, ItemWriter, Items, MATCH_ID_ANY, MatchFlags,
    NoRoom,
};
use zerocopy::IntoBytes;

/// Bytes that the rules of one match may take, each with 16 bytes of its own, masks counted for topics too.
pub const RULES_SIZE: usize = 8192;

/// Matches up to this size are put together in a small buffer.
const SMALL_SIZE: usize = 512;

/// One condition of a match. A match passes what all its rules pass; without rules it passes everything.
///
/// The rules for messages and those for notifications exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule<'a> {
    /// Signals about these topics.
    Topic(TopicPattern<'a>),
    /// Signals whose filter has all bits of a mask: one mask, or one for each generation of filters.
    Bloom(&'a [u8]),
    /// Signals of this connection.
    Sender(u64),
    /// Signals of whoever owns this name when they are sent.
    SenderName(WellKnownName<'a>),
    /// Signals with this destination.
    Destination(u64),
    /// Connections that appear, this one or any.
    IdAdd(Option<u64>),
    /// Connections that vanish, this one or any.
    IdRemove(Option<u64>),
    /// Names that get their first owner.
    NameAdd(NameRule<'a>),
    /// Names that lose their last owner.
    NameRemove(NameRule<'a>),
    /// Names that move to another connection.
    NameChange(NameRule<'a>),
}

/// Which changes of names a rule passes. The default is every change of every name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameRule<'a> {
    /// This name, or any.
    pub name: Option<WellKnownName<'a>>,
    /// From this owner, or any.
    pub old: Option<u64>,
    /// To this owner, or any.
    pub new: Option<u64>,
}

impl<'a> Rule<'a> {
    /// This name gets its first owner.
    #[must_use]
    pub const fn name_added(name: WellKnownName<'a>) -> Self {
        Self::NameAdd(NameRule { name: Some(name), old: None, new: None })
    }

    /// This name loses its last owner.
    #[must_use]
    pub const fn name_removed(name: WellKnownName<'a>) -> Self {
        Self::NameRemove(NameRule { name: Some(name), old: None, new: None })
    }

    /// This name moves to another connection.
    #[must_use]
    pub const fn name_changed(name: WellKnownName<'a>) -> Self {
        Self::NameChange(NameRule { name: Some(name), old: None, new: None })
    }

    const fn hears_names(&self) -> bool {
        matches!(self, Self::NameAdd(_) | Self::NameRemove(_) | Self::NameChange(_))
    }

    /// Writes the rule as the registry keeps it, with topics as text.
    fn write(&self, items: &mut ItemWriter<'_>) -> Result<(), NoRoom> {
        let any = |id: Option<u64>| id.unwrap_or(MATCH_ID_ANY);
        match *self {
            Self::Topic(pattern) => items.c_str(TOPIC_RULE, pattern.as_str()),
            Self::Bloom(masks) => items.bytes(ItemType::BLOOM_MASK, masks),
            Self::Sender(id) => items.record(ItemType::ID, &id),
            Self::SenderName(name) => items.c_str(ItemType::NAME, name.as_str()),
            Self::Destination(id) => items.record(ItemType::DST_ID, &id),
            Self::IdAdd(id) => items.record(ItemType::ID_ADD, &IdChange { id: any(id), flags: 0 }),
            Self::IdRemove(id) => items.record(ItemType::ID_REMOVE, &IdChange { id: any(id), flags: 0 }),
            Self::NameAdd(rule) => rule.write(ItemType::NAME_ADD, items),
            Self::NameRemove(rule) => rule.write(ItemType::NAME_REMOVE, items),
            Self::NameChange(rule) => rule.write(ItemType::NAME_CHANGE, items),
        }
    }
}

impl NameRule<'_> {
    fn write(&self, kind: ItemType, items: &mut ItemWriter<'_>) -> Result<(), NoRoom> {
        let side = |id: Option<u64>| IdChange { id: id.unwrap_or(MATCH_ID_ANY), flags: 0 };
        let sides = [side(self.old), side(self.new)];
        match self.name {
            Some(name) => items.parts(kind, &[sides.as_bytes(), name.as_str().as_bytes(), &[0]]),
            None => items.bytes(kind, sides.as_bytes()),
        }
    }
}

/// A topic pattern before it becomes a mask, for which the bus' parameters are needed. Never sent.
const TOPIC_RULE: ItemType = ItemType(u64::MAX);

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Hears what passes all of `rules`. `cookie` is for removing the match; several may have the same.
    ///
    /// # Errors
    ///
    /// [`MatchError`].
    pub fn add_match(&self, cookie: u64, rules: &[Rule<'_>]) -> Result<(), MatchError> {
        self.match_rules(cookie, MatchFlags::empty(), rules)
    }

    /// As [`add_match`](Self::add_match), and first removes all matches with this cookie.
    ///
    /// # Errors
    ///
    /// [`MatchError`]; nothing has changed: with [`MatchError::TooMany`] there was no match with this cookie.
    pub fn replace_match(&self, cookie: u64, rules: &[Rule<'_>]) -> Result<(), MatchError> {
        self.match_rules(cookie, MatchFlags::REPLACE, rules)
    }

    /// Hears signals about `topic`, given as [`Topic`](super::Topic) or as pattern. Returns the cookie of the
    /// new match.
    ///
    /// # Errors
    ///
    /// [`MatchError`].
    pub fn subscribe<'a>(&self, topic: impl Into<TopicPattern<'a>>) -> Result<u64, MatchError> {
        let cookie = self.link.cookie();
        self.add_match(cookie, &[Rule::Topic(topic.into())])?;
        Ok(cookie)
    }

    /// Removes all matches with this cookie.
    ///
    /// # Errors
    ///
    /// [`MatchError`]: `EBADSLT` if there is none.
    pub fn remove_match(&self, cookie: u64) -> Result<(), MatchError> {
        self.link.remove_match(cookie)?;
        self.forget_matches(cookie);
        Ok(())
    }

    fn match_rules(&self, cookie: u64, flags: MatchFlags, rules: &[Rule<'_>]) -> Result<(), MatchError> {
        if rules.is_empty() || rules.iter().any(Rule::hears_names) {
            // Before the match is there, so that no notification that it passes is taken for one's own.
            self.hears_names.set(true);
        }
        self.link.add_match(cookie, flags, rules)?;
        if flags.contains(MatchFlags::REPLACE) {
            self.forget_matches(cookie);
        }
        let mut buffer = [0; super::REGISTRY_SIZE];
        let mut items = ItemWriter::new(&mut buffer);
        let written = rules.iter().try_for_each(|rule| rule.write(&mut items));
        let body = if written.is_ok() { items.as_bytes() } else { &buffer[..] };
        // Rules that are longer than the whole registry cannot be kept; it counts them.
        self.registry.borrow_mut().add(RecordKind::Match, cookie, body);
        Ok(())
    }

    fn forget_matches(&self, cookie: u64) {
        self.registry.borrow_mut().remove(|record| record.kind == RecordKind::Match && record.key == cookie);
    }
}

impl<T: Transport> Link<T> {
    pub(super) fn add_match(
        &self,
        cookie: u64,
        flags: MatchFlags,
        rules: &[Rule<'_>],
    ) -> Result<(), MatchError> {
        let mut small = [0; SMALL_SIZE];
        let mut items = ItemWriter::new(&mut small);
        if rules.iter().try_for_each(|rule| rule.write(&mut items)).is_ok() {
            return self.add_written_match(cookie, flags, items.as_bytes());
        }
        let mut large = [0; RULES_SIZE];
        let mut items = ItemWriter::new(&mut large);
        rules.iter().try_for_each(|rule| rule.write(&mut items)).map_err(|_| MatchError::TooLarge)?;
        self.add_written_match(cookie, flags, items.as_bytes())
    }

    /// Adds a match whose rules are written as the registry keeps them.
    pub(super) fn add_written_match(
        &self,
        cookie: u64,
        flags: MatchFlags,
        rules: &[u8],
    ) -> Result<(), MatchError> {
        let topics = Items::new(rules).map_while(Result::ok).filter(|item| item.kind == TOPIC_RULE).count();
        let room = size_of::<CmdMatch>() + rules.len() + topics * (self.bus.bloom.size as usize + 16);
        if room <= SMALL_SIZE {
            self.send_match(cookie, flags, rules, &mut Buffer::<SMALL_SIZE>::zeroed().0)
        } else {
            self.send_match(cookie, flags, rules, &mut Buffer::<RULES_SIZE>::zeroed().0)
        }
    }

    fn send_match(
        &self,
        cookie: u64,
        flags: MatchFlags,
        rules: &[u8],
        buffer: &mut [u8],
    ) -> Result<(), MatchError> {
        let size = expand(rules, &self.bus.bloom, buffer).map_err(|_| MatchError::TooLarge)?;
        let head = CmdMatch { size: size as u64, flags: flags.bits(), return_flags: 0, cookie };
        buffer[..size_of::<CmdMatch>()].copy_from_slice(head.as_bytes());
        Ok(self.transport.command(Command::MatchAdd, &mut buffer[..size])?)
    }

    pub(super) fn remove_match(&self, cookie: u64) -> Result<(), Failure> {
        let size = size_of::<CmdMatch>() as u64;
        let mut arg = CmdMatch { size, flags: 0, return_flags: 0, cookie };
        self.transport.command(Command::MatchRemove, arg.as_mut_bytes())
    }
}

/// Writes rules behind the command's record with topics turned into masks; returns the size of it all.
fn expand(rules: &[u8], bloom: &BloomParameter, buffer: &mut [u8]) -> Result<usize, NoRoom> {
    let mut items = ItemWriter::behind(buffer, size_of::<CmdMatch>())?;
    for item in Items::new(rules).map_while(Result::ok) {
        if item.kind != TOPIC_RULE {
            items.bytes(item.kind, item.payload)?;
            continue;
        }
        let mut mask = [0; FILTER_MAX];
        let mask = mask.get_mut(..bloom.size as usize).ok_or(NoRoom)?;
        if let Some(pattern) = item.text().and_then(|text| TopicPattern::parse(text).ok()) {
            pattern.fill(mask, bloom.n_hash);
        }
        items.bytes(ItemType::BLOOM_MASK, mask)?;
    }
    Ok(items.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Frame;

    const BLOOM: BloomParameter = BloomParameter { size: 64, n_hash: 8 };

    #[test]
    fn every_rule_passes_the_framing_of_the_bus() {
        let name = WellKnownName::parse("org.example.Mixer").unwrap();
        let any = NameRule::default();
        let rules = [
            Rule::Topic(TopicPattern::parse("org.example.*").unwrap()),
            Rule::Bloom(&[1; 64]),
            Rule::Sender(5),
            Rule::SenderName(name),
            Rule::Destination(6),
            Rule::IdAdd(None),
            Rule::IdRemove(Some(4)),
            Rule::name_added(name),
            Rule::NameRemove(any),
            Rule::NameChange(NameRule { old: Some(0), ..any }),
        ];
        let mut kept = [0; 1024];
        let mut items = ItemWriter::new(&mut kept);
        rules.iter().try_for_each(|rule| rule.write(&mut items)).unwrap();
        let end = items.len();
        let mut buffer = [0; 1024];
        let size = expand(&kept[..end], &BLOOM, &mut buffer).unwrap();
        let head = CmdMatch { size: size as u64, ..CmdMatch::default() };
        buffer[..32].copy_from_slice(head.as_bytes());
        let frame = Frame::check(&mut buffer, Command::MatchAdd.shape(), false).unwrap();
        assert_eq!(frame.items().count(), rules.len());
        let (old, new, text) = frame.item(ItemType::NAME_ADD).unwrap().name_change().unwrap();
        assert_eq!((old.id, new.id, text), (MATCH_ID_ANY, MATCH_ID_ANY, &b"org.example.Mixer"[..]));
        let (old, new, text) = frame.item(ItemType::NAME_CHANGE).unwrap().name_change().unwrap();
        assert_eq!((old.id, new.id, text), (0, MATCH_ID_ANY, &b""[..]));
    }

    #[test]
    fn topics_become_masks_of_the_bus_they_are_sent_to() {
        let mut kept = [0; 64];
        let mut items = ItemWriter::new(&mut kept);
        let pattern = TopicPattern::parse("a.b").unwrap();
        Rule::Topic(pattern).write(&mut items).unwrap();
        let end = items.len();
        for size in [8, 64] {
            let bloom = BloomParameter { size, n_hash: 2 };
            let mut buffer = [0; 256];
            let end = expand(&kept[..end], &bloom, &mut buffer).unwrap();
            let mut expected = [0; 64];
            pattern.fill(&mut expected[..size as usize], 2);
            let item = Items::new(&buffer[32..end]).next().unwrap().unwrap();
            assert_eq!((item.kind, item.payload), (ItemType::BLOOM_MASK, &expected[..size as usize]));
        }
    }
}
