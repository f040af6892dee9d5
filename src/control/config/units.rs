//! Times, sizes and CPU lists as the file spells them.
//!
//! Every error is the second half of a message: what to write instead.

use std::time::Duration;

/// Longest time the file may name; far above any use, far below what clock arithmetic bears.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 86_400);

/// Highest CPU number plus one: the size of the kernel's fixed CPU set (`CPU_SETSIZE`).
pub const CPUS_MAX: usize = 1024;

const WRITE_DURATION: &str =
    r#"write a whole number and a unit, like "500ms", "30s", "5m", "1h" or "1d""#;
const WRITE_SIZE: &str = r#"write bytes or a size like "16k", "1m" or "2g""#;
const WRITE_CPUS: &str = r#"write CPU numbers and ranges like "0-3,6""#;

/// Reads `500ms`, `30s`, `5m`, `1h` or `1d`; the unit is never guessed.
///
/// # Errors
///
/// What to write, when it is anything else or longer than [`DURATION_MAX`].
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if digits > 0 => return Err(format!("a time needs a unit: {WRITE_DURATION}")),
        _ => return Err(WRITE_DURATION.to_owned()),
    };
    if digits == 0 {
        return Err(WRITE_DURATION.to_owned());
    }
    let value = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_ms));
    value
        .map(Duration::from_millis)
        .filter(|value| *value <= DURATION_MAX)
        .ok_or_else(|| "write at most \"365d\"".to_owned())
}

/// The shortest spelling that [`duration`] reads back as the same time.
#[must_use]
pub fn show_duration(value: Duration) -> String {
    let ms = value.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    units
        .into_iter()
        .find(|(unit_ms, _)| ms > 0 && ms.is_multiple_of(*unit_ms))
        .map_or_else(|| format!("{ms}ms"), |(unit_ms, unit)| format!("{}{unit}", ms / unit_ms))
}

/// Reads `16k`, `1m` or `2g` (powers of 1024) or plain digits (bytes).
///
/// # Errors
///
/// What to write, when it is anything else or does not fit 63 bits.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        _ => return Err(WRITE_SIZE.to_owned()),
    };
    if digits == 0 {
        return Err(WRITE_SIZE.to_owned());
    }
    let value = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    value
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| format!("the size is too large: {WRITE_SIZE}"))
}

/// The shortest spelling that [`size`] reads back as the same number.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let units = [(30, "g"), (20, "m"), (10, "k")];
    units
        .into_iter()
        .find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// Reads a CPU list as `taskset` does: numbers and ranges, comma separated. The order is kept.
///
/// # Errors
///
/// What to write, when it is anything else, names a CPU twice or one that no kernel has.
pub fn cpus(text: &str) -> Result<Vec<usize>, String> {
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (cpu(first)?, cpu(last)?);
        if first > last {
            return Err(format!("the range {first}-{last} runs backwards: write {last}-{first}"));
        }
        for cpu in first..=last {
            if list.contains(&cpu) {
                return Err(format!("CPU {cpu} is named twice: {WRITE_CPUS}"));
            }
            list.push(cpu);
        }
    }
    Ok(list)
}

fn cpu(text: &str) -> Result<usize, String> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(WRITE_CPUS.to_owned());
    }
    text.parse()
        .ok()
        .filter(|cpu| *cpu < CPUS_MAX)
        .ok_or_else(|| format!("CPU numbers end at {}: {WRITE_CPUS}", CPUS_MAX - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, ms) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("365d", 365 * 86_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "30", "1.5s", "-1s", "1h30m", " 1s", "1 s", "1S", "1w", "٣s"] {
            assert!(duration(text).unwrap_err().contains("\"500ms\""), "{text}");
        }
        for text in ["366d", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(text).unwrap_err().contains("365d"), "{text}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("16k", 16 << 10), ("1m", 1 << 20), ("2G", 2 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "k", "1kb", "1.5m", "-1", "1 m", "1t", "9223372036854775808", "99999999999g"]
        {
            assert!(size(text).unwrap_err().contains("\"16k\""), "{text}");
        }
    }

    #[test]
    fn cpu_lists_keep_their_order() {
        for (text, list) in [
            ("0", vec![0]),
            ("0-3,6", vec![0, 1, 2, 3, 6]),
            ("6, 0-1", vec![6, 0, 1]),
            ("1023", vec![1023]),
        ] {
            assert_eq!(cpus(text), Ok(list), "{text}");
        }
        for (text, says) in [
            ("", "like \"0-3,6\""),
            ("a", "like \"0-3,6\""),
            ("0-", "like \"0-3,6\""),
            ("0-1-2", "like \"0-3,6\""),
            ("0,", "like \"0-3,6\""),
            ("+1", "like \"0-3,6\""),
            ("3-0", "write 0-3"),
            ("0-3,2", "CPU 2 is named twice"),
            ("1024", "end at 1023"),
            ("0-99999999999999999999", "end at 1023"),
        ] {
            let error = cpus(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn shown_values_read_back(ms in 0..=365 * 86_400_000u64, bytes in 0..=u64::MAX >> 1) {
            let time = Duration::from_millis(ms);
            prop_assert_eq!(duration(&show_duration(time)), Ok(time));
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,24}") {
            let _ = (duration(&text), size(&text), cpus(&text));
        }
    }
}
