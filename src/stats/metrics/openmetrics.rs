//! The metrics in the format of OpenMetrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{Family, Kind, Labels, Value};

/// Writes them, and the end mark.
pub(super) fn show(families: Vec<Family>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut shown = String::new();
    encode(&mut shown, &registry).expect("a string takes all that is written");
    shown
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let (name, unit) = split_unit(family.name);
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(name, family.help, unit.as_ref(), kind)?;
            for (labels, value) in &family.samples {
                if labels.is_empty() {
                    encode_value(&mut metric, family.kind, value)?;
                } else {
                    encode_value(&mut metric.encode_family(labels)?, family.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode_value(sample: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    match value {
        Value::Number(number) if kind == Kind::Counter => {
            sample.encode_counter::<Labels, _, f64>(number, None)
        }
        Value::Number(number) => sample.encode_gauge(number),
        Value::Durations(durations) => sample.encode_histogram::<Labels>(
            durations.sum_seconds,
            durations.count(),
            &durations.buckets,
            None,
        ),
    }
}

/// The format names a metric's unit besides, and the library puts the two together again.
fn split_unit(name: &str) -> (&str, Option<Unit>) {
    for unit in [Unit::Bytes, Unit::Seconds] {
        let stem = name.strip_suffix(unit.as_str());
        if let Some(stem) = stem.and_then(|stem| stem.strip_suffix('_')) {
            return (stem, Some(unit));
        }
    }
    (name, None)
}
