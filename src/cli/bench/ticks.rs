//! What a server's ticks were spent on during a run: the difference of its metrics before and after.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::models::{Model, Packed};
use crate::telemetry::metrics as names;

/// Mean tick of a run, milliseconds; the parts add up to the mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ticks {
    /// Mean length of a tick.
    pub mean_ms: f64,
    /// Matrix products.
    pub matmul: f64,
    /// Attention.
    pub attention: f64,
    /// Norms, activations, embeddings, copies.
    pub elementwise: f64,
    /// Drawing and choosing tokens.
    pub sampling: f64,
    /// Everything else: planning, packing, events.
    pub host: f64,
}

/// Counters of a server at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    ticks: f64,
    seconds: f64,
    parts: [f64; 4],
    /// Memory that the server holds, bytes; absent where it does not tell.
    pub resident: Option<f64>,
}

const PARTS: [&str; 4] = ["matmul", "attention", "elementwise", "sampling"];

impl Totals {
    /// Reads them from the text of `/metrics`; what is not there is 0.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let value = |series: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
            rest.split(' ').next()?.parse::<f64>().ok()
        };
        let name = names::TICK;
        let part = |part| value(&format!("{}_sum{{part=\"{part}\"}}", names::TICK_PART)).unwrap_or(0.0);
        Self {
            ticks: value(&format!("{name}_count")).unwrap_or(0.0),
            seconds: value(&format!("{name}_sum")).unwrap_or(0.0),
            parts: PARTS.map(part),
            resident: value(names::RESIDENT),
        }
    }
}

impl Ticks {
    /// The mean tick of stretches of time, each given by its two ends; `None` without a tick in them.
    #[must_use]
    pub fn within(stretches: &[[Totals; 2]]) -> Option<Self> {
        let sum = |of: &dyn Fn(&Totals) -> f64| stretches.iter().map(|[from, to]| of(to) - of(from)).sum::<f64>();
        let ticks = sum(&|totals| totals.ticks);
        if ticks < 1.0 {
            return None;
        }
        let mean_ms = sum(&|totals| totals.seconds) * 1e3 / ticks;
        let [matmul, attention, elementwise, sampling] =
            std::array::from_fn(|i| sum(&|totals| totals.parts[i]) * 1e3 / ticks);
        let host = (mean_ms - matmul - attention - elementwise - sampling).max(0.0);
        Some(Self { mean_ms, matmul, attention, elementwise, sampling, host })
    }

    /// The parts as shares of the tick, in order of the fields.
    #[must_use]
    pub fn shares(&self) -> [f64; 5] {
        [self.matmul, self.attention, self.elementwise, self.sampling, self.host].map(|ms| ms / self.mean_ms.max(1e-9))
    }
}

/// Rows of bare forwards, run one after another with nothing else going on, and the time that they took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bare {
    rows: usize,
    time: Duration,
}

impl Bare {
    /// Adds a forward of each of these batches.
    ///
    /// # Errors
    /// When the model fails.
    pub fn add(&mut self, model: &Model, batches: &[Packed]) -> anyhow::Result<()> {
        let start = Instant::now();
        for batch in batches {
            // Where the engine computes: on one of the pool's threads.
            rayon::scope(|_| model.backbone.forward(batch))?;
            self.rows += batch.rows();
        }
        self.time += start.elapsed();
        Ok(())
    }

    /// Rows per second; `None` without any.
    #[must_use]
    pub fn rows_per_s(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.rows as f64 / self.time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_from_metrics() {
        let text = "# TYPE lacuna_tick_seconds histogram\nlacuna_tick_seconds_bucket{le=\"0.1\"} 4\n\
                    lacuna_tick_seconds_sum 0.5\nlacuna_tick_seconds_count 10\n\
                    lacuna_tick_part_seconds_sum{part=\"matmul\"} 0.3\nlacuna_tick_part_seconds_sum{part=\"sampling\"} 0.1\n";
        let read = Totals::read(text);
        let ticks = Ticks::within(&[[Totals::default(), read], [read, read]]).unwrap();
        assert!((ticks.mean_ms - 50.0).abs() < 1e-9 && (ticks.matmul - 30.0).abs() < 1e-9, "{ticks:?}");
        assert!((ticks.host - 10.0).abs() < 1e-9, "{ticks:?}");
        assert!((ticks.shares().iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(Ticks::within(&[[read, read]]).is_none() && Ticks::within(&[]).is_none());
        assert_eq!(Ticks::within(&[[Totals::default(), read]; 2]), Some(ticks), "a mean");
    }
}
