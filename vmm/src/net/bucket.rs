//! Limits on rates: token buckets, kept as the time at which each would be full again.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sealock_protocol::control::RateLimit;

/// Time is counted in picoseconds, so that rounding what one byte takes means nothing.
const SECOND: u128 = 1_000_000_000_000;
const NANOSECOND: u128 = 1_000;

/// What may come at once in any case, as time at the rate: a timer isn't exact.
const LEAST_BURST: u128 = 5 * SECOND / 1_000;

/// The limit of one direction of a device, whichever queue the packets go through.
pub struct Limit {
    start: Instant,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

/// A bucket (the generic cell rate algorithm, ITU-T I.371).
#[derive(Debug)]
struct Bucket {
    /// What fits in a second.
    rate: u128,
    /// How far `full` may lie ahead of the time.
    tolerance: u128,
    /// When everything taken so far has come back.
    full: u128,
}

impl Bucket {
    fn new(rate: u64, burst: u64) -> Option<Self> {
        let rate = u128::from(rate);
        (rate > 0).then(|| Self {
            rate,
            // Below 2^64 seconds.
            tolerance: (u128::from(burst) * SECOND / rate).max(LEAST_BURST),
            full: 0,
        })
    }

    /// How long nothing may be taken.
    fn wait(&self, now: u128) -> u128 {
        self.full.saturating_sub(now).saturating_sub(self.tolerance)
    }

    fn take(&mut self, amount: u64, now: u128) {
        let cost = u128::from(amount) * SECOND / self.rate;
        self.full = self.full.max(now).saturating_add(cost);
    }
}

impl Limit {
    /// The limit that `limit` describes; `None` if it limits nothing.
    #[must_use]
    pub fn new(limit: RateLimit) -> Option<Self> {
        let buckets = Buckets {
            bytes: Bucket::new(limit.bytes, limit.bytes_burst),
            packets: Bucket::new(limit.packets, limit.packets_burst),
        };
        let limits = buckets.bytes.is_some() || buckets.packets.is_some();
        limits.then(|| Self {
            start: Instant::now(),
            buckets: Mutex::new(buckets),
        })
    }

    fn now(&self) -> u128 {
        self.start.elapsed().as_nanos() * NANOSECOND
    }

    fn buckets(&self) -> std::sync::MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long no packet may pass; `None` when one may.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.buckets().wait(self.now())
    }

    /// A packet of `bytes` bytes passes. However large, the next ones wait for it.
    pub fn take(&self, bytes: u64) {
        let now = self.now();
        self.buckets().take(bytes, now);
    }
}

impl Buckets {
    fn wait(&self, now: u128) -> Option<Duration> {
        let buckets = [&self.bytes, &self.packets].into_iter().flatten();
        let wait = buckets.map(|bucket| bucket.wait(now)).max().unwrap_or(0);
        // Rounded up, so that the wait is over after it.
        let nanoseconds = u64::try_from(wait.div_ceil(NANOSECOND)).unwrap_or(u64::MAX);
        (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
    }

    fn take(&mut self, bytes: u64, now: u128) {
        for (bucket, amount) in [(&mut self.bytes, bytes), (&mut self.packets, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(amount, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(limit: RateLimit) -> Buckets {
        Limit::new(limit).unwrap().buckets.into_inner().unwrap()
    }

    /// How many packets of `size` pass within `time`, when there are always more.
    fn passed(buckets: &mut Buckets, size: u64, from: u128, time: u128) -> u64 {
        let (mut now, mut count) = (from, 0);
        loop {
            if let Some(wait) = buckets.wait(now) {
                now += wait.as_nanos() * NANOSECOND;
            }
            if now >= from + time {
                return count;
            }
            buckets.take(size, now);
            count += 1;
        }
    }

    #[test]
    fn a_rate_of_zero_limits_nothing() {
        assert!(Limit::new(RateLimit::default()).is_none());
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let mut buckets = buckets(RateLimit {
            bytes: 1_000_000,
            bytes_burst: 500_000,
            ..RateLimit::default()
        });
        let from = 10 * SECOND;
        let first = passed(&mut buckets, 1000, from, 1);
        assert!((500..=501).contains(&first), "{first}");
        let second = passed(&mut buckets, 1000, from + 1, SECOND);
        assert!((999..=1001).contains(&second), "{second}");
        let rest = passed(&mut buckets, 1000, from + 10 * SECOND, 1);
        assert!(
            (500..=501).contains(&rest),
            "after a silence there is a burst again: {rest}"
        );
    }

    #[test]
    fn both_buckets_hold() {
        let mut buckets = buckets(RateLimit {
            bytes: 1_000_000,
            packets: 100,
            packets_burst: 10,
            ..RateLimit::default()
        });
        let _ = passed(&mut buckets, 100, 0, SECOND);
        let small = passed(&mut buckets, 100, SECOND, SECOND);
        assert!((99..=101).contains(&small), "{small}");
        let large = passed(&mut buckets, 50_000, 2 * SECOND, SECOND);
        assert!((19..=21).contains(&large), "{large}");
    }

    #[test]
    fn the_fastest_rates_are_exact_and_the_largest_numbers_are_numbers() {
        let mut fast = buckets(RateLimit {
            bytes: 12_500_000_000,
            ..RateLimit::default()
        });
        let _ = passed(&mut fast, 60, 0, SECOND / 100);
        let count = passed(&mut fast, 60, SECOND / 100, SECOND / 100);
        let expected = 12_500_000_000_u64 / 60 / 100;
        assert!(count.abs_diff(expected) < expected / 500, "{count} of {expected}");
        let most = u64::MAX;
        let mut largest = buckets(RateLimit {
            bytes: 1,
            bytes_burst: most,
            packets: most,
            packets_burst: most,
        });
        for _ in 0..10 {
            largest.take(most, u128::MAX);
            let _ = largest.wait(0);
        }
    }
}
