//! The names of the metrics are an interface: dashboards and alerts rely on them.

use std::collections::HashSet;
use std::fmt::Write as _;

use lacuna::telemetry::metrics::{ALL, Kind};

#[test]
fn every_metric_is_listed() {
    let mut list = String::new();
    for metric in ALL {
        let kind = match metric.kind {
            Kind::Counter => "counter".to_owned(),
            Kind::Gauge => "gauge".to_owned(),
            Kind::Histogram(buckets) => format!("histogram {buckets:?}"),
        };
        let labels = metric.labels.join(", ");
        writeln!(list, "{}{{{labels}}} {}: {}\n    {kind}", metric.name, metric.unit.as_str(), metric.help).unwrap();
    }
    insta::assert_snapshot!("metrics", list);
}

#[test]
fn names_follow_the_rules() {
    let names: HashSet<_> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), ALL.len(), "a name is listed twice");
    for metric in ALL {
        assert!(metric.name.starts_with("lacuna_"), "{}", metric.name);
        assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
        let seconds = metric.unit == metrics::Unit::Seconds;
        assert_eq!(seconds, metric.name.ends_with("_seconds"), "{}", metric.name);
    }
}
