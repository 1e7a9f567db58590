//! `endpoint`: another door to the bus, with a policy of its own.

use std::str::FromStr;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kdbus_core::PolicyName;
use kdbus_core::abi::{CMD_MAX_SIZE, Cmd, Command, ItemType, ItemWriter, MakeFlags, NoRoom, PolicyAccess};
use kdbus_core::client::{Access, Hello};
use kdbus_policy::Policy;
use serde_json::json;
use zerocopy::IntoBytes;

use crate::failure::{Exit, Failure};
use crate::{Global, bus, output};

/// Arguments of `endpoint`.
///
/// Only the owner of a bus can make endpoints. Whoever connects through one sees and reaches only what its policy allows;
/// without any rule that is nothing. The endpoint goes when this command ends.
#[derive(Debug, Args)]
pub(crate) struct Endpoint {
    /// Name, without the UID- that it gets in front
    name: String,
    /// Who may connect
    #[arg(long, value_enum, default_value = "owner")]
    access: Open,
    /// A rule, such as org.example.Mixer:talk:world, org.example.*:see:user:1000 or org.example.Mixer:own:group:29; can be given
    /// several times
    #[arg(long = "allow", value_name = "NAME:ACCESS:WHO")]
    rules: Vec<Rule>,
    /// Policy file (TOML) instead of rules, as kdbusd takes it for a bus
    #[arg(long, value_name = "FILE", conflicts_with = "rules")]
    policy: Option<PathBuf>,
}

/// Who may open the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Open {
    Owner,
    Group,
    World,
}

/// What somebody may do with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    name: String,
    access: PolicyAccess,
}

impl Endpoint {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let file = self.policy.as_ref().map(|file| Policy::load(file)).transpose();
        let file = file.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let (transport, _) = bus::transport(global, &Hello::new())?;
        let name = format!("{}-{}", rustix::process::geteuid().as_raw(), self.name);
        let handle = transport.handle();
        let refused = |doing: &str, error: &dyn std::fmt::Display| {
            Failure::new(Exit::Refused, format!("{doing} endpoint {name} of {}: {error}", handle.path()))
        };
        let mut arg = vec![0; CMD_MAX_SIZE];
        let size = self.make(&mut arg, &name).map_err(|_| Failure::usage("a shorter name"))?;
        handle
            .command(Command::EndpointMake.request(), &mut arg[..size])
            .map_err(|error| refused("making", &error))?;
        let size = match &file {
            Some(policy) => behind_head(&mut arg, &policy.items()),
            None => self.allowed(&mut arg),
        };
        let size = size.map_err(|_| Failure::usage("fewer rules: they fill a command"))?;
        handle
            .command(Command::EndpointUpdate.request(), &mut arg[..size])
            .map_err(|error| refused("setting the policy of", &error))?;
        let rules =
            file.map_or(self.rules.len(), |policy| policy.names().iter().map(|name| name.rules.len()).sum());
        if global.json {
            output::line(json!({ "endpoint": name, "rules": rules }))?;
        } else {
            output::line(format_args!(
                "endpoint {name} is there with {rules} rules; it goes when this command ends"
            ))?;
        }
        loop {
            std::thread::park();
        }
    }

    fn make(&self, arg: &mut [u8], name: &str) -> Result<usize, NoRoom> {
        let mut items = ItemWriter::behind(arg, size_of::<Cmd>())?;
        items.c_str(ItemType::MAKE_NAME, name)?;
        let flags = match self.access {
            Open::Owner => MakeFlags::empty(),
            Open::Group => MakeFlags::ACCESS_GROUP,
            Open::World => MakeFlags::ACCESS_WORLD,
        };
        let size = items.len();
        head(arg, size, flags.bits())
    }

    fn allowed(&self, arg: &mut [u8]) -> Result<usize, NoRoom> {
        let mut rules: Vec<_> = self.rules.iter().collect();
        // A name is given once, with all its rules behind it.
        rules.sort_by(|a, b| a.name.cmp(&b.name));
        let mut items = ItemWriter::behind(arg, size_of::<Cmd>())?;
        for same in rules.chunk_by(|a, b| a.name == b.name) {
            items.c_str(ItemType::NAME, &same[0].name)?;
            for rule in same {
                items.record(ItemType::POLICY_ACCESS, &rule.access)?;
            }
        }
        let size = items.len();
        head(arg, size, 0)
    }
}

/// Writes the argument of an ENDPOINT_UPDATE with these items.
fn behind_head(arg: &mut [u8], items: &[u8]) -> Result<usize, NoRoom> {
    let size = size_of::<Cmd>() + items.len();
    arg.get_mut(size_of::<Cmd>()..size).ok_or(NoRoom)?.copy_from_slice(items);
    head(arg, size, 0)
}

fn head(arg: &mut [u8], size: usize, flags: u64) -> Result<usize, NoRoom> {
    let head = Cmd { size: size as u64, flags, return_flags: 0 };
    arg.get_mut(..size_of::<Cmd>()).ok_or(NoRoom)?.copy_from_slice(head.as_bytes());
    Ok(size)
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "give NAME:see|talk|own:world, NAME:…:user:UID or NAME:…:group:GID";
        let parts: Vec<_> = text.split(':').collect();
        let [name, access, who @ ..] = parts.as_slice() else { return Err(form.into()) };
        PolicyName::from_bytes(name.as_bytes()).map_err(|error| format!("{name}: {error}"))?;
        let access = match *access {
            "see" => Access::See,
            "talk" => Access::Talk,
            "own" => Access::Own,
            _ => return Err(form.into()),
        };
        let id = |text: &str| {
            text.parse::<u32>().map_err(|_| format!("{text} is no number of a user or group; {form}"))
        };
        let access = match who {
            ["world"] => PolicyAccess::world(access),
            ["user", uid] => PolicyAccess::user(id(uid)?, access),
            ["group", gid] => PolicyAccess::group(id(gid)?, access),
            _ => return Err(form.into()),
        };
        Ok(Self { name: (*name).to_owned(), access })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_what_and_who() {
        let rule: Rule = "org.example.*:talk:user:7".parse().unwrap();
        assert_eq!((rule.name.as_str(), rule.access), ("org.example.*", PolicyAccess::user(7, Access::Talk)));
        assert_eq!("a.b:own:world".parse::<Rule>().unwrap().access, PolicyAccess::world(Access::Own));
        for wrong in
            ["a.b", "a.b:talk", "a.b:hear:world", "a.b:talk:user", "a.b:talk:group:x", "a:talk:world"]
        {
            assert!(wrong.parse::<Rule>().is_err(), "{wrong}");
        }
    }
}
