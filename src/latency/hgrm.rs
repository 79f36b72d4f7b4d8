use std::fmt::Write as _;

use hdrhistogram::Histogram;

/// Lines for each halving of the distance to 100 %.
const TICKS: u32 = 5;

/// A histogram of nanoseconds as HdrHistogram's own tools write and plot it (`outputPercentileDistribution`), in
/// microseconds.
#[expect(clippy::cast_precision_loss, reason = "the format has three decimals")]
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let us = |ns: f64| ns / 1000.0;
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS) {
        total += step.count_since_last_iteration();
        let (value, quantile) = (us(step.value_iterated_to() as f64), step.quantile_iterated_to());
        let _ = match 1.0 - quantile {
            rest if rest > 0.0 => writeln!(text, "{value:>12.3} {quantile:>14.12} {total:>10} {:>14.2}", 1.0 / rest),
            _ => writeln!(text, "{value:>12.3} {quantile:>14.12} {total:>10}"),
        };
    }
    let (mean, deviation) = (us(histogram.mean()), us(histogram.stdev()));
    let _ = writeln!(text, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]");
    let _ =
        writeln!(text, "#[Max     = {:>12.3}, Total count    = {:>12}]", us(histogram.max() as f64), histogram.len());
    let _ = writeln!(text, "#[Buckets = {:>12}, SubBuckets     = {:>12}]", histogram.buckets(), 2048);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_samples_are_told_of_in_growing_order() {
        let mut histogram = super::super::histogram();
        (1..=1000_u64).for_each(|us| histogram.record(us * 1000).unwrap());
        let text = hgrm(&histogram);
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
            .collect();
        assert!(rows.len() > 20 && rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]), "{text}");
        let last = rows.last().unwrap();
        assert!((last[0] - 1000.0).abs() < 1.0 && last[1] > 0.9999 && last[2] > 999.9 && last.len() == 3, "{text}");
        let median = rows.iter().find(|row| row[1] >= 0.5).unwrap();
        assert!((median[0] - 500.0).abs() < 2.0 && (median[3] - 2.0).abs() < 0.01, "{median:?}");
    }
}
