//! The roofline as an SVG: FLOP per byte against TFLOP/s, both logarithmic; the ceilings as lines, a numbered point per
//! row, and the rows' names beside it.

use super::report::{digits, Row, Table};
use std::fmt::Write as _;

const WIDTH: f64 = 1380.0;
/// The plot within the picture: left, top, right; its bottom follows from the height.
const LEFT: f64 = 70.0;
const TOP: f64 = 56.0;
const RIGHT: f64 = 830.0;
const BOTTOM_MARGIN: f64 = 56.0;
const LEGEND: f64 = RIGHT + 24.0;
const LINE: f64 = 15.0;
const POINT: f64 = 4.0;

/// A part of the picture, to keep labels apart.
#[derive(Clone, Copy)]
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Area {
    fn around(x: f64, y: f64, half_width: f64, half_height: f64) -> Self {
        Area { x: x - half_width, y: y - half_height, width: 2.0 * half_width, height: 2.0 * half_height }
    }

    fn overlap(&self, other: &Area) -> f64 {
        let x = (self.x + self.width).min(other.x + other.width) - self.x.max(other.x);
        let y = (self.y + self.height).min(other.y + other.height) - self.y.max(other.y);
        x.max(0.0) * y.max(0.0)
    }
}

/// Logarithmic axes over the plot.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    bottom: f64,
}

impl Axes {
    fn new(table: &Table, bottom: f64) -> Self {
        let c = &table.ceilings;
        let most = c.matmul_tflops.unwrap_or(c.fma_tflops).max(c.fma_tflops);
        let ridge = 1e3 * most / c.read_gbps;
        let over = |value: fn(&Row) -> f64, start: (f64, f64)| {
            table
                .rows
                .iter()
                .map(value)
                .filter(|v| v.is_finite() && *v > 0.0)
                .fold(start, |(low, high), v| (low.min(v), high.max(v)))
        };
        let (x_low, x_high) = over(Row::intensity, (f64::INFINITY, ridge));
        let (y_low, y_high) = over(|row| row.tflops, (most, most));
        Axes { x: (x_low.min(ridge) / 1.6, x_high * 1.6), y: (y_low / 1.8, y_high * 1.8), bottom }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (value / self.x.0).ln() / (self.x.1 / self.x.0).ln()
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - (self.bottom - TOP) * (value / self.y.0).ln() / (self.y.1 / self.y.0).ln()
    }
}

pub fn svg(table: &Table) -> String {
    let height = (TOP + BOTTOM_MARGIN + LINE * (table.rows.len() as f64 + 3.0)).max(620.0);
    let axes = Axes::new(table, (height - BOTTOM_MARGIN).min(760.0));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"11\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut out, (LEFT, 24.0), "font-size=\"15\" font-weight=\"bold\"", "Decode attention: roofline");
    text(&mut out, (LEFT, 42.0), "fill=\"#555\"", &table.adapter);
    grid(&mut out, &axes);
    let mut taken = ceilings(&mut out, &axes, table);
    points(&mut out, &axes, table, &mut taken);
    legend(&mut out, table);
    out + "</svg>\n"
}

fn text(out: &mut String, (x, y): (f64, f64), attributes: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{words}</text>");
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), attributes: &str) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {attributes}/>",
        from.0, from.1, to.0, to.1
    );
}

/// 1, 2 and 5 of every decade.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(decade)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

fn grid(out: &mut String, axes: &Axes) {
    let faint = "stroke=\"#e4e4e4\"";
    for tick in ticks(axes.x) {
        let x = axes.x(tick);
        line(out, (x, TOP), (x, axes.bottom), faint);
        text(out, (x, axes.bottom + 16.0), "text-anchor=\"middle\"", &tick.to_string());
    }
    for tick in ticks(axes.y) {
        let y = axes.y(tick);
        line(out, (LEFT, y), (RIGHT, y), faint);
        text(out, (LEFT - 6.0, y + 4.0), "text-anchor=\"end\"", &tick.to_string());
    }
    let (width, height) = (RIGHT - LEFT, axes.bottom - TOP);
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" stroke=\"#888\"/>"
    );
    let middle = ((LEFT + RIGHT) / 2.0, axes.bottom + 36.0);
    text(out, middle, "text-anchor=\"middle\"", "FLOP per byte that must move");
    let turn = format!("text-anchor=\"middle\" transform=\"rotate(-90 18 {:.1})\"", (TOP + axes.bottom) / 2.0);
    text(out, (18.0, (TOP + axes.bottom) / 2.0), &turn, "TFLOP/s");
}

/// Draws the ceilings, each with its name where it covers the fewest points; returns what they cover.
fn ceilings(out: &mut String, axes: &Axes, table: &Table) -> Vec<Area> {
    let c = &table.ceilings;
    let points = table.rows.iter().map(|row| Area::around(axes.x(row.intensity()), axes.y(row.tflops), 6.0, 6.0));
    let points: Vec<Area> = points.collect();
    let mut taken = Vec::new();
    let mut ceiling = |from: (f64, f64), to: (f64, f64), words: &str| {
        line(out, from, to, "stroke=\"#333\" stroke-width=\"1.6\"");
        taken.extend(pieces(from, to, 4.0));
        let (length, width) = ((to.0 - from.0).hypot(to.1 - from.1), 6.4 * words.len() as f64);
        let at = |distance: f64| {
            let part = distance / length;
            (from.0 + part * (to.0 - from.0), from.1 + part * (to.1 - from.1) - 6.0)
        };
        let areas = |start: f64| pieces(at(start), at(start + width), 7.0);
        let covered = |start: &f64| -> f64 {
            areas(*start).iter().map(|area| points.iter().map(|point| area.overlap(point)).sum::<f64>()).sum()
        };
        // A name longer than its line ends where that does.
        let last = length - width - 8.0;
        let starts = (0..24).map(|i| last - f64::from(i) / 24.0 * (last - 8.0).max(0.0));
        let start = starts.min_by(|a, b| covered(a).total_cmp(&covered(b))).unwrap_or(last);
        let (x, y) = at(start);
        let angle = (to.1 - from.1).atan2(to.0 - from.0).to_degrees();
        text(out, (x, y), &format!("fill=\"#333\" transform=\"rotate({angle:.1} {x:.1} {y:.1})\""), words);
        taken.extend(areas(start));
    };
    let flat = [("f32 multiply-add", Some(c.fma_tflops)), ("f16 matrix units", c.matmul_tflops)];
    for (what, tflops) in flat.into_iter().filter_map(|(what, tflops)| Some((what, tflops?))) {
        let (ridge, y) = ((1e3 * tflops / c.read_gbps).max(axes.x.0), axes.y(tflops));
        ceiling((axes.x(ridge), y), (RIGHT, y), &format!("{what} {} TFLOP/s", digits(tflops, 3)));
    }
    // The slope of the read: up to the highest ceiling.
    let top = c.matmul_tflops.unwrap_or(c.fma_tflops).max(c.fma_tflops);
    let slope = |x: f64| (axes.x(x), axes.y(x * c.read_gbps / 1e3));
    let start = axes.x.0.max(1e3 * axes.y.0 / c.read_gbps);
    ceiling(slope(start), slope(1e3 * top / c.read_gbps), &format!("streaming read {} GB/s", digits(c.read_gbps, 4)));
    taken
}

/// A line as small squares along it.
fn pieces(from: (f64, f64), to: (f64, f64), half: f64) -> Vec<Area> {
    let count = ((to.0 - from.0).hypot(to.1 - from.1) / (1.5 * half)).ceil().max(1.0) as u32;
    let part = |i: u32| f64::from(i) / f64::from(count);
    let piece = |p: f64| Area::around(from.0 + p * (to.0 - from.0), from.1 + p * (to.1 - from.1), half, half);
    (0..=count).map(|i| piece(part(i))).collect()
}

/// Colour of a variant, by the first word of the row's name.
fn colour(row: &Row) -> &'static str {
    match row.shape.split([' ', '-']).next().unwrap_or("") {
        "gqa" => "#1f77b4",
        "gta" => "#ff7f0e",
        "gla" => "#2ca02c",
        "mla" => "#d62728",
        "mha" => "#8c564b",
        _ => "#9467bd",
    }
}

/// A circle, square or triangle, by tier; hollow where the cache was warm.
fn marker(out: &mut String, row: &Row, at: (f64, f64)) {
    tier_marker(out, &row.tier, (colour(row), row.cache == "warm"), at);
}

fn tier_marker(out: &mut String, tier: &str, (colour, hollow): (&str, bool), (x, y): (f64, f64)) {
    let fill = if hollow { "white" } else { colour };
    let style = format!("fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.4\"");
    let r = POINT;
    let shape = match tier {
        "t1" => format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{}\" height=\"{}\" {style}/>",
            x - r,
            y - r,
            2.0 * r,
            2.0 * r
        ),
        "t2" => format!(
            "<path d=\"M{x:.1} {:.1} L{:.1} {:.1} L{:.1} {:.1} Z\" {style}/>",
            y - 1.3 * r,
            x - 1.2 * r,
            y + r,
            x + 1.2 * r,
            y + r
        ),
        _ => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\" {style}/>"),
    };
    out.push_str(&shape);
    out.push('\n');
}

/// Points first, then their numbers, each at the free place nearest to its point.
fn points(out: &mut String, axes: &Axes, table: &Table, taken: &mut Vec<Area>) {
    let at: Vec<(f64, f64)> = table.rows.iter().map(|row| (axes.x(row.intensity()), axes.y(row.tflops))).collect();
    taken.extend(at.iter().map(|(x, y)| Area::around(*x, *y, POINT + 1.0, POINT + 1.0)));
    let mut labels = String::new();
    for (i, (row, &(x, y))) in table.rows.iter().zip(&at).enumerate() {
        marker(out, row, (x, y));
        let number = (i + 1).to_string();
        let (half_width, half_height) = (3.4 * number.len() as f64 + 1.0, 6.0);
        let place = |distance: f64, turn: f64| {
            let (dx, dy) = (distance * turn.cos(), distance * turn.sin());
            Area::around(x + dx, y + dy, half_width, half_height)
        };
        let inside = |area: &Area| {
            area.x > LEFT && area.x + area.width < RIGHT && area.y > TOP && area.y + area.height < axes.bottom
        };
        let places = (0..14).flat_map(|ring| {
            let distance = 12.0 + 7.0 * f64::from(ring);
            (0..24).map(move |step| (distance, f64::from(step) * std::f64::consts::TAU / 24.0 - 0.8))
        });
        let cost = |&(distance, turn): &(f64, f64)| {
            let area = place(distance, turn);
            let covered: f64 = taken.iter().map(|other| area.overlap(other)).sum();
            distance + 20.0 * covered + if inside(&area) { 0.0 } else { 1e6 }
        };
        let Some((distance, turn)) = places.min_by(|a, b| cost(a).total_cmp(&cost(b))) else { continue };
        let area = place(distance, turn);
        let (cx, cy) = (area.x + half_width, area.y + half_height);
        if distance > 16.0 {
            let near = |from: f64, to: f64, part: f64| from + part * (to - from);
            let (start, end) = (POINT / distance, 1.0 - 7.0 / distance);
            let attributes = format!("stroke=\"{}\" stroke-width=\"0.6\" opacity=\"0.7\"", colour(row));
            line(
                &mut labels,
                (near(x, cx, start), near(y, cy, start)),
                (near(x, cx, end), near(y, cy, end)),
                &attributes,
            );
        }
        let attributes = format!("text-anchor=\"middle\" font-size=\"10\" fill=\"{}\"", colour(row));
        text(&mut labels, (cx, cy + 3.6), &attributes, &number);
        taken.push(area);
    }
    out.push_str(&labels);
}

fn legend(out: &mut String, table: &Table) {
    let mut y = TOP + 4.0;
    let right = "text-anchor=\"end\"";
    let columns = (LEGEND + 16.0, LEGEND + 36.0, LEGEND + 390.0, LEGEND + 448.0, LEGEND + 500.0);
    let head = "font-weight=\"bold\"";
    text(out, (columns.1, y), head, "shape");
    for (x, words) in [(columns.2, "us"), (columns.3, "TFLOP/s"), (columns.4, "% read")] {
        text(out, (x, y), &format!("{head} {right}"), words);
    }
    for (i, row) in table.rows.iter().enumerate() {
        y += LINE;
        marker(out, row, (LEGEND + 26.0, y - 4.0));
        text(out, (columns.0, y), &format!("{right} fill=\"{}\"", colour(row)), &(i + 1).to_string());
        let kind = if (row.tier.as_str(), row.dtype.as_str()) == ("t0", "f16") {
            String::new()
        } else {
            format!(" [{} {}]", row.tier, row.dtype)
        };
        text(out, (columns.1, y), "", &format!("{}{kind}", row.shape));
        text(out, (columns.2, y), right, &digits(row.us, 4).to_string());
        text(out, (columns.3, y), right, &digits(row.tflops, 3).to_string());
        text(out, (columns.4, y), right, &format!("{:.0}", row.read_percent));
    }
    y += 2.0 * LINE;
    let kinds = [
        ("t0", false, "t0: portable"),
        ("t1", false, "t1: subgroups"),
        ("t2", false, "t2: matrix units"),
        ("t0", true, "warm"),
    ];
    for (i, (tier, hollow, words)) in kinds.into_iter().enumerate() {
        let x = columns.1 + 118.0 * i as f64;
        tier_marker(out, tier, ("#555", hollow), (x, y - 4.0));
        text(out, (x + 9.0, y), "fill=\"#555\"", words);
    }
}
