//! The roofline as an SVG: FLOP per byte against TFLOP/s, both logarithmic; the ceilings as lines, a numbered point per
//! row, and the rows' names beside it.

use super::report::{digits, Row, Table};
use latten::{ErrorKind, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: i32 = 1380;
/// The plot within the picture.
const TOP: i32 = 56;
const RIGHT: i32 = 830;
const MOST_HEIGHT: i32 = 760;
const BOTTOM_MARGIN: i32 = 56;
const LEGEND: i32 = RIGHT + 24;
const LINE: i32 = 15;
const POINT: i32 = 4;
const GREY: RGBColor = RGBColor(0x55, 0x55, 0x55);
const DARK: RGBColor = RGBColor(0x22, 0x22, 0x22);

type Picture<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A part of the picture, to keep labels apart.
#[derive(Clone, Copy)]
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Area {
    fn around((x, y): (f64, f64), half_width: f64, half_height: f64) -> Self {
        Area { x: x - half_width, y: y - half_height, width: 2.0 * half_width, height: 2.0 * half_height }
    }

    fn overlap(&self, other: &Area) -> f64 {
        let x = (self.x + self.width).min(other.x + other.width) - self.x.max(other.x);
        let y = (self.y + self.height).min(other.y + other.height) - self.y.max(other.y);
        x.max(0.0) * y.max(0.0)
    }

    fn within(&self, other: &Area) -> bool {
        self.x > other.x
            && self.x + self.width < other.x + other.width
            && self.y > other.y
            && self.y + self.height < other.y + other.height
    }
}

pub fn svg(table: &Table) -> Result<String> {
    let mut text = String::new();
    let drawn = draw(table, &mut text);
    drawn.map_err(|e| ErrorKind::Io { path: "the roofline".into(), message: e.to_string() })?;
    Ok(text)
}

fn draw(table: &Table, text: &mut String) -> Drawn {
    let height = (TOP + BOTTOM_MARGIN + LINE * (table.rows.len() as i32 + 3)).max(620);
    let picture = SVGBackend::with_string(text, (WIDTH as u32, height as u32)).into_drawing_area();
    picture.fill(&WHITE)?;
    picture.draw(&Text::new("Decode attention: roofline", (70, 12), font(15.0, &DARK)))?;
    picture.draw(&Text::new(table.adapter.clone(), (70, 32), font(11.0, &GREY)))?;
    plot(table, &picture, height)?;
    legend(table, &picture)?;
    picture.present()?;
    Ok(())
}

/// Text of so many pixels; plotters means another measure of a font by its size.
fn font(pixels: f64, colour: &RGBColor) -> TextStyle<'static> {
    ("sans-serif", 1.24 * pixels).into_font().color(colour)
}

/// Ranges of intensity and of TFLOP/s that hold all rows and the ridge.
fn ranges(table: &Table) -> ((f64, f64), (f64, f64)) {
    let c = &table.ceilings;
    let most = c.matmul_tflops.unwrap_or(c.fma_tflops).max(c.fma_tflops);
    let ridge = 1e3 * most / c.read_gbps;
    let over = |value: fn(&Row) -> f64, start: (f64, f64)| {
        let values = table.rows.iter().map(value).filter(|v| v.is_finite() && *v > 0.0);
        values.fold(start, |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x_low, x_high) = over(Row::intensity, (ridge, ridge));
    let (y_low, y_high) = over(|row| row.tflops, (most, most));
    ((x_low / 1.6, x_high * 1.6), (y_low / 1.8, y_high * 1.8))
}

fn plot(table: &Table, picture: &Picture<'_>, height: i32) -> Drawn {
    let (x, y) = ranges(table);
    let below = (height - MOST_HEIGHT).max(8);
    let mut chart = ChartBuilder::on(picture)
        .margin_top(TOP)
        .margin_left(12)
        .margin_right(WIDTH - RIGHT)
        .margin_bottom(below)
        .x_label_area_size(44)
        .y_label_area_size(58)
        .build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(0xf2, 0xf2, 0xf2))
        .bold_line_style(RGBColor(0xe0, 0xe0, 0xe0))
        .label_style(font(11.0, &DARK))
        .x_desc("FLOP per byte that must move")
        .y_desc("TFLOP/s")
        .draw()?;
    let ceilings = ceilings(table, x, y);
    for (_, from, to) in &ceilings {
        chart.draw_series(LineSeries::new([*from, *to], DARK.stroke_width(2)))?;
    }
    let pixel = |at: (f64, f64)| {
        let (x, y) = chart.backend_coord(&at);
        (f64::from(x), f64::from(y))
    };
    let (left, top) = pixel((x.0, y.1));
    let (right, bottom) = pixel((x.1, y.0));
    let inside = Area { x: left, y: top, width: right - left, height: bottom - top };
    // What labels keep clear of: ceilings and their names, and all points.
    let mut taken = Vec::new();
    for (name, from, to) in ceilings {
        let (start, end) = (pixel(from), pixel(to));
        taken.extend(pieces(start, end));
        // At the line's end, above it where it is level, to the right of it where it climbs.
        let width = 6.4 * name.len() as f64;
        let level = from.1 == to.1;
        let at = if level { (end.0 - width - 8.0, end.1 - 16.0) } else { (start.0 + 18.0, start.1 - 14.0) };
        let at = (at.0.max(left + 2.0), at.1.min(bottom - 14.0));
        picture.draw(&Text::new(name, (at.0 as i32, at.1 as i32), font(11.0, &DARK)))?;
        taken.push(Area { x: at.0, y: at.1, width, height: 13.0 });
    }
    let at: Vec<(f64, f64)> = table.rows.iter().map(|row| pixel((row.intensity(), row.tflops))).collect();
    taken.extend(at.iter().map(|at| Area::around(*at, f64::from(POINT) + 1.0, f64::from(POINT) + 1.0)));
    for (row, at) in table.rows.iter().zip(&at) {
        marker(picture, &row.tier, (colour(row), row.cache == "warm"), (at.0 as i32, at.1 as i32))?;
    }
    for (i, (row, at)) in table.rows.iter().zip(&at).enumerate() {
        label(picture, (i + 1, row), *at, (&inside, &mut taken))?;
    }
    Ok(())
}

/// A ceiling: its name, and the line from one place of the plot to another.
type Ceiling = (String, (f64, f64), (f64, f64));

fn ceilings(table: &Table, x: (f64, f64), y: (f64, f64)) -> Vec<Ceiling> {
    let c = &table.ceilings;
    let mut all = Vec::new();
    let flat = [("f32 multiply-add", Some(c.fma_tflops)), ("f16 matrix units", c.matmul_tflops)];
    for (what, tflops) in flat.into_iter().filter_map(|(what, tflops)| Some((what, tflops?))) {
        let ridge = (1e3 * tflops / c.read_gbps).max(x.0);
        all.push((format!("{what} {} TFLOP/s", digits(tflops, 3)), (ridge, tflops), (x.1, tflops)));
    }
    // The slope of the read: up to the highest ceiling.
    let top = c.matmul_tflops.unwrap_or(c.fma_tflops).max(c.fma_tflops);
    let slope = |x: f64| (x, x * c.read_gbps / 1e3);
    let start = x.0.max(1e3 * y.0 / c.read_gbps);
    let name = format!("streaming read {} GB/s", digits(c.read_gbps, 4));
    all.push((name, slope(start), slope(1e3 * top / c.read_gbps)));
    all
}

/// A line as small squares along it.
fn pieces(from: (f64, f64), to: (f64, f64)) -> Vec<Area> {
    let half = 4.0;
    let count = ((to.0 - from.0).hypot(to.1 - from.1) / (1.5 * half)).ceil().max(1.0) as u32;
    let part = |i: u32| f64::from(i) / f64::from(count);
    let piece = |p: f64| Area::around((from.0 + p * (to.0 - from.0), from.1 + p * (to.1 - from.1)), half, half);
    (0..=count).map(|i| piece(part(i))).collect()
}

/// Colour of a variant, by the first word of the row's name.
fn colour(row: &Row) -> RGBColor {
    match row.shape.split([' ', '-']).next().unwrap_or("") {
        "gqa" => RGBColor(0x1f, 0x77, 0xb4),
        "gta" => RGBColor(0xff, 0x7f, 0x0e),
        "gla" => RGBColor(0x2c, 0xa0, 0x2c),
        "mla" => RGBColor(0xd6, 0x27, 0x28),
        "mha" => RGBColor(0x8c, 0x56, 0x4b),
        _ => RGBColor(0x94, 0x67, 0xbd),
    }
}

/// A circle, square or triangle, by tier; hollow where the cache was warm.
fn marker(picture: &Picture<'_>, tier: &str, (colour, hollow): (RGBColor, bool), (x, y): (i32, i32)) -> Drawn {
    let style = if hollow { colour.stroke_width(2) } else { colour.filled() };
    let r = POINT;
    match tier {
        "t1" => picture.draw(&Rectangle::new([(x - r, y - r), (x + r, y + r)], style))?,
        "t2" if hollow => {
            let corners = [(x, y - r - 1), (x - r - 1, y + r), (x + r + 1, y + r), (x, y - r - 1)];
            picture.draw(&PathElement::new(corners, style))?;
        }
        "t2" => picture.draw(&TriangleMarker::new((x, y), r + 1, style))?,
        _ => picture.draw(&Circle::new((x, y), r, style))?,
    }
    Ok(())
}

/// A row's number, at the free place nearest to its point.
fn label(
    picture: &Picture<'_>,
    (number, row): (usize, &Row),
    (x, y): (f64, f64),
    (inside, taken): (&Area, &mut Vec<Area>),
) -> Drawn {
    let number = number.to_string();
    let (half_width, half_height) = (3.4 * number.len() as f64 + 1.0, 6.0);
    let place = |distance: f64, turn: f64| {
        Area::around((x + distance * turn.cos(), y + distance * turn.sin()), half_width, half_height)
    };
    let places = (0..14).flat_map(|ring| {
        let distance = 12.0 + 7.0 * f64::from(ring);
        (0..24).map(move |step| (distance, f64::from(step) * std::f64::consts::TAU / 24.0 - 0.8))
    });
    let cost = |&(distance, turn): &(f64, f64)| {
        let area = place(distance, turn);
        let covered: f64 = taken.iter().map(|other| area.overlap(other)).sum();
        distance + 20.0 * covered + if area.within(inside) { 0.0 } else { 1e6 }
    };
    let Some((distance, turn)) = places.min_by(|a, b| cost(a).total_cmp(&cost(b))) else { return Ok(()) };
    let area = place(distance, turn);
    let (cx, cy) = (area.x + half_width, area.y + half_height);
    if distance > 16.0 {
        let near = |part: f64| ((x + part * (cx - x)) as i32, (y + part * (cy - y)) as i32);
        let ends = [near(f64::from(POINT) / distance), near(1.0 - 7.0 / distance)];
        picture.draw(&PathElement::new(ends, colour(row).mix(0.7)))?;
    }
    let style = font(10.0, &colour(row)).pos(Pos::new(HPos::Center, VPos::Center));
    picture.draw(&Text::new(number, (cx as i32, cy as i32), style))?;
    taken.push(area);
    Ok(())
}

fn legend(table: &Table, picture: &Picture<'_>) -> Drawn {
    let mut y = TOP;
    let right = |colour: &RGBColor| font(11.0, colour).pos(Pos::new(HPos::Right, VPos::Top));
    let columns = (LEGEND + 16, LEGEND + 36, LEGEND + 390, LEGEND + 448, LEGEND + 500);
    picture.draw(&Text::new("shape", (columns.1, y), font(11.0, &GREY)))?;
    for (x, words) in [(columns.2, "us"), (columns.3, "TFLOP/s"), (columns.4, "% read")] {
        picture.draw(&Text::new(words, (x, y), right(&GREY)))?;
    }
    for (i, row) in table.rows.iter().enumerate() {
        y += LINE;
        marker(picture, &row.tier, (colour(row), row.cache == "warm"), (LEGEND + 26, y + 5))?;
        picture.draw(&Text::new((i + 1).to_string(), (columns.0, y), right(&colour(row))))?;
        let kind = match (row.tier.as_str(), row.dtype.as_str()) {
            ("t0", "f16") => String::new(),
            (tier, dtype) => format!(" [{tier} {dtype}]"),
        };
        picture.draw(&Text::new(format!("{}{kind}", row.shape), (columns.1, y), font(11.0, &DARK)))?;
        let numbers =
            [digits(row.us, 4).to_string(), digits(row.tflops, 3).to_string(), format!("{:.0}", row.read_percent)];
        for (x, words) in [columns.2, columns.3, columns.4].into_iter().zip(numbers) {
            picture.draw(&Text::new(words, (x, y), right(&DARK)))?;
        }
    }
    y += 2 * LINE;
    let kinds = [
        ("t0", false, "t0: portable"),
        ("t1", false, "t1: subgroups"),
        ("t2", false, "t2: matrix units"),
        ("t0", true, "warm"),
    ];
    for (i, (tier, hollow, words)) in kinds.into_iter().enumerate() {
        let x = columns.1 + 118 * i as i32;
        marker(picture, tier, (GREY, hollow), (x, y + 5))?;
        picture.draw(&Text::new(words, (x + 9, y), font(11.0, &GREY)))?;
    }
    Ok(())
}
