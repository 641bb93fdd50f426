//! The date, for templates that tell it. Pure but for the clock.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The time in UTC, written as `strftime` of Python does it.
pub(crate) fn strftime_now(format: &str) -> String {
    strftime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()), format)
}

/// Seconds since 1970, written so. A sign that is not known stays.
fn strftime(seconds: u64, format: &str) -> String {
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, of_month) = civil(day);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let of_year = day - days_before(year) + 1;
    let (name, month_name) = (DAYS[((day + 4) % 7) as usize], MONTHS[(month - 1) as usize]);
    let hour_12 = (hour + 11) % 12 + 1;
    let mut text = String::new();
    let mut signs = format.chars();
    while let Some(sign) = signs.next() {
        let plain = if sign == '%' { signs.next() } else { None };
        match plain {
            Some('Y') => text += &year.to_string(),
            Some('y') => text += &format!("{:02}", year % 100),
            Some('m') => text += &format!("{month:02}"),
            Some('d') => text += &format!("{of_month:02}"),
            Some('B') => text += month_name,
            Some('b') => text += &month_name[..3],
            Some('A') => text += name,
            Some('a') => text += &name[..3],
            Some('H') => text += &format!("{hour:02}"),
            Some('I') => text += &format!("{hour_12:02}"),
            Some('M') => text += &format!("{minute:02}"),
            Some('S') => text += &format!("{:02}", second % 60),
            Some('p') => text += if hour < 12 { "AM" } else { "PM" },
            Some('j') => text += &format!("{of_year:03}"),
            Some('F') => text += &format!("{year}-{month:02}-{of_month:02}"),
            Some('T') => text += &format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push(sign),
        }
    }
    text
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// From 1970 to a year's first day.
fn days_before(year: u64) -> u64 {
    let before = year.saturating_sub(1);
    365 * year.saturating_sub(1970) + (before / 4 - 492) - (before / 100 - 19) + (before / 400 - 4)
}

/// Year, month and day of a day since 1970.
fn civil(day: u64) -> (u64, u64, u64) {
    let mut year = 1970 + day / 366;
    while days_before(year + 1) <= day {
        year += 1;
    }
    let mut left = day - days_before(year);
    for month in 1..=12 {
        let days = match month {
            2 => 28 + u64::from(is_leap(year)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if left < days {
            return (year, month, left + 1);
        }
        left -= days;
    }
    (year, 12, 31) // a year's days end above
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// Of Python's `datetime.fromtimestamp(s, timezone.utc).strftime`.
    #[test]
    fn dates_are_pythons() {
        for (seconds, want) in [
            (0, "1970-01-01 00:00:00 Thursday Thu January Jan 70 12 AM 001"),
            (951_782_400, "2000-02-29 00:00:00 Tuesday Tue February Feb 00 12 AM 060"),
            (1_709_251_199, "2024-02-29 23:59:59 Thursday Thu February Feb 24 11 PM 060"),
            (1_735_689_599, "2024-12-31 23:59:59 Tuesday Tue December Dec 24 11 PM 366"),
            (4_102_444_800, "2100-01-01 00:00:00 Friday Fri January Jan 00 12 AM 001"),
        ] {
            assert_eq!(strftime(seconds, "%Y-%m-%d %H:%M:%S %A %a %B %b %y %I %p %j"), want);
        }
        assert_eq!(strftime(0, "%d %b %Y %% %q %F %T%"), "01 Jan 1970 % %q 1970-01-01 00:00:00%");
    }
}
