//! A service's loop: take what comes, answer each call.

use core::cell::Cell;
use core::fmt;
use core::ops::{Deref, DerefMut};

use super::connection::{Connection, Link};
use super::deadline::Deadline;
use super::delivery::{Delivery, Kind};
use super::error::RecvError;
use super::error_reply::ErrorReply;
use super::message::{Message, ReplyTo};
use super::transport::Transport;

/// One message that a service is to handle: mostly a call, but also signals, notifications and plain
/// messages, which take no answer. It is a [`Delivery`] that can be answered.
pub struct Request<'c, T: Transport + 'c> {
    message: Delivery<'c, T>,
    link: &'c Link<T>,
    answered: Cell<bool>,
    stop: Cell<bool>,
}

impl<'c, T: Transport> Request<'c, T> {
    /// Whether the sender waits for an answer that nobody has given yet.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        // kdbus: a reply names the cookie of its call, and 0 names none.
        !self.answered.get() && self.message.kind() == Kind::Call && self.message.cookie() != 0
    }

    /// Answers with `payload`, which may be the request's own. Does nothing if no answer is wanted.
    ///
    /// # Errors
    ///
    /// An [`ErrorReply`] for the caller, if the answer could not be sent; to be passed on with `?`.
    pub fn reply(&self, payload: &[u8]) -> Result<(), ErrorReply> {
        if !self.wants_reply() {
            return Ok(());
        }
        self.link.send(&Message::reply(self.message.reply_to()).payload(payload))?;
        self.answered.set(true);
        Ok(())
    }

    /// Answers with a message, made from [`Message::reply`], that can have memfds and descriptors.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply).
    pub fn reply_with<'m>(&'m self, reply: &Message<'m, T::BorrowedFd<'m>>) -> Result<(), ErrorReply> {
        self.link.send(reply)?;
        self.answered.set(true);
        Ok(())
    }

    /// Keeps the loop from answering: the service will do it later, with
    /// [`Connection::reply`] or [`Message::reply`].
    pub fn defer(&self) -> ReplyTo {
        self.answered.set(true);
        self.message.reply_to()
    }

    /// Ends the loop once this request is handled.
    pub fn stop(&self) {
        self.stop.set(true);
    }

    /// Sends the answer that is still owed; true if the loop goes on.
    fn conclude(self, result: Result<(), ErrorReply>) -> bool {
        let owed = self.wants_reply();
        let sent = match result {
            Ok(()) => self.reply(b""),
            Err(error) if owed => {
                self.link.reply_error(self.message.reply_to(), &error).map_err(ErrorReply::from)
            }
            Err(_) => Ok(()),
        };
        if let Err(error) = &sent {
            crate::event!(warn, "a call is left without an answer: error {}", error.code());
            self.link.count(|stats| stats.unanswered += 1);
        }
        !self.stop.get()
    }
}

impl<'c, T: Transport> Deref for Request<'c, T> {
    type Target = Delivery<'c, T>;

    fn deref(&self) -> &Delivery<'c, T> {
        &self.message
    }
}

impl<'c, T: Transport> DerefMut for Request<'c, T> {
    fn deref_mut(&mut self) -> &mut Delivery<'c, T> {
        &mut self.message
    }
}

impl<T: Transport> fmt::Debug for Request<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Request").field(&self.message).finish()
    }
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Hands each message that comes to `handler`, until one [stops](Request::stop) the loop.
    ///
    /// A call that the handler returned from is always answered: with its own reply, with an empty one after
    /// `Ok`, or with the error it returned. An answer that cannot be sent is counted in
    /// [`Stats`](super::Stats); neither that nor an error ends the loop. While the handler waits for something,
    /// no other message is handled.
    ///
    /// # Errors
    ///
    /// [`RecvError`] when nothing can be received any more.
    pub async fn serve<H>(&self, mut handler: H) -> Result<(), RecvError>
    where
        H: AsyncFnMut(&mut Request<'_, T>) -> Result<(), ErrorReply>,
    {
        loop {
            let mut request = self.request(self.recv().await?);
            let result = handler(&mut request).await;
            if !request.conclude(result) {
                return Ok(());
            }
        }
    }

    /// As [`serve`](Self::serve), and waits in the transport.
    ///
    /// # Errors
    ///
    /// [`RecvError`]: `EOPNOTSUPP` where the transport cannot wait.
    pub fn serve_blocking<H>(&self, mut handler: H) -> Result<(), RecvError>
    where
        H: FnMut(&mut Request<'_, T>) -> Result<(), ErrorReply>,
    {
        loop {
            let mut request = self.request(self.recv_blocking(Deadline::Never)?);
            let result = handler(&mut request);
            if !request.conclude(result) {
                return Ok(());
            }
        }
    }

    /// Hands one message to `handler` if one waits; false if none does. For programs with a loop of their own.
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub fn try_serve<H>(&self, handler: H) -> Result<bool, RecvError>
    where
        H: FnOnce(&mut Request<'_, T>) -> Result<(), ErrorReply>,
    {
        let Some(message) = self.try_recv()? else { return Ok(false) };
        let mut request = self.request(message);
        let result = handler(&mut request);
        request.conclude(result);
        Ok(true)
    }

    const fn request<'c>(&'c self, message: Delivery<'c, T>) -> Request<'c, T> {
        Request { message, link: &self.link, answered: Cell::new(false), stop: Cell::new(false) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::rc::Rc;
    use std::vec::Vec;

    use super::super::fake::{Fake, Script, connect, message, plain};
    use super::super::transport::Failure;
    use super::super::{PAYLOAD_ERROR, block_on};
    use super::*;
    use crate::abi::{Errno, Msg, MsgFlags};

    fn serving(requests: &[&[u8]]) -> (Connection<Fake, 1, 1>, Rc<Script>) {
        let (connection, script) = connect::<1, 1>();
        for (cookie, payload) in (1..).zip(requests) {
            let header = Msg {
                src_id: 3,
                cookie,
                flags: MsgFlags::EXPECT_REPLY.bits(),
                timeout_or_reply: 99,
                payload_type: 1,
                ..Msg::default()
            };
            script.queue(message(header, &[], payload));
        }
        (connection, script)
    }

    fn handle(request: &mut Request<'_, Fake>) -> Result<(), ErrorReply> {
        match request.payload() {
            b"echo" => request.reply(b"echo"),
            b"nothing" => Ok(()),
            b"later" => {
                request.defer();
                Ok(())
            }
            b"stop" => {
                request.stop();
                Ok(())
            }
            _ => Err(ErrorReply::new(ErrorReply::UNKNOWN_METHOD, "no such method")),
        }
    }

    /// Cookie, type and payload of each answer.
    fn answers(script: &Script) -> Vec<(u64, bool, Vec<u8>)> {
        let answer = |sent: &super::super::fake::Sent| {
            (sent.header.cookie_reply(), sent.header.payload_type == PAYLOAD_ERROR, sent.payload.clone())
        };
        script.sent.borrow().iter().map(answer).collect()
    }

    #[test]
    fn every_call_is_answered_once_until_one_stops_the_loop() {
        let (connection, script) = serving(&[b"", b"echo", b"nothing", b"later", b"what", b"stop", b"more"]);
        connection.serve_blocking(handle).unwrap();
        let mut error = 1_u32.to_le_bytes().to_vec();
        error.extend_from_slice(b"no such method");
        let expected = [
            (1, true, error.clone()),
            (2, false, b"echo".to_vec()),
            (3, false, Vec::new()),
            (5, true, error),
            (6, false, Vec::new()),
        ];
        assert_eq!(answers(&script), expected);
        assert_eq!(script.queue.borrow().len(), 1);
        assert_eq!(script.held(), 0);
    }

    #[test]
    fn what_is_no_call_gets_no_answer() {
        let (connection, script) = serving(&[]);
        script.queue(plain(1, 0));
        let mut seen = 0;
        let served = connection.try_serve(|request| {
            seen += 1;
            assert!(!request.wants_reply());
            request.reply(b"unasked")?;
            Err(ErrorReply::new(0, "no"))
        });
        assert_eq!((served, seen, script.sent.borrow().len()), (Ok(true), 1, 0));
        assert_eq!(connection.try_serve(handle), Ok(false));
    }

    #[test]
    fn an_answer_that_cannot_be_sent_does_not_end_the_loop() {
        let (connection, script) = serving(&[b"", b"echo", b"stop"]);
        let gone = Failure::Refused(Errno::EBADSLT);
        script.refusals.borrow_mut().extend([gone, gone, gone]);
        connection.serve_blocking(handle).unwrap();
        assert_eq!(connection.stats().unanswered, 2);
        assert_eq!(answers(&script), [(3, false, Vec::new())]);
    }

    #[test]
    fn a_handler_may_await_the_same_connection() {
        let (connection, script) = serving(&[b"first", b"stop"]);
        let served = block_on(
            &connection,
            connection.serve(async |request| {
                if request.payload() == b"first" {
                    let next = connection.recv().await;
                    assert_eq!(next.map(|next| next.payload().to_vec()), Ok(b"stop".to_vec()));
                    request.stop();
                }
                request.reply(b"done")
            }),
        );
        assert_eq!(served.unwrap(), Ok(()));
        assert_eq!(answers(&script), [(1, false, b"done".to_vec())]);
    }
}
