//! A new connection in the place of one that is gone.

use super::connection::{Connection, Link};
use super::encode::Buffer;
use super::error::{AcquireError, HelloError, MatchError};
use super::names::Acquired;
use super::registry::{REGISTRY_SIZE, RecordKind};
use super::transport::Transport;
use crate::WellKnownName;
use crate::abi::{MatchFlags, NameFlags};

/// What reconnecting brought back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Restored {
    /// Names that the connection owns again.
    pub names: u32,
    /// Names that it waits for now, whether or not it owned them before.
    pub queued: u32,
    /// Matches that are there again.
    pub matches: u32,
    /// Names and matches that were refused; each was reported.
    pub refused: u32,
    /// Names and matches that found no room in the registry of
    /// [`REGISTRY_SIZE`](super::REGISTRY_SIZE) bytes when they were asked for, and are not there.
    pub forgotten: u32,
}

/// Something that reconnecting could not bring back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotRestored<'a> {
    /// A name.
    Name(&'a str, AcquireError),
    /// A match, by its cookie.
    Match(u64, MatchError),
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Connects again over a new transport, with the HELLO of the first time, and asks for its matches and
    /// names again. What is refused is given to `refused` and asked for again at the next reconnect.
    ///
    /// The connection has a new id. Messages that had not been received are lost, and so is whatever others
    /// knew about the old one: deferred replies, the places in queues, a changed policy.
    ///
    /// # Errors
    ///
    /// [`HelloError`]; the connection is as it was, and can be reconnected again.
    pub fn reconnect(
        &mut self,
        transport: T,
        mut refused: impl FnMut(NotRestored<'_>),
    ) -> Result<Restored, HelloError> {
        let registry = self.registry.get_mut();
        let mut buffer = Buffer::<REGISTRY_SIZE>::zeroed();
        let hello = registry.body_mut(RecordKind::Hello).ok_or(HelloError::TooLarge)?;
        let arg = buffer.0.get_mut(..hello.len()).ok_or(HelloError::TooLarge)?;
        arg.copy_from_slice(hello);
        let link = Link::introduce(transport, arg)?;
        // The inbox refers to the old pool.
        self.inbox.get_mut().clear();
        self.link.replace(link);
        let mut restored = Restored { forgotten: registry.forgotten(), ..Restored::default() };
        // A copy, because acquiring a name writes it down again.
        buffer.0.fill(0);
        let mut at = 0;
        while let Some((record, range)) = self.registry.get_mut().get(at) {
            at = range.end;
            let key = record.key;
            let body = &mut buffer.0[..record.body.len()];
            body.copy_from_slice(record.body);
            match record.kind {
                RecordKind::Hello => {}
                RecordKind::Match => match self.link.add_written_match(key, MatchFlags::empty(), body) {
                    Ok(()) => restored.matches += 1,
                    Err(error) => {
                        restored.refused += 1;
                        crate::event!(warn, "match {:#x} is not restored: {:?}", key, error);
                        refused(NotRestored::Match(key, error));
                    }
                },
                RecordKind::Name => {
                    let Ok(name) = WellKnownName::from_bytes(body) else { continue };
                    match self.link.acquire(name, NameFlags::from_bits_retain(key)) {
                        Ok(acquired) => count(acquired, &mut restored),
                        Err(error) => {
                            restored.refused += 1;
                            crate::event!(warn, "name {:?} is not restored: {:?}", name.as_str(), error);
                            refused(NotRestored::Name(name.as_str(), error));
                        }
                    }
                }
            }
        }
        Ok(restored)
    }
}

const fn count(acquired: Acquired, restored: &mut Restored) {
    if acquired.is_owner() {
        restored.names += 1;
    } else {
        restored.queued += 1;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::rc::Rc;
    use std::vec::Vec;

    use super::super::fake::{Fake, connect, plain};
    use super::super::transport::Failure;
    use super::super::{Rule, TopicPattern};
    use super::*;
    use crate::abi::{Cmd, Command, Errno};
    use zerocopy::FromBytes;

    fn name(text: &str) -> WellKnownName<'_> {
        WellKnownName::parse(text).unwrap()
    }

    #[test]
    fn names_and_matches_come_back_and_refusals_are_told() {
        let (mut connection, _) = connect::<1, 1>();
        connection.subscribe(TopicPattern::parse("a.*").unwrap()).unwrap();
        connection.add_match(70, &[Rule::IdAdd(None)]).unwrap();
        connection.add_match(71, &[Rule::Sender(5)]).unwrap();
        connection.remove_match(71).unwrap();
        for text in ["a.b", "c.d", "e.f"] {
            connection.acquire(name(text), NameFlags::QUEUE).unwrap();
        }
        connection.release(name("e.f")).unwrap();

        let fake = Fake::default();
        let script = Rc::clone(&fake.0);
        *script.answer.borrow_mut() = Some(Box::new(|command, arg| match command {
            Command::NameAcquire if arg.ends_with(b"a.b\0") => Err(Failure::Refused(Errno::EPERM)),
            Command::NameAcquire => {
                Cmd::mut_from_prefix(arg).unwrap().0.return_flags = NameFlags::PRIMARY.bits();
                Ok(())
            }
            _ => Ok(()),
        }));
        let mut lost = Vec::new();
        let restored = connection.reconnect(fake, |refused| lost.push(std::format!("{refused:?}"))).unwrap();
        assert_eq!(restored, Restored { names: 1, queued: 0, matches: 2, refused: 1, forgotten: 0 });
        assert_eq!(lost, ["Name(\"a.b\", Denied)"]);
        let commands: Vec<_> = script.commands.borrow().iter().map(|(command, _)| *command).collect();
        let expected = [
            Command::Hello,
            Command::MatchAdd,
            Command::MatchAdd,
            Command::NameAcquire,
            Command::NameAcquire,
        ];
        assert_eq!(commands, expected);
        assert_eq!(script.held(), 0);
    }

    #[test]
    fn a_refused_hello_leaves_the_connection_to_try_again() {
        let (mut connection, old) = connect::<1, 1>();
        connection.acquire(name("a.b"), NameFlags::QUEUE).unwrap();
        old.broken.set(true);
        let dead = Fake::default();
        dead.0.broken.set(true);
        assert!(connection.reconnect(dead, |_| ()).is_err_and(|error| error.is_broken()));
        let restored = connection.reconnect(Fake::default(), |_| ()).unwrap();
        assert_eq!((restored.names + restored.queued, restored.refused), (1, 0));
    }

    #[test]
    fn cookies_go_on_where_they_were() {
        let (mut connection, _) = connect::<1, 1>();
        let first = connection.send(&super::super::Message::to(3)).unwrap();
        connection.reconnect(Fake::default(), |_| ()).unwrap();
        assert_eq!(connection.send(&super::super::Message::to(3)), Ok(first + 1));
    }

    #[test]
    fn messages_of_the_old_bus_are_gone() {
        let (mut connection, script) = connect::<1, 1>();
        let call = connection.call(&super::super::Message::to(3), core::time::Duration::from_secs(1));
        script.queue(plain(1, 0));
        connection.process(connection.now()).unwrap();
        drop(call);
        connection.reconnect(Fake::default(), |_| ()).unwrap();
        assert!(connection.try_recv().unwrap().is_none());
    }
}
