//! A map of clusters as SVG: passages on the plane in which they differ most.

use std::path::Path;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use tritrain_data::clusters::plane;
use tritrain_files::{Disk, write_atomic};

use crate::error::{Error, Result};

/// Pixels: of the picture, of its edge, and of a dot.
const SIZE: (u32, u32) = (1100, 760);
const LEGEND: i32 = 300;
const EDGE: i32 = 40;
const DOT: i32 = 2;
/// Passages that are drawn, about, evenly from all.
const DOTS: usize = 6000;
/// Names that have room in the legend.
const NAMES: usize = 32;

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws vectors `[labels][dim]`, coloured by label, and the clusters' numbers and names.
pub(crate) fn draw(path: &Path, vectors: &[f32], dim: usize, labels: &[u32], names: &[String]) -> Result<()> {
    let mut svg = String::new();
    picture(&mut svg, &plane(vectors, dim), labels, names)
        .map_err(|error| Error::Plot { path: path.to_path_buf(), reason: error.to_string() })?;
    write_atomic(&Disk, path, svg.as_bytes())?;
    Ok(())
}

/// Colours apart from each other: the golden angle around the circle, in two shades.
fn colour(cluster: usize) -> HSLColor {
    HSLColor((cluster as f64 * 0.381_966) % 1.0, 0.65, if cluster.is_multiple_of(2) { 0.42 } else { 0.6 })
}

fn picture(svg: &mut String, points: &[[f32; 2]], labels: &[u32], names: &[String]) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let range = |axis: usize| {
        let of = points.iter().map(|point| point[axis]);
        (of.clone().fold(f32::INFINITY, f32::min), of.fold(f32::NEG_INFINITY, f32::max))
    };
    let (left, bottom) = (range(0), range(1));
    let (width, height) = (SIZE.0 as i32 - LEGEND - 2 * EDGE, SIZE.1 as i32 - 2 * EDGE);
    let place = |point: [f32; 2]| {
        let along = |x: f32, (low, high): (f32, f32), pixels: i32| {
            (f64::from((x - low) / (high - low).max(f32::MIN_POSITIVE)) * f64::from(pixels)) as i32
        };
        (EDGE + along(point[0], left, width), EDGE + height - along(point[1], bottom, height))
    };
    let step = points.len().div_ceil(DOTS).max(1);
    for (&point, &label) in points.iter().zip(labels).step_by(step) {
        root.draw(&Circle::new(place(point), DOT, colour(label as usize).mix(0.45).filled()))?;
    }
    let text =
        |size: i32, at: HPos| ("sans-serif", size).into_text_style(&SIZE).pos(Pos::new(at, VPos::Center));
    for (cluster, middle) in middles(points, labels, names.len()).into_iter().enumerate() {
        let Some(middle) = middle else { continue };
        let (x, y) = place(middle);
        root.draw(&Circle::new((x, y), 10, WHITE.mix(0.85).filled()))?;
        root.draw(&Circle::new((x, y), 10, colour(cluster).stroke_width(2)))?;
        root.draw(&Text::new(cluster.to_string(), (x, y + 1), text(12, HPos::Center)))?;
    }
    let x = SIZE.0 as i32 - LEGEND;
    for (cluster, name) in names.iter().take(NAMES).enumerate() {
        let y = EDGE + 21 * cluster as i32;
        root.draw(&Circle::new((x, y), 6, colour(cluster).filled()))?;
        let name: String = format!("{cluster}  {name}").chars().take(38).collect();
        root.draw(&Text::new(name, (x + 14, y + 1), text(14, HPos::Left)))?;
    }
    if let Some(more) = names.len().checked_sub(NAMES).filter(|more| *more > 0) {
        let y = EDGE + 21 * NAMES as i32;
        root.draw(&Text::new(format!("and {more} more"), (x + 14, y), text(14, HPos::Left)))?;
    }
    let caption = format!("two principal components of {} passages", points.len());
    root.draw(&Text::new(caption, (EDGE, SIZE.1 as i32 - EDGE / 2), text(14, HPos::Left)))?;
    root.present()?;
    Ok(())
}

/// The mean of each cluster's points; none without points.
fn middles(points: &[[f32; 2]], labels: &[u32], k: usize) -> Vec<Option<[f32; 2]>> {
    let mut sums = vec![([0.0f64; 2], 0.0f64); k];
    for (point, &label) in points.iter().zip(labels) {
        if let Some((sum, count)) = sums.get_mut(label as usize) {
            sum.iter_mut().zip(point).for_each(|(sum, x)| *sum += f64::from(*x));
            *count += 1.0;
        }
    }
    sums.into_iter().map(|(sum, n)| (n > 0.0).then(|| sum.map(|x| (x / n) as f32))).collect()
}
