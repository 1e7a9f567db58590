//! A received message in the hands of C.
#![allow(unsafe_code)]

use std::boxed::Box;
use std::rc::Rc;

use kdbus_core::client::Delivery;
use kdbus_linux::local::LocalTransport;

use crate::Client;
use crate::bus::Shared;
use crate::error::{Error, Refusal};

/// A received message. Its bytes lie in the receive pool of its connection and do not change; freeing the
/// message gives them back.
// INVARIANT: `delivery` borrows from the client in `bus`, which an `Rc` keeps at one address: while there is a
// delivery, `bus` is there and is the one that it came from. Fields are dropped in order, `delivery` first. The
// `'static` is not true, and does no harm: whatever a delivery gives out borrows from the reference to it, which
// borrows from the message; no delivery is moved out of its message.
pub struct Message {
    delivery: Option<Delivery<'static, LocalTransport>>,
    bus: Option<Rc<Shared>>,
}

impl Message {
    /// A place for a message, with none in it.
    pub(crate) const fn empty() -> Self {
        Self { delivery: None, bus: None }
    }

    /// Receives into a free place of `bus`.
    ///
    /// # Errors
    ///
    /// What `receive` reports; `ENOBUFS` before anything is received if no place is free.
    pub(crate) fn receive(
        bus: &Rc<Shared>,
        receive: impl for<'c> FnOnce(&'c Client) -> Result<Delivery<'c, LocalTransport>, Error>,
    ) -> Result<Box<Self>, Error> {
        let Some(mut message) = bus.places.borrow_mut().pop() else {
            return Err(Refusal {
                errno: kdbus_core::abi::Errno::ENOBUFS,
                what: "every place for a message",
                why: "is held; free messages, or ask for more places with messages_max",
            }
            .into());
        };
        match receive(&bus.client) {
            Ok(delivery) => {
                // SAFETY: only the lifetime changes. The delivery borrows from `bus.client`, and `message.bus`
                // keeps that where it is for as long as `message.delivery` is there (INVARIANT).
                let delivery = unsafe {
                    core::mem::transmute::<Delivery<'_, LocalTransport>, Delivery<'static, LocalTransport>>(
                        delivery,
                    )
                };
                message.bus = Some(Rc::clone(bus));
                message.delivery = Some(delivery);
                Ok(message)
            }
            Err(error) => {
                bus.places.borrow_mut().push(message);
                Err(error)
            }
        }
    }

    /// The message, for as long as it is borrowed. Always there in a message that C holds.
    pub(crate) const fn delivery(&self) -> Option<&Delivery<'static, LocalTransport>> {
        self.delivery.as_ref()
    }

    /// The passed descriptor or memfd at `index`; see [`Delivery::take_fd`] and [`Delivery::take_memfd`].
    pub(crate) fn take(&mut self, memfd: bool, index: usize) -> Option<rustix::fd::OwnedFd> {
        let delivery = self.delivery.as_mut()?;
        if memfd { delivery.take_memfd(index) } else { delivery.take_fd(index) }
    }

    /// The connection that received it.
    pub(crate) const fn bus(&self) -> Option<&Rc<Shared>> {
        self.bus.as_ref()
    }

    /// Gives the message's bytes and its place back.
    pub(crate) fn free(mut self: Box<Self>) {
        self.delivery = None;
        if let Some(bus) = self.bus.take() {
            // There is capacity: the place was there before.
            bus.places.borrow_mut().push(self);
        }
    }
}
