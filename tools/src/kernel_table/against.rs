//! Two runs beside each other: which rows moved.

use super::report::{Row, Table};

/// Less is noise.
const MOVED_PERCENT: f64 = 3.0;

/// A row of both runs whose percent of read moved by more than [`MOVED_PERCENT`] of what it was, or a row of one alone.
#[derive(Debug, PartialEq)]
pub(crate) enum Moved {
    /// Percent of read before and now.
    Read {
        name: String,
        before: f64,
        now: f64,
    },
    Gone {
        name: String,
    },
    New {
        name: String,
    },
}

/// The names by which rows are found.
fn name(row: &Row) -> String {
    let Row { shape, tier, dtype, cache, .. } = row;
    let warm = if cache == "warm" { " warm" } else { "" };
    format!("{shape} {tier} {dtype}{warm}")
}

/// What moved from one run to the next, in the order of the rows of `now`; then what is gone.
pub(crate) fn moved(before: &Table, now: &Table) -> Vec<Moved> {
    let mut all = Vec::new();
    for row in &now.rows {
        let name = name(row);
        match before.rows.iter().find(|old| self::name(old) == name) {
            None => all.push(Moved::New { name }),
            Some(old) => {
                let (before, now) = (old.read_percent, row.read_percent);
                let change = (now - before).abs();
                if change.is_nan() || change > MOVED_PERCENT / 100.0 * before.abs() {
                    all.push(Moved::Read { name, before, now });
                }
            }
        }
    }
    let names: Vec<String> = now.rows.iter().map(self::name).collect();
    all.extend(
        before.rows.iter().map(self::name).filter(|name| !names.contains(name)).map(|name| Moved::Gone { name }),
    );
    all
}

/// As lines, with where the runs come from.
pub(crate) fn text(before: &Table, now: &Table) -> String {
    let origin = |table: &Table| {
        let facts = &table.facts;
        let of = |what: &Option<String>| what.clone().unwrap_or_else(|| "unknown".into());
        format!("commit {}, {}, {}", of(&facts.commit), of(&facts.date), table.adapter)
    };
    let all = moved(before, now);
    let mut lines = vec![format!("before: {}", origin(before)), format!("now:    {}", origin(now))];
    for row in &all {
        lines.push(match row {
            Moved::Read { name, before, now } => {
                let change = 100.0 * (now / before - 1.0);
                format!("{name:<52} {before:>6.1} -> {now:>6.1} % of read ({change:+.1}%)")
            }
            Moved::Gone { name } => format!("{name:<52} not measured now"),
            Moved::New { name } => format!("{name:<52} not measured before"),
        });
    }
    let both = now.rows.len() - all.iter().filter(|row| matches!(row, Moved::New { .. })).count();
    let count = all.iter().filter(|row| matches!(row, Moved::Read { .. })).count();
    lines.push(format!("{count} of {both} rows moved by more than {MOVED_PERCENT}% of their percent of read"));
    lines.join("\n") + "\n"
}
