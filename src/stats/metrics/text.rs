//! The metrics in Prometheus' own text format, for those who do not ask for OpenMetrics.

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::{Durations, Family, Kind, Value};

/// Writes them.
pub(super) fn show(families: &[Family]) -> String {
    let families: Vec<_> = families.iter().map(family).collect();
    let shown = TextEncoder::new().encode_to_string(&families);
    shown.expect("every family has a name and samples, and a string takes all that is written")
}

fn family(family: &Family) -> MetricFamily {
    let (name, kind) = match family.kind {
        Kind::Counter => (format!("{}_total", family.name), MetricType::COUNTER),
        Kind::Gauge => (family.name.to_owned(), MetricType::GAUGE),
        Kind::Histogram => (family.name.to_owned(), MetricType::HISTOGRAM),
    };
    let samples = family.samples.iter().map(|(labels, value)| {
        let mut metric = Metric::default();
        match value {
            Value::Number(number) if family.kind == Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(*number);
                metric.set_counter(counter);
            }
            Value::Number(number) => {
                let mut gauge = Gauge::default();
                gauge.set_value(*number);
                metric.set_gauge(gauge);
            }
            Value::Durations(durations) => metric.set_histogram(histogram(durations)),
        }
        let labels = labels.iter().map(|(name, value)| {
            let mut label = LabelPair::default();
            label.set_name((*name).to_owned());
            label.set_value(value.clone());
            label
        });
        metric.set_label(labels.collect());
        metric
    });
    let mut shown = MetricFamily::default();
    shown.set_name(name);
    shown.set_help(family.help.to_owned());
    shown.set_field_type(kind);
    shown.set_metric(samples.collect());
    shown
}

fn histogram(durations: &Durations) -> Histogram {
    let mut cumulative_count = 0;
    // The library adds the infinite bucket by itself.
    let finite = durations
        .buckets
        .iter()
        .filter(|(bound, _)| bound.is_finite());
    let buckets = finite.map(|(upper_bound, count)| {
        cumulative_count += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*upper_bound);
        bucket.set_cumulative_count(cumulative_count);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(durations.count());
    histogram.set_sample_sum(durations.sum_seconds);
    histogram
}
