//! A connection that sees everything and sends nothing.

use super::connection::{Connection, Stats};
use super::deadline::Deadline;
use super::delivery::Delivery;
use super::error::{HelloError, QueryError, RecvError, UpdateError};
use super::hello::{Bus, Hello};
use super::query::{Listing, PeerInfo};
use super::transport::Transport;
use crate::Instant;
use crate::abi::{AttachFlags, ListFlags};

/// A connection that receives a copy of all traffic on the bus: messages, replies, signals, notifications.
///
/// It needs no matches, is invisible to others, and its pool fills like any other: what finds no room is
/// counted by [`take_lost`](Self::take_lost). Only the owner of a bus may monitor it.
#[derive(Debug)]
pub struct Monitor<T: Transport> {
    // It makes no calls, so nothing is ever kept in between.
    connection: Connection<T, 0, 1>,
}

impl<T: Transport> Monitor<T> {
    /// Makes a monitor of `transport`, which must not have been used before.
    ///
    /// # Errors
    ///
    /// [`HelloError`]; the transport is closed.
    pub fn hello(transport: T, hello: &Hello<'_>) -> Result<Self, HelloError> {
        Ok(Self { connection: Connection::with_capacities(transport, &hello.monitor())? })
    }

    /// The monitor's unique id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.connection.id()
    }

    /// The bus at the other end.
    #[must_use]
    pub const fn bus(&self) -> &Bus {
        self.connection.bus()
    }

    /// Time on the bus' clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.connection.now()
    }

    /// See [`Connection::stats`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.connection.stats()
    }

    /// Copies lost since the last call of this function, because there was no room for them.
    pub fn take_lost(&self) -> u64 {
        self.connection.take_lost()
    }

    /// See [`Connection::try_recv`].
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub fn try_recv(&self) -> Result<Option<Delivery<'_, T>>, RecvError> {
        self.connection.try_recv()
    }

    /// See [`Connection::recv`].
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub async fn recv(&self) -> Result<Delivery<'_, T>, RecvError> {
        self.connection.recv().await
    }

    /// See [`Connection::recv_blocking`].
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub fn recv_blocking(&self, deadline: impl Into<Deadline>) -> Result<Delivery<'_, T>, RecvError> {
        self.connection.recv_blocking(deadline)
    }

    /// See [`Connection::list`].
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub fn list(&self, flags: ListFlags) -> Result<Listing<'_, T>, QueryError> {
        self.connection.list(flags)
    }

    /// See [`Connection::conn_info`].
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub fn conn_info(&self, id: u64, metadata: AttachFlags) -> Result<PeerInfo<'_, T>, QueryError> {
        self.connection.conn_info(id, metadata)
    }

    /// Changes the metadata that copies come with.
    ///
    /// # Errors
    ///
    /// [`UpdateError`].
    pub fn ask_metadata(&self, metadata: AttachFlags) -> Result<(), UpdateError> {
        self.connection.update(None, Some(metadata))
    }

    /// See [`Connection::fd`].
    #[must_use]
    pub fn fd(&self) -> Option<i32> {
        self.connection.fd()
    }

    /// See [`Connection::poll_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.connection.poll_timeout()
    }

    /// See [`Connection::process`].
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub fn process(&self, now: Instant) -> Result<(), RecvError> {
        self.connection.process(now)
    }
}
