//! Which signals and notifications a connection hears.
#![allow(unsafe_code, reason = "exports names; there is no unsafe block")]

use core::ffi::{c_char, c_int, c_void};
use core::mem::MaybeUninit;

use kdbus_core::WellKnownName;
use kdbus_core::client::{MatchError, NameRule, Rule as CoreRule, TopicPattern};

use crate::bus::{Bus, with};
use crate::error::{Error, Refusal};
use crate::pointer;
use crate::send::well_known;

/// Rule: signals about `text`, a topic or a pattern ("org.example.*", "*").
pub const KDBUS_RT_RULE_TOPIC: u32 = 0;
/// Rule: signals whose filter has all bits of `mask`, in the size of the bus' filters.
pub const KDBUS_RT_RULE_BLOOM: u32 = 1;
/// Rule: signals of connection `id`.
pub const KDBUS_RT_RULE_SENDER: u32 = 2;
/// Rule: signals of whoever owns the name `text` when they are sent.
pub const KDBUS_RT_RULE_SENDER_NAME: u32 = 3;
/// Rule: signals sent to `id` alone, or to all with `id` KDBUS_RT_ANY.
pub const KDBUS_RT_RULE_DESTINATION: u32 = 4;
/// Rule: connection `id` appears, or any with KDBUS_RT_ANY.
pub const KDBUS_RT_RULE_ID_ADD: u32 = 5;
/// Rule: connection `id` vanishes, or any with KDBUS_RT_ANY.
pub const KDBUS_RT_RULE_ID_REMOVE: u32 = 6;
/// Rule: the name `text`, or any with NULL, gets its first owner.
pub const KDBUS_RT_RULE_NAME_ADD: u32 = 7;
/// Rule: the name `text`, or any with NULL, loses its last owner.
pub const KDBUS_RT_RULE_NAME_REMOVE: u32 = 8;
/// Rule: the name `text`, or any with NULL, moves to another connection.
pub const KDBUS_RT_RULE_NAME_CHANGE: u32 = 9;

/// Any connection, in a rule; everybody, as a destination.
pub const KDBUS_RT_ANY: u64 = u64::MAX;

/// Match flag: first remove all matches with the same cookie.
pub const KDBUS_RT_MATCH_REPLACE: u64 = 1;

/// Rules that a match can have.
const RULES_MAX: usize = 32;

/// One condition of a match. All zero but for `kind` and what it speaks of is valid.
#[repr(C)]
#[derive(Debug)]
pub struct Rule {
    /// KDBUS_RT_RULE_...
    pub kind: u32,
    /// 0.
    pub reserved: u32,
    /// A topic, a pattern or a name.
    pub text: *const c_char,
    /// A connection.
    pub id: u64,
    /// Bits of a bloom filter.
    pub mask: *const c_void,
    /// Bytes at `mask`.
    pub mask_len: usize,
}

impl Rule {
    fn get<'a>(&self) -> Result<CoreRule<'a>, Error> {
        let id = (self.id != KDBUS_RT_ANY).then_some(self.id);
        if self.reserved != 0 {
            return Err(Refusal::invalid("rule", "has a reserved field").into());
        }
        let text = pointer::text(self.text, "text of a rule")?;
        let needed = || text.ok_or(Refusal::null("text of a rule"));
        let name = |text: Option<&'a str>| -> Result<Option<WellKnownName<'a>>, Error> {
            text.map(well_known).transpose()
        };
        let change = || Ok::<_, Error>(NameRule { name: name(text)?, old: None, new: None });
        Ok(match self.kind {
            KDBUS_RT_RULE_TOPIC => CoreRule::Topic(pattern(needed()?)?),
            KDBUS_RT_RULE_BLOOM => CoreRule::Bloom(pointer::bytes(self.mask, self.mask_len, "mask")?),
            KDBUS_RT_RULE_SENDER => CoreRule::Sender(self.id),
            KDBUS_RT_RULE_SENDER_NAME => CoreRule::SenderName(well_known(needed()?)?),
            KDBUS_RT_RULE_DESTINATION => CoreRule::Destination(self.id),
            KDBUS_RT_RULE_ID_ADD => CoreRule::IdAdd(id),
            KDBUS_RT_RULE_ID_REMOVE => CoreRule::IdRemove(id),
            KDBUS_RT_RULE_NAME_ADD => CoreRule::NameAdd(change()?),
            KDBUS_RT_RULE_NAME_REMOVE => CoreRule::NameRemove(change()?),
            KDBUS_RT_RULE_NAME_CHANGE => CoreRule::NameChange(change()?),
            _ => return Err(Refusal::invalid("rule", "is of an unknown kind").into()),
        })
    }
}

fn pattern(text: &str) -> Result<TopicPattern<'_>, Error> {
    TopicPattern::parse(text).map_err(Error::about("topic"))
}

/// Hears signals about `topic`: a topic ("org.example.Mixer.level"), all below a prefix ("org.example.Mixer.*"),
/// or all ("*"). The cookie for kdbus_rt_match_remove is written to `cookie` unless that is NULL.
///
/// Returns 0, -EMFILE with too many matches, -ECONNRESET if the bus is gone, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_subscribe(
    bus: Option<&mut Bus>,
    topic: *const c_char,
    cookie: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    with(bus, |bus| {
        let topic = pattern(pointer::text(topic, "topic")?.ok_or(Refusal::null("topic"))?)?;
        let added = bus.client().subscribe(topic)?;
        if let Some(cookie) = cookie {
            cookie.write(added);
        }
        Ok(())
    })
}

/// Hears what passes all of `count` rules, at most 32; without rules, everything. Rules for signals and rules for
/// announcements of the bus exclude each other. `cookie` is for removing the match, and several may have the
/// same. `flags` are 0 or KDBUS_RT_MATCH_REPLACE.
///
/// Returns 0, -EMFILE with too many matches, -EDOM for a mask of another size than the bus' filters, -EMSGSIZE for
/// too long rules, -ECONNRESET if the bus is gone, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_match_add(
    bus: Option<&mut Bus>,
    cookie: u64,
    flags: u64,
    rules: *const Rule,
    count: usize,
) -> c_int {
    with(bus, |bus| {
        let mut written = heapless::Vec::<_, RULES_MAX>::new();
        for rule in pointer::array(rules, count, "rules")? {
            written.push(rule.get()?).map_err(|_| Error::from(MatchError::TooLarge))?;
        }
        match flags {
            0 => bus.client().add_match(cookie, &written)?,
            KDBUS_RT_MATCH_REPLACE => bus.client().replace_match(cookie, &written)?,
            _ => return Err(Refusal::invalid("flags", "have an unknown bit").into()),
        }
        Ok(())
    })
}

/// Removes all matches with this cookie.
///
/// Returns 0, -EBADSLT if there is none, -ECONNRESET if the bus is gone, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_match_remove(bus: Option<&mut Bus>, cookie: u64) -> c_int {
    with(bus, |bus| Ok(bus.client().remove_match(cookie)?))
}

const _: () = assert!(
    KDBUS_RT_ANY == kdbus_core::abi::MATCH_ID_ANY && KDBUS_RT_ANY == kdbus_core::abi::DST_ID_BROADCAST
);
