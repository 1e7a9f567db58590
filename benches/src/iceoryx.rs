//! iceoryx2: publisher and subscriber each way, with its events to sleep on, or looked at all the time.
//!
//! Samples are filled where they are lent and read where they lie, as its documentation advises.

use std::fmt::Debug;
use std::io;
use std::path::Path as FsPath;

use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::sample::Sample;

use crate::case::{Case, SUBSCRIBERS};
use crate::end::{Client, Server, stamp};
use crate::job::Job;

type Ipc = ipc::Service;

/// One end of two services, one each way.
pub struct IceoryxEnd {
    publisher: Publisher<Ipc, [u8], ()>,
    subscriber: Subscriber<Ipc, [u8], ()>,
    notifier: Notifier<Ipc>,
    listener: Listener<Ipc>,
    case: Case,
    _node: Node<Ipc>,
}

fn other(error: impl Debug) -> io::Error {
    io::Error::other(format!("iceoryx2: {error:?}"))
}

impl IceoryxEnd {
    /// The client's end.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn client(dir: &FsPath, case: &Case) -> io::Result<Self> {
        Self::new(dir, case, ["there", "back"])
    }

    /// A server's end.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn server(job: &Job) -> io::Result<Self> {
        Self::new(&job.dir, &job.case, ["back", "there"])
    }

    fn new(dir: &FsPath, case: &Case, [to, from]: [&str; 2]) -> io::Result<Self> {
        set_log_level(LogLevel::Error);
        let mut config = Config::default();
        config.global.set_root_path(&Path::new(dir.as_os_str().as_encoded_bytes()).map_err(other)?);
        // Its shared memory lies where everybody's does, so the name tells one run from another.
        let name = dir.file_name().unwrap_or_default().to_string_lossy().replace('.', "_");
        config.global.prefix = FileName::new(format!("{name}_").as_bytes()).map_err(other)?;
        let node = NodeBuilder::new()
            .config(&config)
            .signal_handling_mode(SignalHandlingMode::Disabled)
            .create::<Ipc>()
            .map_err(other)?;
        let depth = ((8 << 20) / case.bytes).clamp(2, 256);
        let messages = |way: &str| {
            node.service_builder(&way.try_into().map_err(other)?)
                .publish_subscribe::<[u8]>()
                .enable_safe_overflow(false)
                .history_size(0)
                .max_publishers(SUBSCRIBERS)
                .max_subscribers(SUBSCRIBERS)
                .subscriber_max_buffer_size(depth)
                .subscriber_max_borrowed_samples(1)
                .open_or_create()
                .map_err(other)
        };
        let events = |way: &str| {
            node.service_builder(&format!("{way} event").as_str().try_into().map_err(other)?)
                .event()
                .max_listeners(SUBSCRIBERS)
                .max_notifiers(SUBSCRIBERS)
                .open_or_create()
                .map_err(other)
        };
        Ok(Self {
            publisher: messages(to)?
                .publisher_builder()
                .initial_max_slice_len(case.bytes)
                .max_loaned_samples(1)
                .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
                .create()
                .map_err(other)?,
            subscriber: messages(from)?.subscriber_builder().create().map_err(other)?,
            notifier: events(to)?.notifier_builder().create().map_err(other)?,
            listener: events(from)?.listener_builder().create().map_err(other)?,
            case: *case,
            _node: node,
        })
    }

    fn publish(&self, bytes: &[u8]) -> io::Result<()> {
        let sample = self.publisher.loan_slice_uninit(bytes.len()).map_err(other)?;
        sample.write_from_slice(bytes).send().map_err(other)?;
        if !self.case.spins() {
            self.notifier.notify().map_err(other)?;
        }
        Ok(())
    }

    fn next(&self) -> io::Result<Option<Sample<Ipc, [u8], ()>>> {
        loop {
            if let Some(sample) = self.subscriber.receive().map_err(other)? {
                return Ok(Some(sample));
            }
            if self.case.spins() {
                std::hint::spin_loop();
                return Ok(None);
            }
            self.listener.blocking_wait_one().map_err(other)?;
        }
    }
}

impl Client for IceoryxEnd {
    fn call(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.publish(buffer)?;
        loop {
            let Some(sample) = self.next()? else { continue };
            let bytes = sample.payload();
            if bytes.len() != buffer.len() {
                return Err(other("an answer of another length"));
            }
            let tail = buffer.len() - 8;
            for at in [0, tail] {
                buffer[at..at + 8].copy_from_slice(&bytes[at..at + 8]);
            }
            return Ok(());
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.publish(bytes)
    }
}

impl Server for IceoryxEnd {
    fn answer(&mut self) -> io::Result<()> {
        match self.next()? {
            Some(sample) => self.publish(sample.payload()),
            None => Ok(()),
        }
    }

    fn receive(&mut self) -> io::Result<Option<u64>> {
        Ok(self.next()?.and_then(|sample| stamp(sample.payload())))
    }
}
