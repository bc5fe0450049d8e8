//! Chance that can be had again: numbers from a seed, which is printed.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// A stream of numbers.
pub(crate) struct Chance(u64);

impl Chance {
    /// From the seed that was asked for, or from the clock.
    pub(crate) fn new(what: &str) -> Chance {
        let clock = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let seed = setting("SEED").unwrap_or(clock.as_millis() as u64);
        println!("{what}: SEGSPOOL_TORTURE_SEED={seed}");
        Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Another stream, which this one decides.
    pub(crate) fn fork(&mut self) -> Chance {
        Chance(self.below(u64::MAX).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end.max(1)
    }

    /// A moment within `range`.
    pub(crate) fn within(&mut self, range: Duration) -> Duration {
        Duration::from_micros(self.below(range.as_micros() as u64))
    }
}

/// What `SEGSPOOL_TORTURE_<name>` asks for.
pub(crate) fn setting<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(format!("SEGSPOOL_TORTURE_{name}"))
        .ok()
        .map(|value| {
            let parsed = value.parse().ok();
            parsed.unwrap_or_else(|| panic!("SEGSPOOL_TORTURE_{name}={value}"))
        })
}
