//! Sizes and durations as arguments.
//!
//! ```text
//!   64K  = 64Ki = 64KiB = 64 × 1024      10s  500ms  5m  2h  1d  1.5s
//!   25KB = 25 × 1000
//! ```

use std::time::Duration;

use thiserror::Error;

/// Why an argument is no size or no duration.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum QuantityError {
    /// No number at the start.
    #[error("expected a number with a unit, such as {example}")]
    NoNumber { example: &'static str },
    /// A number alone, of what has several units.
    #[error("the unit is missing; add one of {known}")]
    NoUnit { known: &'static str },
    /// A number, and behind it something else.
    #[error("unknown unit `{found}`; use one of {known}")]
    UnknownUnit { found: String, known: &'static str },
    /// More than fits.
    #[error("too large")]
    TooLarge,
}

/// Parses a size in bytes: `4096`, `64K`, `25MB`, `1GiB`.
///
/// A single letter and `KiB` count in 1024, `KB` in 1000, as in `dd` and `ls`.
pub(crate) fn size(text: &str) -> Result<u64, QuantityError> {
    let (number, unit) = number_and_unit(text, "64K, 25MB or 1GiB")?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => {
            return Err(unknown_unit(unit, "K, M, G, T (1024) or KB, MB, GB, TB (1000)"));
        }
    };
    scale(number, factor)
}

/// Parses a duration: `500ms`, `10s`, `5m`, `2h`, `1d`.
pub(crate) fn duration(text: &str) -> Result<Duration, QuantityError> {
    let (number, unit) = number_and_unit(text, "10s, 5m or 500ms")?;
    let factor = match unit {
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => {
            return Err(unknown_unit(unit, "ms, s, m, h, d"));
        }
    };
    scale(number, factor).map(Duration::from_nanos)
}

/// [`duration`] for where none at all makes no sense.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text).map_err(|error| error.to_string())? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// Parses a share: `5%`, `0.5%`; in parts per million.
pub(crate) fn share(text: &str) -> Result<u64, QuantityError> {
    let (number, unit) = number_and_unit(text, "5% or 0.5%")?;
    match unit {
        "%" => scale(number, 10_000),
        _ => Err(unknown_unit(unit, "%")),
    }
}

/// Parses a count: `1000000`, `1_000_000`.
pub(crate) fn count(text: &str) -> Result<u64, QuantityError> {
    let digits = text.replace('_', "");
    match number_and_unit(&digits, "1000000 or 1_000_000")? {
        (number @ Decimal { fraction_digits: 0, .. }, "") => scale(number, 1),
        _ => Err(QuantityError::NoNumber { example: "1000000 or 1_000_000" }),
    }
}

/// A decimal number as its digits and the power of ten to divide them by.
#[derive(Clone, Copy)]
struct Decimal {
    digits: u64,
    fraction_digits: u32,
}

fn number_and_unit<'t>(
    text: &'t str,
    example: &'static str,
) -> Result<(Decimal, &'t str), QuantityError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
        return Err(QuantityError::NoNumber { example });
    }
    let decimal = Decimal {
        digits: digits.parse().map_err(|_| QuantityError::TooLarge)?,
        fraction_digits: u32::try_from(fraction.len()).map_err(|_| QuantityError::TooLarge)?,
    };
    Ok((decimal, unit.trim_start()))
}

fn unknown_unit(unit: &str, known: &'static str) -> QuantityError {
    match unit {
        "" => QuantityError::NoUnit { known },
        found => QuantityError::UnknownUnit { found: found.to_owned(), known },
    }
}

fn scale(number: Decimal, factor: u64) -> Result<u64, QuantityError> {
    let product = u128::from(number.digits) * u128::from(factor);
    let divisor = 10u128.checked_pow(number.fraction_digits).ok_or(QuantityError::TooLarge)?;
    u64::try_from(product / divisor).map_err(|_| QuantityError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_every_kind() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("17B", 17),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("25MB", 25_000_000),
            ("25 MB", 25_000_000),
            ("1GiB", 1 << 30),
            ("1.5G", 3 << 29),
            ("2T", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn durations_of_every_kind() {
        let cases = [
            ("500ms", 500),
            ("10s", 10_000),
            ("1.5s", 1_500),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ];
        for (text, ms) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn shares_and_counts_are_exact() {
        assert_eq!(share("5%"), Ok(50_000));
        assert_eq!(share("0.5 %"), Ok(5_000));
        assert_eq!(
            share("5").expect_err("no unit").to_string(),
            "the unit is missing; add one of %"
        );
        assert_eq!(count("1_000_000"), Ok(1_000_000));
        assert_eq!(count("20"), Ok(20));
        assert!(count("20K").is_err() && count("1.5").is_err() && count("").is_err());
    }

    #[test]
    fn text_without_a_number_says_what_one_looks_like() {
        for text in ["", "K", "-1K", ".5K", "1.K", "1.2.3K"] {
            let error = size(text).expect_err(text).to_string();
            assert_eq!(error, "expected a number with a unit, such as 64K, 25MB or 1GiB");
        }
    }

    #[test]
    fn unknown_unit_lists_the_known_ones() {
        assert_eq!(
            duration("10").expect_err("no unit").to_string(),
            "the unit is missing; add one of ms, s, m, h, d"
        );
        assert_eq!(
            size("1X").expect_err("no such unit").to_string(),
            "unknown unit `X`; use one of K, M, G, T (1024) or KB, MB, GB, TB (1000)"
        );
    }

    #[test]
    fn too_large_is_an_error() {
        assert_eq!(size("99999999T"), Err(QuantityError::TooLarge));
        assert_eq!(size("99999999999999999999"), Err(QuantityError::TooLarge));
        assert_eq!(duration("999999d"), Err(QuantityError::TooLarge));
        assert_eq!(size(&format!("0.{}1", "0".repeat(60))), Err(QuantityError::TooLarge));
    }

    #[test]
    fn zero_is_no_interval() {
        assert_eq!(positive_duration("0s"), Err("must be more than 0".to_owned()));
        assert_eq!(positive_duration("1s"), Ok(Duration::from_secs(1)));
    }
}
