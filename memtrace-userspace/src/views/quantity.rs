//! Bytes, counts and times, as people read them.
//!
//! One convention everywhere: IEC units (1 KiB = 1024 B) with one decimal, counts exact up to
//! 99,999 and then with one decimal and an SI letter. Exact numbers are in the JSON report.

use std::time::Duration;

/// `0 B`, `1023 B`, `1.5 KiB`, `16.0 EiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    scaled(bytes, 1024, &UNITS, " ")
}

/// `0`, `99,999`, `100.0k`, `1.2M`.
pub fn count(count: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    match count {
        0..1_000 => count.to_string(),
        1_000..100_000 => format!("{},{:03}", count / 1_000, count % 1_000),
        _ => scaled(count, 1_000, &UNITS, ""),
    }
}

/// `0 calls`, `1 call`, `1.2M calls`.
pub fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(number))
}

/// `value` with one decimal in the largest unit that leaves less than `step` of it.
fn scaled(value: u64, step: u64, units: &[&str], separator: &str) -> String {
    let step = u128::from(step);
    let mut tenths = u128::from(value) * 10;
    let mut unit = "";
    for name in units {
        tenths = (tenths + step / 2) / step;
        unit = name;
        if tenths < step * 10 {
            break;
        }
    }
    format!("{}.{}{separator}{unit}", tenths / 10, tenths % 10)
}

/// `350 ms`, `12.3 s`, `4m05s`, `3h02m`, `2d05h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{}.{} s", seconds, duration.subsec_millis() / 100),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// A moment of the session as a clock shows it: `00:00:12`.
pub fn clock(since_start: Duration) -> String {
    let seconds = since_start.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds % 3_600 / 60, seconds % 60)
}

/// `part` of `whole` in per cent with one decimal; `-` if there is no whole.
pub fn share(part: u64, whole: u64) -> String {
    match permille(part, whole) {
        Some(permille) => format!("{}.{}%", permille / 10, permille % 10),
        None => "-".to_owned(),
    }
}

/// A bar of `width` cells, filled to an eighth of a cell in proportion to `part` of `whole`.
pub fn bar(part: u64, whole: u64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if whole == 0 {
        return " ".repeat(width);
    }
    let eighths = u128::from(part.min(whole)) * (width as u128) * 8 / u128::from(whole);
    let eighths = usize::try_from(eighths).expect("at most eight times the width");
    let partial = EIGHTHS[eighths % 8];
    let blanks = width - eighths / 8 - usize::from(!partial.is_empty());
    format!("{}{partial}{}", "█".repeat(eighths / 8), " ".repeat(blanks))
}

/// The values as a line of at most `width` cells.
pub fn sparkline(values: &[u64], width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let cells = highest_of_each(values, width);
    let highest = u128::from(cells.iter().copied().max().unwrap_or(0).max(1));
    cells
        .into_iter()
        .map(|value| {
            let level = u128::from(value) * 7 / highest;
            LEVELS[usize::try_from(level).expect("at most 7")]
        })
        .collect()
}

/// The values in at most `cells` equal parts, and of each part the highest value.
pub fn highest_of_each(values: &[u64], cells: usize) -> Vec<u64> {
    let cells = cells.min(values.len());
    (0..cells)
        .map(|cell| {
            let part = &values[cell * values.len() / cells..(cell + 1) * values.len() / cells];
            part.iter().copied().max().unwrap_or(0)
        })
        .collect()
}

fn permille(part: u64, whole: u64) -> Option<u128> {
    let whole = u128::from(whole);
    (u128::from(part) * 1_000 + whole / 2).checked_div(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_decimal_and_iec_units() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, expected) in cases {
            assert_eq!(bytes(value), expected, "{value}");
        }
    }

    #[test]
    fn counts_are_exact_while_they_are_short() {
        let cases = [
            (7, "7"),
            (1_000, "1,000"),
            (99_999, "99,999"),
            (100_000, "100.0k"),
            (1_234_567, "1.2M"),
            (u64::MAX, "18.4E"),
        ];
        for (value, expected) in cases {
            assert_eq!(count(value), expected, "{value}");
        }
    }

    #[test]
    fn durations_keep_two_units() {
        let cases = [
            (350, "350 ms"),
            (12_345, "12.3 s"),
            (245_000, "4m05s"),
            (10_920_000, "3h02m"),
            (190_800_000, "2d05h"),
        ];
        for (ms, expected) in cases {
            assert_eq!(duration(Duration::from_millis(ms)), expected, "{ms}");
        }
    }

    #[test]
    fn one_thing_is_singular() {
        assert_eq!(counted(1, "call"), "1 call");
        assert_eq!(counted(0, "call"), "0 calls");
    }

    #[test]
    fn sparkline_keeps_the_highest_of_what_a_cell_stands_for() {
        assert_eq!(sparkline(&[0, 7, 0, 0], 2), "█▁");
        assert_eq!(sparkline(&[0, 1, 7], 10), "▁▂█");
        assert_eq!(sparkline(&[0, 0], 2), "▁▁");
        assert_eq!(sparkline(&[], 10), "");
        assert_eq!(sparkline(&[u64::MAX], 1), "█");
    }

    #[test]
    fn share_without_a_whole_is_a_dash() {
        assert_eq!(share(1, 0), "-");
        assert_eq!(share(1, 3), "33.3%");
        assert_eq!(share(u64::MAX, u64::MAX), "100.0%");
    }

    #[test]
    fn bar_fills_its_width_exactly() {
        assert_eq!(bar(0, 10, 4), "    ");
        assert_eq!(bar(10, 10, 4), "████");
        assert_eq!(bar(1, 2, 3), "█▌ ");
        assert_eq!(bar(99, 10, 4), "████");
        assert_eq!(bar(1, 0, 4), "    ");
    }
}
