//! Operations as bars: how near each comes to what the machine allows, as SVG.

use std::path::Path;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use tritrain_bench::{OperationReport, OperationsReport};
use tritrain_files::{Disk, write_atomic};

use crate::error::{Error, Result};

/// Pixels: of the picture and of the columns in it, from the left.
const WIDTH: i32 = 1000;
const BARS: i32 = 310;
const END: i32 = 880;
/// Pixels from the top to the first operation, per operation, and below the last.
const TOP: i32 = 140;
const ROW: i32 = 30;
const BOTTOM: i32 = 34;
const BAR: i32 = 11;
const LIMIT: RGBColor = RGBColor(214, 96, 20);
const BANDWIDTH: RGBColor = RGBColor(31, 90, 160);
/// How opaque the bar of a share above one is.
const BEYOND: f64 = 0.4;

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws every operation's shares of the instruction limit and of the memory bandwidth, under two lines
/// that say of what and where.
pub(crate) fn draw(path: &Path, lines: [&str; 2], report: &OperationsReport) -> Result<()> {
    let mut svg = String::new();
    picture(&mut svg, lines, report)
        .map_err(|error| Error::Plot { path: path.to_path_buf(), reason: error.to_string() })?;
    write_atomic(&Disk, path, svg.as_bytes())?;
    Ok(())
}

fn text(size: i32, at: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_text_style(&(WIDTH as u32, 1)).pos(Pos::new(at, VPos::Center))
}

/// Where a share lies on the axis, which ends at one: bars that would be longer end there, too.
fn x_of(share: f64) -> i32 {
    BARS + (f64::from(END - BARS) * share.clamp(0.0, 1.0)).round() as i32
}

fn picture(svg: &mut String, lines: [&str; 2], report: &OperationsReport) -> Drawn {
    let height = TOP + ROW * report.operations.len() as i32 + BOTTOM;
    let root = SVGBackend::with_string(svg, (WIDTH as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new("Operations of a training step", (16, 24), text(22, HPos::Left)))?;
    for (line, y) in lines.into_iter().zip([48, 66]) {
        root.draw(&Text::new(line, (16, y), text(15, HPos::Left)))?;
    }
    let legend = [
        (LIMIT.to_rgba(), BARS, "of the instruction limit"),
        (BANDWIDTH.to_rgba(), BARS + 200, "of the memory bandwidth"),
        (BANDWIDTH.mix(BEYOND), BARS + 400, "beyond it: data from caches"),
    ];
    for (colour, x, meaning) in legend {
        root.draw(&Rectangle::new([(x, 90), (x + BAR, 90 + BAR)], colour.filled()))?;
        root.draw(&Text::new(meaning, (x + 18, 96), text(15, HPos::Left)))?;
    }
    let bottom = height - BOTTOM + 6;
    for tenth in (0..=10).step_by(2) {
        let x = x_of(f64::from(tenth) / 10.0);
        let line = if tenth == 0 { BLACK.mix(0.6) } else { BLACK.mix(0.15) };
        root.draw(&PathElement::new([(x, TOP - 6), (x, bottom)], line))?;
        for y in [TOP - 16, bottom + 12] {
            root.draw(&Text::new(format!("{} %", tenth * 10), (x, y), text(14, HPos::Center)))?;
        }
    }
    root.draw(&Text::new("over scalar", (WIDTH - 16, TOP - 16), text(14, HPos::Right)))?;
    for (index, operation) in report.operations.iter().enumerate() {
        row(&root, operation, TOP + ROW * index as i32)?;
    }
    root.present()?;
    Ok(())
}

fn row(root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, of: &OperationReport, top: i32) -> Drawn {
    let middle = top + ROW / 2 - 2;
    root.draw(&Text::new(of.name, (16, middle), text(16, HPos::Left)))?;
    root.draw(&Text::new(milliseconds(of.ms), (BARS - 12, middle), text(16, HPos::Right)))?;
    if let Some(over) = of.over_scalar {
        root.draw(&Text::new(format!("{over:.1}x"), (WIDTH - 16, middle), text(16, HPos::Right)))?;
    }
    let shares = [(LIMIT, of.share_of_limit), (BANDWIDTH, Some(of.share_of_bandwidth))];
    let shares: Vec<_> =
        shares.into_iter().filter_map(|(colour, share)| share.map(|share| (colour, share))).collect();
    // One bar lies in the middle of the row, two touch there.
    let first = middle - BAR * shares.len() as i32 / 2;
    for (index, (colour, share)) in shares.into_iter().enumerate() {
        let (y, end) = (first + BAR * index as i32, x_of(share));
        let colour = colour.mix(if share > 1.0 { BEYOND } else { 1.0 });
        root.draw(&Rectangle::new([(BARS, y), (end, y + BAR)], colour.filled()))?;
        let number = format!("{:.0} %", share * 100.0);
        root.draw(&Text::new(number, (end + 4, y + BAR / 2 + 1), text(13, HPos::Left)))?;
    }
    Ok(())
}

/// Three digits or so of a time.
fn milliseconds(ms: f64) -> String {
    match ms {
        ..0.1 => format!("{ms:.4} ms"),
        ..10.0 => format!("{ms:.2} ms"),
        _ => format!("{ms:.1} ms"),
    }
}
