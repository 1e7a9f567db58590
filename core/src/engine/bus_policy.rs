//! The policy that a host gives a bus, beside what activators and policy holders set.

use core::fmt;

use crate::PolicyName;
use crate::abi::{Errno, Item, ItemType, Items};

use super::Domain;
use super::domain::HandleState;
use super::host::{HandleId, Host};
use super::policy::{Database, Keeper, Policy};
use super::table::BusIx;

/// Why the policy of a bus stays as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PolicyRefused<'m> {
    /// The handle has made no bus, or its bus is gone.
    NoBus,
    /// An item is malformed, or a record stands before the first name.
    Malformed,
    /// The name stands there twice.
    Twice(&'m str),
    /// An activator or a policy holder has an entry for the name.
    Held(&'m str),
    /// Old and new entries do not fit [`Config::policy_entries`](super::Config::policy_entries) and
    /// [`Config::policy_records`](super::Config::policy_records) together.
    Full,
}

impl PolicyRefused<'_> {
    /// The code that the same refusal has for a policy holder.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoBus => Errno::EBADFD,
            Self::Malformed => Errno::EINVAL,
            Self::Twice(_) | Self::Held(_) => Errno::EEXIST,
            Self::Full => Errno::ENOMEM,
        }
    }
}

impl fmt::Display for PolicyRefused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBus => f.write_str("no such bus"),
            Self::Malformed => f.write_str("an item of the policy is malformed"),
            Self::Twice(name) => write!(f, "{name} stands there twice"),
            Self::Held(name) => {
                write!(f, "an activator or a policy holder that is connected has an entry for {name}")
            }
            Self::Full => f.write_str("old and new entries together find no room"),
        }
    }
}

impl core::error::Error for PolicyRefused<'_> {}

impl Domain<'_> {
    /// Puts entries in the place of all that this function has given to a bus before; `owner` is the handle
    /// that made the bus. All or nothing.
    ///
    /// `items` are NAME items, wildcards among them, each with its POLICY_ACCESS items behind it, as an
    /// ENDPOINT_UPDATE carries them. The entries are the bus' own: they last as long as it, and count as if
    /// each were that of a policy holder, so no activator or policy holder can have the same name. All lanes
    /// of the bus are closed. Who owns a name already keeps it.
    ///
    /// Cost: `O(items · log of all policy entries)`, and the host's work on lanes.
    ///
    /// # Errors
    ///
    /// [`PolicyRefused`]; the old entries stay, and so do the lanes.
    pub fn set_bus_policy<'m>(
        &mut self,
        host: &mut dyn Host,
        owner: HandleId,
        items: &'m [u8],
    ) -> Result<(), PolicyRefused<'m>> {
        let bus = self.bus_of(owner).ok_or(PolicyRefused::NoBus)?;
        if Items::new(items).any(|item| item.is_err()) {
            return Err(PolicyRefused::Malformed);
        }
        let read = || Items::new(items).filter_map(Result::ok);
        Policy::check(read(), usize::MAX, true, false).map_err(|_| PolicyRefused::Malformed)?;
        let database = Database::Bus(bus);
        match self.policy.replace(&mut self.buses[bus].policy, Keeper::Bus, database, read()) {
            Ok(()) => {
                self.close_lanes_on(host, bus);
                Ok(())
            }
            Err(Errno::EEXIST) => Err(self.conflict(database, read())),
            Err(_) => Err(PolicyRefused::Full),
        }
    }

    /// The bus that a handle made.
    fn bus_of(&self, owner: HandleId) -> Option<BusIx> {
        let place = self.handles.find(owner.index, owner.generation)?;
        match self.handles[place].state {
            HandleState::BusOwner(bus) => Some(bus),
            _ => None,
        }
    }

    /// Which of some checked names is taken, or else stands there twice. `O(names²)` at worst.
    fn conflict<'m>(
        &self,
        database: Database,
        items: impl Iterator<Item = Item<'m>> + Clone,
    ) -> PolicyRefused<'m> {
        let names = items.filter(|item| item.kind == ItemType::NAME).filter_map(|item| {
            let bytes = item.c_str()?;
            Some((core::str::from_utf8(bytes).ok()?, PolicyName::from_bytes(bytes).ok()?))
        });
        let mut held = names.clone().filter(|(_, name)| self.policy.is_of_connection(database, *name));
        if let Some((text, _)) = held.next() {
            return PolicyRefused::Held(text);
        }
        let twice = names
            .clone()
            .enumerate()
            .find(|(at, (text, _))| names.clone().take(*at).any(|(earlier, _)| earlier == *text));
        twice.map_or(PolicyRefused::Malformed, |(_, (text, _))| PolicyRefused::Twice(text))
    }
}

#[cfg(test)]
#[path = "bus_policy_tests.rs"]
mod tests;
