//! Logs: to the `log` crate, to `defmt`, to both or to neither, as features say.

/// Logs one event of this crate or of a transport: `event!(info, "connection {} is there", id)`.
///
/// Levels are those of both loggers. `error`: something is broken; `warn`: something was lost or is not as it should
/// be; `info`: a connection or bus comes or goes; `debug`: a state changes, a command is refused; `trace`: a message
/// passes. What may happen for each message is never above `trace`.
///
/// The features are those of the crate that uses it. Without either, the values are not even looked at.
#[doc(hidden)]
#[macro_export]
macro_rules! event {
    ($level:ident, $text:literal $(, $value:expr)* $(,)?) => {{
        #[cfg(feature = "defmt")]
        ::defmt::$level!($text $(, $value)*);
        #[cfg(feature = "log")]
        ::log::$level!($text $(, $value)*);
        #[cfg(not(any(feature = "defmt", feature = "log")))]
        let _ = || { $(let _ = &$value;)* };
    }};
}
