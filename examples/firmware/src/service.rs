//! What the service does: it publishes readings, and answers calls about them.

use heapless::HistoryBuf;
use kdbus_core::client::{Connection, ErrorReply, Request, Topic};
use kdbus_linux::local::LocalTransport;
use zerocopy::IntoBytes;

use crate::reading::Reading;
use crate::sensor::Sensor;

/// The name that callers know.
pub(crate) const NAME: &str = "org.kdbus.Firmware";
/// The topic of a reading.
const TOPIC: &str = "org.kdbus.Firmware.reading";
/// Readings that are kept.
const KEPT: usize = 32;

/// The connection: it awaits no answers, and only messages that come meanwhile would be kept.
pub(crate) type Bus = Connection<LocalTransport, 1, 1>;
/// The last readings.
pub(crate) type History = HistoryBuf<Reading, KEPT>;

/// The sensor and what it said.
pub(crate) struct Service {
    sensor: Sensor,
    history: &'static mut History,
    published: u32,
    failing: bool,
}

impl Service {
    pub(crate) const fn new(sensor: Sensor, history: &'static mut History) -> Self {
        Self { sensor, history, published: 0, failing: false }
    }

    /// How many readings there were.
    pub(crate) const fn published(&self) -> u32 {
        self.published
    }

    /// Takes a reading and tells whoever listens.
    pub(crate) fn publish(&mut self, bus: &Bus) {
        let at = bus.now();
        let value = match self.sensor.read() {
            Ok(value) => value,
            Err(error) => {
                // Once, not ten times a second.
                if !core::mem::replace(&mut self.failing, true) {
                    defmt::warn!("the sensor fails: error {=i32}", error.raw_os_error());
                }
                return;
            }
        };
        if core::mem::take(&mut self.failing) {
            defmt::info!("the sensor is back");
        }
        let reading = Reading::new(at, self.published, self.sensor.kind(), value);
        self.history.write(reading);
        self.published = self.published.wrapping_add(1);
        defmt::debug!("reading {=u32}: {=i64}", reading.sequence, value);
        let told = Topic::parse(TOPIC).map(|topic| bus.signal(topic, reading.as_bytes()));
        match told {
            Ok(Ok(())) => {}
            Ok(Err(error)) => defmt::warn!("reading {=u32} is not published: {}", reading.sequence, error),
            Err(error) => defmt::error!("{=str} is no topic: {}", TOPIC, error),
        }
    }

    /// Answers a call: empty for the last reading, `history` for all that are kept, `kind` for what is measured.
    pub(crate) fn answer(&self, request: &mut Request<'_, LocalTransport>) -> Result<(), ErrorReply> {
        if !request.wants_reply() {
            return Ok(());
        }
        defmt::debug!("call of {=u64}", request.sender());
        match request.payload() {
            b"" => match self.history.recent() {
                Some(reading) => request.reply(reading.as_bytes()),
                None => Err(ErrorReply::new(ErrorReply::BUSY, "there is no reading yet")),
            },
            b"history" => {
                let mut readings = heapless::Vec::<u8, { KEPT * size_of::<Reading>() }>::new();
                // As many fit as are kept.
                self.history.oldest_ordered().for_each(|reading| {
                    let _ = readings.extend_from_slice(reading.as_bytes());
                });
                request.reply(&readings)
            }
            b"kind" => request.reply(self.sensor.kind().name().as_bytes()),
            _ => Err(ErrorReply::new(ErrorReply::UNKNOWN_METHOD, "ask with nothing, history or kind")),
        }
    }
}
