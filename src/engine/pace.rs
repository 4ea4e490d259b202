//! How fast the device is: a tick's time as a function of its rows, learned from the ticks themselves, and how often
//! canvases end. Pure: times come in, none are read.
//!
//! A tick costs something whatever it holds, and something per row: `fixed + per_row·rows`, fitted by least squares in
//! which old ticks count less and less. From it follow the rows that a tick may hold and whether a deadline can wait
//! for one more tick.

use std::time::Duration;

use super::scheduler::Budget;

/// Ticks after which a tick counts for 1/e, at most a quarter of those there were: the first ones are cold.
const MEMORY: f64 = 200.0;
/// Longest tick, unless a single canvas takes longer.
const LONGEST: Duration = Duration::from_millis(50);
/// Longest tick that keeps a more important newcomer waiting, unless its fixed cost is more than half of it.
const SHORT: Duration = Duration::from_millis(8);
/// Time over which finished canvases are averaged.
const WINDOW: Duration = Duration::from_secs(10);

/// A tick's time by its rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    ticks: f64,
    /// Sums over ticks, old ones decayed: 1, rows, seconds, rows², rows·seconds.
    weight: f64,
    rows: f64,
    seconds: f64,
    square: f64,
    product: f64,
    /// The same of the squares of what a tick took more or less than expected.
    surprise: f64,
}

impl Pace {
    /// Learns from a tick of `rows` that took `time`.
    pub fn note(&mut self, rows: usize, time: Duration) {
        let (x, y) = (rows as f64, time.as_secs_f64());
        let keep = (-1.0 / (self.ticks / 4.0).clamp(2.0, MEMORY)).exp();
        let surprise = if self.ticks > 0.0 { y - self.estimate(rows).as_secs_f64() } else { 0.0 };
        self.surprise = self.surprise * keep + surprise * surprise;
        self.ticks += 1.0;
        self.weight = self.weight * keep + 1.0;
        self.rows = self.rows * keep + x;
        self.seconds = self.seconds * keep + y;
        self.square = self.square * keep + x * x;
        self.product = self.product * keep + x * y;
    }

    /// Seconds of a tick: fixed, and per row. `None` before the first tick.
    fn line(&self) -> Option<(f64, f64)> {
        if self.rows <= 0.0 {
            return None;
        }
        let spread = self.weight * self.square - self.rows * self.rows;
        let slope = (self.weight * self.product - self.rows * self.seconds) / spread;
        let fixed = (self.seconds - slope * self.rows) / self.weight;
        // Ticks that are all alike, or noise: everything is laid to the rows.
        let sound = spread > 1e-3 * self.rows * self.rows && slope > 0.0 && fixed >= 0.0;
        Some(if sound { (fixed, slope) } else { (0.0, self.seconds / self.rows) })
    }

    /// What a tick of `rows` should take; zero when nothing is known.
    #[must_use]
    pub fn estimate(&self, rows: usize) -> Duration {
        let seconds = self.line().map_or(0.0, |(fixed, per_row)| fixed + per_row * rows as f64);
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// What a tick may hold, at most `max_rows`, and never so little that a stall of the machine serialises everything.
    #[must_use]
    pub fn budget(&self, max_rows: usize) -> Budget {
        let Some((fixed, per_row)) = self.line() else {
            return Budget::rows(max_rows);
        };
        let within = |time: f64| ((time - fixed) / per_row) as usize; // a float-to-integer `as` saturates
        Budget {
            rows: within(LONGEST.as_secs_f64().max(2.0 * fixed)).clamp(max_rows.div_ceil(16), max_rows),
            short: within(SHORT.as_secs_f64().max(2.0 * fixed)).clamp(max_rows.div_ceil(64), max_rows),
            fixed: Some((fixed / per_row) as usize),
        }
    }

    /// How far a tick usually is from its estimate.
    fn deviation(&self) -> Duration {
        Duration::try_from_secs_f64((self.surprise / self.weight.max(1.0)).sqrt()).unwrap_or_default()
    }

    /// Whether the tick that begins now must end a canvas with so much time `left`: another one after it, of `rows` like
    /// this one, would end too late, or might, as ticks usually vary.
    #[must_use]
    pub fn must_end(&self, rows: usize, left: Duration) -> bool {
        (self.estimate(rows) + self.deviation()) * 2 >= left
    }
}

/// How often canvases end while the device is busy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rate {
    finished: f64,
    seconds: f64,
}

impl Rate {
    /// `finished` canvases ended in a tick that took `time`. Ticks are what is counted, not gaps between canvases: many
    /// may end in one tick.
    pub fn note(&mut self, finished: usize, time: Duration) {
        let keep = (-time.as_secs_f64() / WINDOW.as_secs_f64()).exp();
        self.finished = self.finished * keep + finished as f64;
        self.seconds = self.seconds * keep + time.as_secs_f64();
    }

    /// Mean time from one end to the next; `None` before the first.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        (self.finished > 0.0).then(|| Duration::try_from_secs_f64(self.seconds / self.finished).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// After 400 ticks of 1 to 500 rows at 2 ms and 40 µs a row.
    fn learned() -> Pace {
        let mut pace = Pace::default();
        for i in 0..400usize {
            let rows = 1 + i * 211 % 500;
            pace.note(rows, 2 * MS + Duration::from_micros(40) * rows as u32);
        }
        pace
    }

    #[test]
    fn a_line_is_learned_and_forgotten() {
        let mut pace = learned();
        let off = |pace: &Pace, rows, ms: f64| (pace.estimate(rows).as_secs_f64() * 1e3 - ms).abs();
        assert!(off(&pace, 0, 2.0) < 1e-6 && off(&pace, 1000, 42.0) < 1e-6, "{:?}", pace.estimate(1000));
        // Somebody else took half the device.
        (0..2000usize).for_each(|i| pace.note(1 + i % 300, 4 * MS + Duration::from_micros(80) * (1 + i as u32 % 300)));
        assert!(off(&pace, 1000, 84.0) < 1.0, "{:?}", pace.estimate(1000));
    }

    #[test]
    fn ticks_that_are_all_alike_are_laid_to_their_rows() {
        let mut pace = Pace::default();
        assert_eq!(pace.estimate(100), Duration::ZERO);
        (0..20).for_each(|_| pace.note(50, 5 * MS));
        assert_eq!(pace.estimate(100).as_millis(), 10);
    }

    #[test]
    fn budgets_follow_the_measured_times() {
        assert_eq!(Pace::default().budget(4096), Budget::rows(4096), "nothing is known");
        let budget = learned().budget(4096);
        assert!(budget.rows.abs_diff(1200) <= 1 && budget.short.abs_diff(150) <= 1, "{budget:?}");
        assert!(budget.fixed.unwrap().abs_diff(50) <= 1, "{budget:?}");
        assert_eq!(learned().budget(100).rows, 100, "never more than is allowed");
        // A large model on a device that takes 30 ms for any small batch: short ticks still pay for themselves.
        let mut large = Pace::default();
        (0..100).for_each(|i| large.note(1 + i, 30 * MS + Duration::from_micros(10) * i as u32));
        assert!(large.budget(4096).short > 2900, "{:?}", large.budget(4096));
    }

    #[test]
    fn a_deadline_ends_a_canvas_when_two_more_ticks_are_too_long() {
        let pace = learned();
        assert!(pace.must_end(200, 19 * MS) && !pace.must_end(200, 21 * MS));
        assert!(pace.must_end(0, Duration::ZERO) && Pace::default().must_end(9, Duration::ZERO));
        // Where one tick in two takes 4 ms more, that is no time to wait for another.
        let mut rough = learned();
        (0..2000u32).for_each(|i| rough.note(200, 8 * MS + 4 * MS * (i % 2)));
        assert!(rough.must_end(200, 23 * MS) && !rough.must_end(200, 25 * MS));
    }

    #[test]
    fn canvases_that_end_together_do_not_look_fast() {
        let mut rate = Rate::default();
        assert_eq!(rate.interval(), None);
        for tick in 1..=800 {
            rate.note(if tick % 40 == 0 { 32 } else { 0 }, 10 * MS);
        }
        let ms = rate.interval().unwrap().as_secs_f64() * 1e3;
        assert!((ms - 12.5).abs() < 1.0, "32 in 400 ms: {ms}");
    }
}
