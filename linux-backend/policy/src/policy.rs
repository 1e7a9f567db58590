//! A policy, and what it grants.

use std::path::Path;

use kdbus_core::abi::{ItemType, ItemWriter, NoRoom};
use kdbus_core::client::Access;

use crate::error::{PolicyError, Problem};
use crate::file;
use crate::who::{Subject, Who};

/// What somebody may do with a name, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// See that it is there.
    See,
    /// Send to its owner.
    Talk,
    /// Own it.
    Own,
}

/// One right for one kind of people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What they may do.
    pub level: Level,
    /// Who.
    pub who: Who,
}

/// All rules for one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRules {
    /// The name, or a stem with `.*`.
    pub name: String,
    /// Its rules, in the order of the file: those to own, to talk, to see.
    pub rules: Vec<Rule>,
}

/// The policy of a bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    names: Vec<NameRules>,
}

impl Level {
    /// As it stands in the file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::See => "see",
            Self::Talk => "talk",
            Self::Own => "own",
        }
    }

    const fn access(self) -> Access {
        match self {
            Self::See => Access::See,
            Self::Talk => Access::Talk,
            Self::Own => Access::Own,
        }
    }
}

impl NameRules {
    /// The most that these rules grant to somebody.
    #[must_use]
    pub fn level(&self, subject: &Subject) -> Option<Level> {
        self.rules.iter().filter(|rule| rule.who.covers(subject)).map(|rule| rule.level).max()
    }
}

impl Policy {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`PolicyError`], with everything that is wrong.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let place = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let what = format!("cannot be read: {error}");
            let fix = "name a readable policy file".into();
            PolicyError::new(&place, vec![Problem { line: None, what, fix }])
        })?;
        Self::checked(&place, &text)
    }

    /// Reads the text of a file. Users and groups are looked up as of now.
    ///
    /// # Errors
    ///
    /// [`PolicyError`], with everything that is wrong.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        Self::checked("policy", text)
    }

    fn checked(place: &str, text: &str) -> Result<Self, PolicyError> {
        let names = file::read(text).map_err(|problems| PolicyError::new(place, problems))?;
        Ok(Self { names })
    }

    /// Each name with its rules, in the order of the file.
    #[must_use]
    pub fn names(&self) -> &[NameRules] {
        &self.names
    }

    /// The rules that decide about a well-known name: its own, or else those of its stem with `.*`.
    #[must_use]
    pub fn rules_for(&self, name: &str) -> Option<&NameRules> {
        let stem = name.rsplit_once('.').map_or("", |(stem, _)| stem);
        let exact = self.names.iter().find(|rules| rules.name == name);
        exact.or_else(|| self.names.iter().find(|rules| rules.name.strip_suffix(".*") == Some(stem)))
    }

    /// The policy as NAME and POLICY_ACCESS items.
    #[must_use]
    pub fn items(&self) -> Vec<u8> {
        // A name with its header and padding, and a record with its header.
        let size = self.names.iter().map(|rules| rules.name.len() + 32 + 40 * rules.rules.len()).sum();
        let mut buffer = vec![0; size];
        let mut writer = ItemWriter::new(&mut buffer);
        let written = self.names.iter().try_for_each(|rules| {
            writer.c_str(ItemType::NAME, &rules.name)?;
            rules.rules.iter().try_for_each(|rule| {
                writer.record(ItemType::POLICY_ACCESS, &rule.who.record(rule.level.access()))
            })
        });
        debug_assert_eq!(written, Ok::<(), NoRoom>(()), "the buffer was sized for them");
        let len = writer.len();
        buffer.truncate(len);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_granted_as_written() {
        let policy = Policy::parse(
            "[[name]]\nname = \"a.b\"\nown = [\"user:5\"]\ntalk = [\"group:7\"]\nsee = [\"world\"]\n\
             [[name]]\nname = \"a.*\"\ntalk = [\"world\"]\n",
        )
        .unwrap();
        let subject = |uid, groups: &[u32]| Subject { uid, groups: groups.to_vec() };
        let level = |name: &str, who: &Subject| policy.rules_for(name).and_then(|rules| rules.level(who));
        assert_eq!(level("a.b", &subject(5, &[])), Some(Level::Own));
        assert_eq!(level("a.b", &subject(6, &[7, 8])), Some(Level::Talk));
        assert_eq!(level("a.b", &subject(6, &[8])), Some(Level::See), "the exact name decides alone");
        assert_eq!(level("a.c", &subject(6, &[])), Some(Level::Talk));
        assert!(policy.rules_for("a.b.c").is_none() && policy.rules_for("b.c").is_none());
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Policy::load(Path::new("/no/such/policy.toml")).unwrap_err().to_string();
        assert!(error.starts_with("/no/such/policy.toml: cannot be read:"), "{error}");
    }

    #[test]
    fn items_are_what_the_bus_reads() {
        use kdbus_core::abi::{Items, PolicyAccess};
        let policy =
            Policy::parse("[[name]]\nname = \"a.b\"\nown = [\"user:5\"]\nsee = [\"world\"]\n").unwrap();
        let bytes = policy.items();
        let items: Vec<_> = Items::new(&bytes).map(Result::unwrap).collect();
        assert_eq!((items.len(), items[0].c_str()), (3, Some(&b"a.b"[..])));
        assert_eq!(items[1].record::<PolicyAccess>(), Some(PolicyAccess::user(5, Access::Own)));
        assert_eq!(items[2].record::<PolicyAccess>(), Some(PolicyAccess::world(Access::See)));
    }
}
