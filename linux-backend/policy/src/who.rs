//! Whom a rule is for.

use std::fmt;

use kdbus_core::abi::PolicyAccess;
use kdbus_core::client::Access;

/// Whom a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The user with this number.
    User(u32),
    /// Those with this group, whether it is their first one or one of the others.
    Group(u32),
    /// Everybody.
    World,
}

/// Somebody whose rights are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The user.
    pub uid: u32,
    /// All groups.
    pub groups: Vec<u32>,
}

impl Who {
    /// Reads `world`, `user:NAME`, `uid:UID`, `group:NAME` or `gid:GID`; `user:` and `group:` take numbers too. Names are looked up in the user database
    /// of the system, as of now.
    ///
    /// # Errors
    ///
    /// What is wrong, and what to do about it.
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        let form = "give \"world\", \"user:NAME\", \"uid:UID\", \"group:NAME\" or \"gid:GID\"";
        let (kind, name) = match text.split_once(':') {
            None if text == "world" => return Ok(Self::World),
            Some((kind, name)) if !name.is_empty() => (kind, name),
            _ => return Err((format!("{text:?} is nobody"), form.into())),
        };
        // The highest number stands for nobody, to the system and to the bus.
        let number = name.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        let unknown =
            |kind, fix: &str| (format!("there is no {kind} {name:?} on this machine"), fix.to_owned());
        let no_number = || {
            let what = format!("{name:?} is no number of a user or group");
            (what, format!("give one from 0 to 4294967294 behind {kind}:"))
        };
        match kind {
            "uid" => number.map(Self::User).ok_or_else(no_number),
            "gid" => number.map(Self::Group).ok_or_else(no_number),
            "user" => number
                .or_else(|| uzers::get_user_by_name(name).map(|user| user.uid()))
                .map(Self::User)
                .ok_or_else(|| unknown("user", "create it first, or give its number as \"uid:UID\"")),
            "group" => number
                .or_else(|| uzers::get_group_by_name(name).map(|group| group.gid()))
                .map(Self::Group)
                .ok_or_else(|| unknown("group", "create it first, or give its number as \"gid:GID\"")),
            _ => Err((format!("{text:?} is nobody"), form.into())),
        }
    }

    /// Whether a rule for these is one for `subject`.
    #[must_use]
    pub fn covers(self, subject: &Subject) -> bool {
        match self {
            Self::User(uid) => subject.uid == uid,
            Self::Group(gid) => subject.groups.contains(&gid),
            Self::World => true,
        }
    }

    pub(crate) const fn record(self, access: Access) -> PolicyAccess {
        match self {
            Self::User(uid) => PolicyAccess::user(uid, access),
            Self::Group(gid) => PolicyAccess::group(gid, access),
            Self::World => PolicyAccess::world(access),
        }
    }
}

impl fmt::Display for Who {
    /// As it is read, names where the system has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::World => f.write_str("world"),
            Self::User(uid) => match uzers::get_user_by_uid(uid) {
                Some(user) => write!(f, "user:{}", user.name().to_string_lossy()),
                None => write!(f, "user:{uid}"),
            },
            Self::Group(gid) => match uzers::get_group_by_gid(gid) {
                Some(group) => write!(f, "group:{}", group.name().to_string_lossy()),
                None => write!(f, "group:{gid}"),
            },
        }
    }
}

impl Subject {
    /// A user of the system by name or number, with all of its groups.
    ///
    /// # Errors
    ///
    /// What is wrong, and what to do about it.
    pub fn of_user(user: &str) -> Result<Self, String> {
        let found = match user.parse::<u32>() {
            Ok(uid) => uzers::get_user_by_uid(uid).ok_or(uid),
            Err(_) => match uzers::get_user_by_name(user) {
                Some(found) => Ok(found),
                None => return Err(format!("there is no user {user:?} on this machine; give a number")),
            },
        };
        Ok(match found {
            Ok(user) => {
                let others = uzers::get_user_groups(user.name(), user.primary_group_id()).unwrap_or_default();
                let mut groups: Vec<u32> = others.iter().map(uzers::Group::gid).collect();
                groups.push(user.primary_group_id());
                groups.sort_unstable();
                groups.dedup();
                Self { uid: user.uid(), groups }
            }
            // A number that nobody has is in no group.
            Err(uid) => Self { uid, groups: Vec::new() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_rule_is_for_is_read_and_shown() {
        assert_eq!(Who::parse("world"), Ok(Who::World));
        assert_eq!(Who::parse("user:root"), Ok(Who::User(0)));
        assert_eq!(Who::parse("group:4000000"), Ok(Who::Group(4_000_000)));
        assert_eq!(Who::User(0).to_string(), "user:root");
        assert_eq!(Who::Group(4_000_000).to_string(), "group:4000000");
        assert_eq!((Who::parse("uid:5"), Who::parse("gid:0")), (Ok(Who::User(5)), Ok(Who::Group(0))));
        for wrong in ["uid:root", "gid:-1", "uid:4294967295"] {
            assert!(Who::parse(wrong).unwrap_err().0.contains("is no number"), "{wrong}");
        }
        assert!(Who::parse("user:4294967295").unwrap_err().0.contains("there is no user"));
        for wrong in ["", "everybody", "user:", "world:1", "root", "pid:5"] {
            assert!(Who::parse(wrong).unwrap_err().0.contains("is nobody"), "{wrong}");
        }
        assert!(Who::parse("user:no-such-user").unwrap_err().0.contains("there is no user"));
    }

    #[test]
    fn a_user_is_known_with_its_groups() {
        let root = Subject::of_user("root").unwrap();
        assert_eq!((root.uid, root.groups.contains(&0)), (0, true));
        assert!(Who::Group(0).covers(&root) && Who::World.covers(&root) && !Who::User(1).covers(&root));
        assert_eq!(Subject::of_user("4000000").unwrap(), Subject { uid: 4_000_000, groups: vec![] });
        assert!(Subject::of_user("no-such-user").is_err());
    }
}
