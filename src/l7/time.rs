//! Calendar time in the notations of HTTP and of logs; all of it UTC.

/// 9999-12-31T23:59:59Z, the last second with a year of four digits; later times are shown as it.
const UNIX_SECONDS_MAX: u64 = 253_402_300_799;

const WEEKDAYS: [&[u8; 3]; 7] = [b"Sun", b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat"];

const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// An IMF-fixdate (RFC 9110 section 5.6.7), e.g. `Sun, 06 Nov 1994 08:49:37 GMT`.
#[must_use]
pub fn http_date(unix_seconds: u64) -> [u8; 29] {
    let time = Civil::from_unix(unix_seconds);
    let mut text = *b"Www, DD Mmm YYYY hh:mm:ss GMT";
    put(&mut text, 0, time.weekday_name());
    put(&mut text, 5, &two_digits(time.day));
    put(&mut text, 8, time.month_name());
    put(&mut text, 12, &four_digits(time.year));
    put(&mut text, 17, &time.clock());
    text
}

/// The notation of nginx's `$time_local`, e.g. `06/Nov/1994:08:49:37 +0000`.
#[must_use]
pub fn common_log_date(unix_ms: u64) -> [u8; 26] {
    let time = Civil::from_unix(unix_ms / 1000);
    let mut text = *b"DD/Mmm/YYYY:hh:mm:ss +0000";
    put(&mut text, 0, &two_digits(time.day));
    put(&mut text, 3, time.month_name());
    put(&mut text, 7, &four_digits(time.year));
    put(&mut text, 12, &time.clock());
    text
}

/// RFC 3339 with milliseconds, e.g. `1994-11-06T08:49:37.000Z`.
#[must_use]
pub fn rfc3339_ms(unix_ms: u64) -> [u8; 24] {
    let time = Civil::from_unix(unix_ms / 1000);
    let mut text = *b"YYYY-MM-DDThh:mm:ss.mmmZ";
    put(&mut text, 0, &four_digits(time.year));
    put(&mut text, 5, &two_digits(time.month));
    put(&mut text, 8, &two_digits(time.day));
    put(&mut text, 11, &time.clock());
    let [_, milliseconds @ ..] = four_digits((unix_ms % 1000) as u32);
    put(&mut text, 20, &milliseconds);
    text
}

/// Overwrites `text` from `start`; what does not fit is left out.
fn put(text: &mut [u8], start: usize, part: &[u8]) {
    text.iter_mut().skip(start).zip(part).for_each(|(to, from)| *to = *from);
}

/// A point in time on the proleptic Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    year: u32,
    /// 1 to 12.
    month: u32,
    /// 1 to 31.
    day: u32,
    /// Days since Sunday.
    weekday: u32,
    second_of_day: u32,
}

impl Civil {
    fn from_unix(seconds: u64) -> Self {
        let seconds = seconds.min(UNIX_SECONDS_MAX);
        let second_of_day = (seconds % 86_400) as u32;
        let days = (seconds / 86_400) as u32;
        let (year, month, day) = date(days);
        // 1970-01-01 was a Thursday.
        Self { year, month, day, weekday: (days + 4) % 7, second_of_day }
    }

    fn weekday_name(&self) -> &'static [u8] {
        WEEKDAYS.get(self.weekday as usize).map_or(b"", |name| *name)
    }

    fn month_name(&self) -> &'static [u8] {
        MONTHS.get((self.month - 1) as usize).map_or(b"", |name| *name)
    }

    /// `hh:mm:ss`
    fn clock(&self) -> [u8; 8] {
        let mut text = *b"hh:mm:ss";
        put(&mut text, 0, &two_digits(self.second_of_day / 3600));
        put(&mut text, 3, &two_digits(self.second_of_day / 60 % 60));
        put(&mut text, 6, &two_digits(self.second_of_day % 60));
        text
    }
}

/// Year, month and day of the day that is `days` after 1970-01-01.
///
/// Counts in years that start on 1 March: the leap day is then the last of its year, and the lengths
/// of the months before it repeat every five months (153 days).
fn date(days: u32) -> (u32, u32, u32) {
    const DAYS_PER_ERA: u32 = 146_097; // 400 years
    let from_year_0 = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (from_year_0 / DAYS_PER_ERA, from_year_0 % DAYS_PER_ERA);
    // Leap days before this one, taken out so that all years have 365 days.
    let leap_days = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_since_march + 2) / 5 + 1;
    let (month, next_year) = if months_since_march < 10 {
        (months_since_march + 3, 0)
    } else {
        (months_since_march - 9, 1)
    };
    (era * 400 + year_of_era + next_year, month, day)
}

fn two_digits(number: u32) -> [u8; 2] {
    [digit(number / 10), digit(number)]
}

fn four_digits(number: u32) -> [u8; 4] {
    [digit(number / 1000), digit(number / 100), digit(number / 10), digit(number)]
}

/// The last digit.
fn digit(number: u32) -> u8 {
    b'0' + (number % 10) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn http_dates() {
        // From RFC 9110, and `date -u -d @N`.
        for (seconds, expected) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (2_147_483_648, "Tue, 19 Jan 2038 03:14:08 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(text(&http_date(seconds)), expected);
        }
    }

    #[test]
    fn log_dates() {
        assert_eq!(text(&common_log_date(784_111_777_999)), "06/Nov/1994:08:49:37 +0000");
        assert_eq!(text(&rfc3339_ms(784_111_777_042)), "1994-11-06T08:49:37.042Z");
        assert_eq!(text(&rfc3339_ms(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(&rfc3339_ms(1_709_251_199_999)), "2024-02-29T23:59:59.999Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let is_leap = |year: u32| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..=2_932_896 {
            assert_eq!(date(days), (year, month, day));
            let last = match month {
                2 => 28 + u32::from(is_leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > last {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (10_000, 1, 1));
    }
}
