//! The two ends of a contender: the client that is measured, and the servers in processes of their own.

use std::io;

/// The client's end.
pub trait Client {
    /// Sends `buffer`, waits for the answer and puts that in its place.
    ///
    /// # Errors
    ///
    /// What failed.
    fn call(&mut self, buffer: &mut [u8]) -> io::Result<()>;

    /// Sends `bytes` to the server, or to all subscribers. Waits for room if there is none.
    ///
    /// # Errors
    ///
    /// What failed.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Whether what carries the messages is what the contender is named for.
    ///
    /// # Errors
    ///
    /// Why not.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A server's end.
pub trait Server {
    /// Waits for a call and sends its bytes back. One that looks instead of sleeping returns if there is none.
    ///
    /// # Errors
    ///
    /// What failed.
    fn answer(&mut self) -> io::Result<()>;

    /// Waits for a message and returns its first eight bytes. One that looks instead of sleeping returns `None` if
    /// there is none.
    ///
    /// # Errors
    ///
    /// What failed.
    fn receive(&mut self) -> io::Result<Option<u64>>;
}

/// Anything that carries packets both ways can be either end.
pub trait Packets {
    /// Sends a packet, and waits for room if there is none.
    ///
    /// # Errors
    ///
    /// What failed.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Waits for a packet; one that looks instead of sleeping returns `None` if there is none.
    ///
    /// # Errors
    ///
    /// What failed.
    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;
}

/// An end of something that carries packets, with a buffer for one.
pub struct PacketEnd<P> {
    packets: P,
    buffer: Vec<u8>,
}

impl<P: Packets> PacketEnd<P> {
    /// An end for packets of `bytes`.
    pub fn new(packets: P, bytes: usize) -> Self {
        Self { packets, buffer: vec![0; bytes] }
    }
}

impl Packets for Box<dyn Packets + '_> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        (**self).send(bytes)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        (**self).recv(buffer)
    }
}

impl<P: Packets> Client for PacketEnd<P> {
    fn call(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.packets.send(buffer)?;
        loop {
            match self.packets.recv(buffer)? {
                Some(len) if len == buffer.len() => return Ok(()),
                Some(_) => return Err(cut_off()),
                None => {}
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.packets.send(bytes)
    }
}

impl<P: Packets> Server for PacketEnd<P> {
    fn answer(&mut self) -> io::Result<()> {
        match self.packets.recv(&mut self.buffer)? {
            Some(len) => self.packets.send(self.buffer.get(..len).ok_or_else(cut_off)?),
            None => Ok(()),
        }
    }

    fn receive(&mut self) -> io::Result<Option<u64>> {
        Ok(self.packets.recv(&mut self.buffer)?.and_then(|_| stamp(&self.buffer)))
    }
}

/// The first eight bytes of a message.
#[must_use]
pub fn stamp(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|stamp| u64::from_ne_bytes(*stamp))
}

fn cut_off() -> io::Error {
    io::Error::other("a message was cut off")
}
