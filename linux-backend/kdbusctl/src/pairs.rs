//! `stats --lanes`: which way messages take from one peer to another, and why.

use kdbus_core::abi::Errno;
use kdbus_core::client::Failure as Refusal;
use kdbus_linux::local::pairs::{PAIRS_MAX, Pair, Route};
use serde_json::{Value, json};

use crate::bus::{Bus, Id};
use crate::failure::{Exit, Failure};
use crate::output;

/// A sender and a receiver with their titles, and what kdbusd says of the two.
#[derive(Clone, Debug)]
struct Row<'t> {
    from: &'t (u64, String),
    to: &'t (u64, String),
    route: Route,
    pair: Pair,
}

/// Prints all pairs of `everybody` that one of `chosen` is part of.
pub(crate) fn run(
    bus: &Bus,
    json: bool,
    everybody: &[(u64, String)],
    chosen: &[(u64, String)],
) -> Result<(), Failure> {
    let is_chosen = |id: u64| chosen.iter().any(|(other, _)| *other == id);
    let mut rows = Vec::new();
    for to in everybody {
        let senders: Vec<_> = everybody
            .iter()
            .filter(|from| from.0 != to.0 && (is_chosen(from.0) || is_chosen(to.0)))
            .collect();
        for senders in senders.chunks(PAIRS_MAX) {
            let mut pairs: Vec<_> =
                senders.iter().map(|from| Pair { sender: from.0, ..Pair::default() }).collect();
            match bus.transport().handle().pairs(to.0, &mut pairs) {
                // It left, or is nobody whom one may look at.
                Err(Refusal::Refused(Errno::ENXIO | Errno::EPERM)) => break,
                Err(error) => return Err(Failure::new(Exit::NoBus, format!("lanes to {}: {error}", to.1))),
                Ok(()) => {}
            }
            rows.extend(senders.iter().zip(pairs).filter_map(|(from, pair)| {
                let route = Route::from_number(pair.route).filter(|route| *route != Route::Gone)?;
                Some(Row { from, to, route, pair })
            }));
        }
    }
    if json {
        return output::line(json!({ "pairs": rows.iter().map(Row::value).collect::<Vec<_>>() }));
    }
    let header = ["FROM", "WHO", "TO", "WHO", "LANE", "MESSAGES", "BYTES", "WAITING", "WHY"];
    output::line(output::table(header, rows.iter().map(Row::row)))
}

impl Row<'_> {
    /// Bytes in the lane that were not received, as far as the two ends agree.
    const fn waiting(&self) -> u64 {
        let waiting = self.pair.sent.saturating_sub(self.pair.received);
        if waiting > self.pair.lane { self.pair.lane } else { waiting }
    }

    fn row(&self) -> [String; 9] {
        let by_lane = |number: u64| if self.pair.lane == 0 { "-".into() } else { number.to_string() };
        let lane = self.route == Route::Lane;
        [
            Id(self.from.0).to_string(),
            self.from.1.clone(),
            Id(self.to.0).to_string(),
            self.to.1.clone(),
            if lane { "yes" } else { "no" }.into(),
            by_lane(self.pair.messages),
            by_lane(self.pair.sent),
            by_lane(self.waiting()),
            if lane { "-".into() } else { self.route.to_string() },
        ]
    }

    fn value(&self) -> Value {
        let Pair { lane, messages, sent, .. } = self.pair;
        let by_lane = |number: u64| (lane != 0).then_some(number);
        let why = (self.route != Route::Lane).then_some(self.route);
        json!({
            "from": self.from.0, "from_who": self.from.1, "to": self.to.0, "to_who": self.to.1,
            "lane": self.route == Route::Lane,
            "reason": why.map(Route::word), "why": why.map(|why| why.to_string()),
            "lane_size": by_lane(lane), "claimed_messages": by_lane(messages), "claimed_bytes": by_lane(sent),
            "claimed_waiting": by_lane(self.waiting()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_ends_claim_is_shown_within_bounds() {
        let (from, to) = ((3, "a".to_owned()), (4, "b".to_owned()));
        let pair = Pair { lane: 4096, messages: u64::MAX, sent: 1 << 55, received: 8, ..Pair::default() };
        let row = Row { from: &from, to: &to, route: Route::Lane, pair };
        let text = row.row();
        assert_eq!((text[5].as_str(), text[7].as_str()), ("18446744073709551615", "4096"));
        let none = Row { route: Route::Monitored, pair: Pair::default(), ..row };
        assert_eq!((none.row()[5].as_str(), none.row()[4].as_str()), ("-", "no"));
        assert_eq!(
            (&none.value()["reason"], &none.value()["claimed_bytes"]),
            (&json!("monitored"), &Value::Null)
        );
    }
}
