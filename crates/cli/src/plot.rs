//! Loss curves as SVG.

use std::path::Path;

use plotters::prelude::*;
use tritrain_files::{Disk, write_atomic};
use tritrain_train::Curve;

use crate::error::{Error, Result};

/// Steps that one point of a drawn curve averages, at most; fewer for short runs.
const POINTS: usize = 400;

/// Of curves, in their order.
const COLOURS: [RGBColor; 8] = [
    RGBColor(214, 96, 20),
    RGBColor(31, 90, 160),
    RGBColor(0, 130, 90),
    RGBColor(150, 60, 150),
    RGBColor(120, 120, 120),
    RGBColor(200, 160, 0),
    RGBColor(90, 190, 220),
    RGBColor(60, 60, 60),
];

/// Draws the training losses and evaluations of up to eight runs.
pub(crate) fn curves(path: &Path, curves: &[(&str, &Curve)], caption: &str) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, curves, caption)
        .map_err(|error| Error::Plot { path: path.to_path_buf(), reason: error.to_string() })?;
    write_atomic(&Disk, path, svg.as_bytes())?;
    Ok(())
}

fn draw(
    svg: &mut String,
    curves: &[(&str, &Curve)],
    caption: &str,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let smoothed: Vec<Vec<(f64, f64)>> = curves.iter().map(|(_, curve)| smooth(&curve.losses)).collect();
    let all = || {
        let evaluations =
            curves.iter().flat_map(|(_, curve)| curve.evaluations.iter().map(|(_, loss)| *loss));
        smoothed.iter().flatten().map(|(_, loss)| *loss).chain(evaluations).filter(|loss| loss.is_finite())
    };
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let steps = curves.iter().map(|(_, curve)| curve.losses.len()).max().unwrap_or(1) as f64;
    let root = SVGBackend::with_string(svg, (900, 540)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(caption, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..steps, (low - 0.1).max(0.0)..high + 0.1)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_desc("loss, nats per token")
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (((name, curve), line), colour) in curves.iter().zip(smoothed).zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(format!("{name}, training"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        let dots = curve
            .evaluations
            .iter()
            .filter(|(_, loss)| loss.is_finite())
            .map(|(step, loss)| Circle::new((*step as f64, *loss), 4, colour.filled()));
        chart
            .draw_series(dots)?
            .label(format!("{name}, validation"))
            .legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    drop(chart);
    Ok(())
}

/// Means over neighbouring steps, at most [`POINTS`] of them.
fn smooth(losses: &[f32]) -> Vec<(f64, f64)> {
    let width = losses.len().div_ceil(POINTS).max(1);
    let chunks = losses.chunks(width).enumerate();
    chunks
        .map(|(index, part)| {
            let mean = part.iter().map(|loss| f64::from(*loss)).sum::<f64>() / part.len() as f64;
            (index as f64 * width as f64 + part.len() as f64 / 2.0, mean)
        })
        .collect()
}
