use std::error::Error;

use hdrhistogram::Histogram;
use plotters::prelude::{
    BLACK, ChartBuilder, Color, IntoDrawingArea, IntoLogRange, LineSeries, Palette, Palette99, PathElement, SVGBackend,
    WHITE,
};

const SIZE: (u32, u32) = (900, 560);

/// 99.999 %: no further, however many samples there are.
const NINES: f64 = 5.0;

/// Points of a line for each further nine.
const POINTS: u32 = 100;

/// Round trips by percentile as a picture: a line for each name. To the right, each mark is one more nine; both axes are
/// logarithmic. Histograms are of nanoseconds.
pub fn svg(lines: &[(String, &Histogram<u64>)]) -> Result<String, Box<dyn Error>> {
    let lines: Vec<_> = lines.iter().map(|(name, histogram)| (name, points(histogram))).collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let nines = all().map(|point| point.0).fold(1.0, f64::max);
    let least = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let most = all().map(|point| point.1).fold(1.0, f64::max);
    let mut picture = String::new();
    {
        let area = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption("round trips by percentile", ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(0.0..nines.ceil(), (least.min(most) * 0.8..most * 1.25).log_scale())?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 5")]
        let marks = nines.ceil() as usize + 1;
        chart
            .configure_mesh()
            .x_desc("percentile")
            .y_desc("round trip, µs")
            .x_labels(marks)
            .x_label_formatter(&|nines| percentile(*nines))
            .y_label_formatter(&|us| format!("{us}"))
            .draw()?;
        for (index, (name, points)) in lines.into_iter().enumerate() {
            let colour = Palette99::pick(index).mix(1.0);
            let line = LineSeries::new(points, colour.stroke_width(2));
            let key = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2));
            chart.draw_series(line)?.label(name.as_str()).legend(key);
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
        area.present()?;
    }
    Ok(picture)
}

/// A line, as far as there are samples: how many nines, and microseconds, at least 1 ns.
#[expect(clippy::cast_precision_loss, reason = "a picture is not exact")]
fn points(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let nines = (histogram.len().max(1) as f64).log10().min(NINES);
    let at = |step: u32| f64::from(step) / f64::from(POINTS);
    let point = |nines: f64| {
        let ns = histogram.value_at_quantile(1.0 - 10_f64.powf(-nines)).max(1);
        (nines, ns as f64 / 1000.0)
    };
    let steps = (0..).map(at).take_while(|x| *x < nines);
    if histogram.is_empty() { Vec::new() } else { steps.chain([nines]).map(point).collect() }
}

/// `0` is 0 %, `1` is 90 %, `2` is 99 %.
fn percentile(nines: f64) -> String {
    let text = format!("{:.4}", 100.0 - 10_f64.powf(2.0 - nines));
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_nines() {
        assert_eq!([0.0, 1.0, 2.0, 3.0, 5.0].map(percentile), ["0%", "90%", "99%", "99.9%", "99.999%"]);
    }

    #[test]
    fn a_picture_has_a_line_and_a_name_for_each_target() {
        let mut slow = super::super::histogram();
        (1..=10_000_u64).for_each(|us| slow.record(us * 1000).unwrap());
        let none = super::super::histogram();
        let picture = svg(&[("slow".to_owned(), &slow), ("none".to_owned(), &none)]).unwrap();
        assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"), "{picture:.80}");
        for word in ["slow", "none", "99.9%", "polyline"] {
            assert!(picture.contains(word), "{word}");
        }
        assert!(svg(&[("none".to_owned(), &none)]).is_ok(), "nothing measured is a picture too");
    }
}
