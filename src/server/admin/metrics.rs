//! The metrics, in the format that whoever asks prefers.

use std::collections::BTreeMap;

use hyper::HeaderMap;
use hyper::header::ACCEPT;

use super::AdminListener;
use crate::server::reply::{self, Reply};
use crate::stats::{Durations, Format, Readings};

impl AdminListener {
    pub(super) fn metrics(&self, headers: &HeaderMap) -> Reply {
        let commits = self.queue.commit_times();
        let snapshot = self.snapshot();
        let readings = Readings {
            snapshot: &snapshot,
            started_at: self.stats.started_at,
            calls: self.stats.calls(),
            commits: Durations {
                buckets: commits.buckets,
                sum_seconds: commits.sum_seconds,
            },
        };
        let format = preferred(headers);
        reply::metrics(format, self.metrics.show(&readings, format))
    }
}

/// OpenMetrics for those who name it and like it no less than text; text for all others.
fn preferred(headers: &HeaderMap) -> Format {
    let accepted = headers.get_all(ACCEPT).iter();
    let accepted = accepted.filter_map(|value| value.to_str().ok());
    let mut liking = BTreeMap::new();
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q="));
        let quality = quality.map_or(Ok(1.0), str::parse::<f64>).unwrap_or(0.0);
        let best = liking.entry(kind).or_insert(quality);
        *best = best.max(quality);
    }
    let openmetrics = liking.get("application/openmetrics-text").copied();
    let text = liking.get("text/plain").copied().unwrap_or(0.0);
    if openmetrics.is_some_and(|quality| quality > 0.0 && quality >= text) {
        Format::OpenMetrics
    } else {
        Format::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_gets_the_format_they_prefer() {
        use Format::{OpenMetrics, Text};
        // What Prometheus 2.42 sends.
        let scraper = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, expected) in [
            (scraper, OpenMetrics),
            ("application/openmetrics-text", OpenMetrics),
            (
                "Application/OpenMetrics-Text; q=0.5, text/plain; q=0.5",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.4,text/plain;q=0.5", Text),
            ("application/openmetrics-text;q=0", Text),
            ("application/openmetrics-text;q=x", Text),
            ("text/plain", Text),
            ("*/*", Text),
            ("", Text),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("a header"));
            assert_eq!(preferred(&headers), expected, "{accept}");
        }
        assert_eq!(preferred(&HeaderMap::new()), Text);
    }
}
