//! From measured requests to the numbers of the report, as a table and as JSON.

use anyhow::ensure;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;

use super::Kind;
use super::learning::Beside;
use super::load::{Arrivals, Measured, Plan};
use super::ticks::{Bare, Ticks};

/// The whole report.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where it ran, as the server says.
    pub device: String,
    /// What was served.
    pub model: String,
    /// One entry per kind and load.
    pub runs: Vec<Run>,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// What was asked for.
    pub kind: Kind,
    /// Clients of a closed loop; 0 for an open loop.
    pub concurrency: u32,
    /// Requests per second of an open loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Requests answered with 200.
    pub requests: usize,
    /// Requests answered otherwise, or not at all.
    pub failed: usize,
    /// From the first request's start to the last answer.
    pub seconds: f64,
    /// Text tokens committed per second.
    pub tokens_per_s: f64,
    /// Images per second.
    pub images_per_s: f64,
    /// Rows evaluated per second.
    pub positions_per_s: f64,
    /// Rows evaluated per committed token (text tokens and image codes).
    pub ppt: f64,
    /// Tokens committed per forward of a completion.
    pub tpf: f64,
    /// From a request's start (open loop: planned start) to the end of its answer.
    pub latency_ms: Latency,
    /// What a tick was spent on; absent when the server does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tick: Option<Ticks>,
    /// Rows served per second over rows per second of the bare forward on the same shapes, same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_efficiency: Option<f64>,
    /// Memory that the server held after the run, MiB; absent when it does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_mib: Option<f64>,
    /// The same load while it learned, with `--learning`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning: Option<Beside>,
}

/// Quantiles, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Report {
    /// An empty report about the server that answered `info`.
    #[must_use]
    pub fn new(info: &Value) -> Self {
        let text = |path: &str| info.pointer(path).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        Self { device: text("/device"), model: text("/model/name"), runs: Vec::new() }
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header([
            "kind",
            "load",
            "ok",
            "failed",
            "tok/s",
            "img/s",
            "pos/s",
            "PPT",
            "TPF",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "tick ms",
            "matmul",
            "attn",
            "elem",
            "sample",
            "host",
            "efficiency",
            "MiB",
        ]);
        for run in &self.runs {
            table.add_row(run.cells());
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let beside = self.runs.iter().filter_map(Run::beside).collect::<String>();
        format!("{} on {}\n{table}{beside}", self.model, self.device)
    }
}

impl Run {
    /// Counts what was measured; `bare` forwards are of the same batches.
    ///
    /// # Errors
    /// When no request succeeded: rates of nothing would look like numbers.
    pub fn new(plan: &Plan, measured: &Measured, bare: Bare) -> anyhow::Result<Self> {
        let answers = &measured.answers;
        ensure!(
            !answers.is_empty(),
            "{plan}: none of {} requests succeeded; the first failed with: {}",
            measured.failures.len(),
            measured.failures.first().map_or("nothing was sent", String::as_str)
        );
        let seconds = measured.elapsed.as_secs_f64();
        let sum = |of: fn(&super::load::Answer) -> u64| answers.iter().map(of).sum::<u64>() as f64;
        let (text, codes) = (sum(|a| a.text_tokens), sum(|a| a.image_codes));
        let (positions, steps) = (sum(|a| a.positions), sum(|a| a.steps));
        let mut latencies: Vec<f64> = answers.iter().map(|a| a.latency.as_secs_f64() * 1e3).collect();
        latencies.sort_by(f64::total_cmp);
        let (concurrency, rate) = match plan.arrivals {
            Arrivals::Closed { clients } => (clients, None),
            Arrivals::Open { per_second } => (0, Some(per_second)),
        };
        Ok(Self {
            kind: plan.kind,
            concurrency,
            rate,
            requests: answers.len(),
            failed: measured.failures.len(),
            seconds,
            tokens_per_s: text / seconds,
            images_per_s: sum(|a| a.images) / seconds,
            positions_per_s: positions / seconds,
            ppt: positions / (text + codes).max(1.0),
            tpf: (text + codes) / steps.max(1.0),
            latency_ms: Latency {
                p50: quantile(&latencies, 0.50),
                p95: quantile(&latencies, 0.95),
                p99: quantile(&latencies, 0.99),
            },
            tick: Ticks::within(&measured.stretches),
            resident_mib: measured
                .stretches
                .last()
                .and_then(|[_, after]| after.resident)
                .map(|bytes| bytes / f64::from(1 << 20)),
            engine_efficiency: bare.rows_per_s().map(|bare| positions / seconds / bare),
            learning: None,
        })
    }

    fn beside(&self) -> Option<String> {
        let Beside { p50, p95, throughput, requests, updates } = self.learning?;
        let (kind, load) = (format!("{:?}", self.kind).to_lowercase(), self.load());
        Some(format!(
            "\n{kind} {load} while learning: p50 {p50:.2}×, p95 {p95:.2}×, throughput {throughput:.2}× \
             ({requests} requests, {updates} updates)"
        ))
    }

    fn load(&self) -> String {
        match self.rate {
            Some(rate) => format!("{rate}/s"),
            None => format!("×{}", self.concurrency),
        }
    }

    fn cells(&self) -> Vec<String> {
        let load = self.load();
        let kind = format!("{:?}", self.kind).to_lowercase();
        let mut cells = vec![kind, load, self.requests.to_string(), self.failed.to_string()];
        let numbers = [
            (self.tokens_per_s, 0),
            (self.images_per_s, 1),
            (self.positions_per_s, 0),
            (self.ppt, 2),
            (self.tpf, 2),
            (self.latency_ms.p50, 0),
            (self.latency_ms.p95, 0),
            (self.latency_ms.p99, 0),
        ];
        cells.extend(numbers.map(|(value, digits)| format!("{value:.digits$}")));
        match &self.tick {
            Some(tick) => {
                cells.push(format!("{:.2}", tick.mean_ms));
                cells.extend(tick.shares().map(|share| format!("{:.0}%", share * 100.0)));
            }
            None => cells.extend(std::iter::repeat_n("–".to_owned(), 6)),
        }
        cells.push(self.engine_efficiency.map_or("–".to_owned(), |e| format!("{e:.2}")));
        cells.push(self.resident_mib.map_or("–".to_owned(), |mib| format!("{mib:.0}")));
        cells
    }
}

/// The nearest-rank quantile of ascending values; 0 of none.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_rank() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.95), quantile(&values, 0.99)), (100.0, 190.0, 198.0));
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
