//! One reading of all metrics, and how it is written: Prometheus' text format 0.0.4, which every scraper understands.

use std::iter::zip;

use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Series, MetricFamily, MetricType};

use super::metric::Metric;

pub use prometheus::TEXT_FORMAT;

/// Series by metric.
#[derive(Debug)]
pub struct Page {
    /// By the discriminant of the metric.
    families: Vec<MetricFamily>,
}

impl Page {
    pub fn new() -> Self {
        let family = |metric: &Metric| {
            let mut family = MetricFamily::default();
            family.set_name(metric.name().to_owned());
            family.set_help(format!("{}.", metric.help()));
            family.set_field_type(metric.kind());
            family
        };
        Self { families: Metric::ALL.iter().map(family).collect() }
    }

    /// Adds a series of a gauge or a counter; `labels` are the values of [`Metric::labels`].
    pub fn put(&mut self, metric: Metric, labels: &[&str], value: f64) {
        let mut series = Series::default();
        if metric.kind() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            series.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            series.set_gauge(gauge);
        }
        self.add(metric, labels, series);
    }

    /// Adds a series that is a count.
    pub fn count(&mut self, metric: Metric, labels: &[&str], count: u64) {
        self.put(metric, labels, number(count));
    }

    /// Adds a series that says yes (1) or no (0).
    pub fn flag(&mut self, metric: Metric, labels: &[&str], yes: bool) {
        self.put(metric, labels, f64::from(u8::from(yes)));
    }

    /// Adds a series for each of `states`, of which one is true. The state is the last label.
    pub fn state(&mut self, metric: Metric, labels: &[&str], states: &[&str], current: &str) {
        for state in states {
            self.flag(metric, &[labels, &[*state]].concat(), *state == current);
        }
    }

    /// Adds a histogram: how many were up to each of `bounds` and above the one before, then how many were above all.
    pub fn histogram(&mut self, metric: Metric, labels: &[&str], bounds: &[f64], counts: &[u64], sum: f64) {
        let mut total = 0;
        let buckets = zip(bounds, counts).map(|(bound, count)| {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(total);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(sum);
        let mut series = Series::default();
        series.set_histogram(histogram);
        self.add(metric, labels, series);
    }

    fn add(&mut self, metric: Metric, labels: &[&str], mut series: Series) {
        debug_assert_eq!(labels.len(), metric.labels().len(), "{}", metric.name());
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        series.set_label(zip(metric.labels(), labels).map(pair).collect());
        self.families[metric as usize].mut_metric().push(series);
    }

    /// Writes all metrics that have series.
    pub fn write(mut self) -> Result<String, prometheus::Error> {
        self.families.retain(|family| !family.get_metric().is_empty());
        TextEncoder::new().encode_to_string(&self.families)
    }
}

/// A count as a sample, which is exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "samples are floating-point numbers by definition")]
pub fn number(count: u64) -> f64 {
    count as f64
}

/// Nanoseconds as seconds.
pub fn seconds(ns: u64) -> f64 {
    number(ns) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_written_under_their_metric_and_values_escaped() {
        let mut page = Page::new();
        page.count(Metric::PodLost, &["default", "web", "a\"b\\c\nd"], 7);
        page.state(Metric::Peers, &[], &["fast", "kernel"], "kernel");
        page.flag(Metric::UplinkUp, &["eth0"], true);
        let text = page.write().unwrap();
        let expected = "\
# HELP podwire_uplink_up Whether the device that carries the overlay is up.
# TYPE podwire_uplink_up gauge
podwire_uplink_up{device=\"eth0\"} 1
# HELP podwire_peers Remote nodes by the path that packets for them take: fast (the workers) or kernel.
# TYPE podwire_peers gauge
podwire_peers{path=\"fast\"} 0
podwire_peers{path=\"kernel\"} 1
# HELP podwire_pod_lost_packets_total Packets that the kernel refused to deliver to the pod.
# TYPE podwire_pod_lost_packets_total counter
podwire_pod_lost_packets_total{namespace=\"default\",pod=\"web\",attachment=\"a\\\"b\\\\c\\nd\"} 7
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_histogram_adds_up_its_classes() {
        let mut page = Page::new();
        page.histogram(Metric::PassDuration, &["0", "none"], &[1e-6, 2e-6], &[3, 4, 5], 0.25);
        let text = page.write().unwrap();
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let labels = "worker=\"0\",work=\"none\"";
        assert_eq!(
            samples,
            [
                format!("podwire_worker_pass_duration_seconds_bucket{{{labels},le=\"0.000001\"}} 3"),
                format!("podwire_worker_pass_duration_seconds_bucket{{{labels},le=\"0.000002\"}} 7"),
                format!("podwire_worker_pass_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 12"),
                format!("podwire_worker_pass_duration_seconds_sum{{{labels}}} 0.25"),
                format!("podwire_worker_pass_duration_seconds_count{{{labels}}} 12"),
            ]
        );
    }
}
