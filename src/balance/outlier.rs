//! Outlier detection: members that fail or dawdle where the others do not are ejected for a while. Pure: counts
//! and a time in, decisions out.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A mean below this is never an outlier, in milliseconds.
const LATENCY_MIN_MS: u64 = 10;
/// A member that is ejected again and again stays out at most this many times the ejection time.
const TIMES_MAX: u32 = 10;

/// What makes an outlier, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How often members are judged.
    pub interval: Duration,
    /// Share of requests with 5xx or no response that ejects, in percent; 0: errors do not matter.
    pub error_percent: u32,
    /// Mean time to a response over the median of the other members' that ejects; 0: latency does not matter.
    pub latency_factor: u32,
    /// Fewer requests than this in an interval say nothing.
    pub min_requests: u64,
    /// How long a member is out; twice as long the second time, and so on.
    pub ejection_time: Duration,
    /// Never more than this share of the members is out, in percent.
    pub max_ejected: u32,
}

/// A member's figures since it is known; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attempts that ended, with or without a response.
    pub requests: u64,
    /// Of these: 5xx, or none.
    pub errors: u64,
    /// Responses.
    pub responses: u64,
    /// Sum of the times to a response's head, in ms.
    pub latency_ms: u64,
}

impl Totals {
    fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
            responses: self.responses.saturating_sub(before.responses),
            latency_ms: self.latency_ms.saturating_sub(before.latency_ms),
        }
    }

    fn mean_ms(self) -> u64 {
        self.latency_ms / self.responses.max(1)
    }
}

/// What is remembered of a member from one interval to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    before: Totals,
    /// Out until then.
    until_ms: Option<u64>,
    /// Ejections, less one for each interval in good standing.
    times: u32,
}

impl Record {
    /// One whose figures count from here.
    #[must_use]
    pub fn new(before: Totals) -> Self {
        Self { before, ..Self::default() }
    }

    /// One whose past is known: out until then, and so many ejections.
    #[must_use]
    pub fn standing(until_ms: Option<u64>, times: u32) -> Self {
        Self { before: Totals::default(), until_ms, times: times.min(TIMES_MAX) }
    }

    /// Until when it is out.
    #[must_use]
    pub fn until_ms(&self) -> Option<u64> {
        self.until_ms
    }

    /// Ejections, less one for each interval in good standing.
    #[must_use]
    pub fn times(&self) -> u32 {
        self.times
    }

    /// True while it is out.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.until_ms.is_some()
    }
}

/// Why a member is an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// So many percent of its requests failed.
    Errors(u64),
    /// Its mean, and the median of the others', in ms.
    Latency(u64, u64),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errors(percent) => write!(f, "{percent} % of its requests failed"),
            Self::Latency(mean, median) => {
                write!(f, "{mean} ms to a response, the others {median} ms")
            }
        }
    }
}

/// A decision about the member at an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is out from now on.
    Eject(usize, Reason),
    /// It has served its time.
    Readmit(usize),
    /// It is an outlier, but as many as may be are out already.
    Spare(usize, Reason),
}

/// Judges the members of an upstream at the end of an interval; `records` has theirs in the order of `totals`.
pub fn judge(
    settings: &Settings,
    records: &mut [Record],
    totals: &[Totals],
    now_ms: u64,
) -> Vec<Decision> {
    let mut decisions = readmit(records, now_ms);
    let deltas: Vec<Totals> = records
        .iter_mut()
        .zip(totals)
        .map(|(record, now)| now.since(std::mem::replace(&mut record.before, *now)))
        .collect();
    let mut outliers = outliers(settings, records, &deltas);
    for (index, record) in records.iter_mut().enumerate() {
        if record.until_ms.is_none() && !outliers.iter().any(|(_, outlier, _)| *outlier == index) {
            record.times = record.times.saturating_sub(1);
        }
    }
    // The worst first, in case there is room for some only.
    outliers.sort_by_key(|(severity, index, _)| (u64::MAX - severity, *index));
    let ejection_ms = u64::try_from(settings.ejection_time.as_millis()).unwrap_or(u64::MAX);
    let mut out = records.iter().filter(|record| record.is_ejected()).count() as u64;
    for (_, index, reason) in outliers {
        let most = records.len() as u64 * u64::from(settings.max_ejected) / 100;
        if out >= most {
            decisions.push(Decision::Spare(index, reason));
            continue;
        }
        let record = &mut records[index];
        record.times = (record.times + 1).min(TIMES_MAX);
        let time = ejection_ms.saturating_mul(u64::from(record.times));
        record.until_ms = Some(now_ms.saturating_add(time));
        out += 1;
        decisions.push(Decision::Eject(index, reason));
    }
    decisions
}

/// Ends ejections that are over; the part of [`judge`] that need not wait for an interval's end.
pub fn readmit(records: &mut [Record], now_ms: u64) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for (index, record) in records.iter_mut().enumerate() {
        if record.until_ms.is_some_and(|until| until <= now_ms) {
            record.until_ms = None;
            decisions.push(Decision::Readmit(index));
        }
    }
    decisions
}

/// Outliers with how bad they are (a multiple of what is allowed, in percent).
fn outliers(
    settings: &Settings,
    records: &[Record],
    deltas: &[Totals],
) -> Vec<(u64, usize, Reason)> {
    let judged = |index: &usize| {
        deltas[*index].requests >= settings.min_requests.max(1) && !records[*index].is_ejected()
    };
    let members: Vec<usize> = (0..deltas.len().min(records.len())).filter(judged).collect();
    let mut found = Vec::new();
    for &index in &members {
        let delta = deltas[index];
        let limit = u64::from(settings.error_percent);
        let percent = delta.errors.saturating_mul(100) / delta.requests;
        if limit > 0 && percent >= limit {
            found.push((percent * 100 / limit, index, Reason::Errors(percent)));
            continue;
        }
        let factor = u64::from(settings.latency_factor);
        if factor == 0 || delta.responses == 0 || delta.mean_ms() < LATENCY_MIN_MS {
            continue;
        }
        let others = members.iter().filter(|&&other| other != index);
        let Some(median) = median(others.map(|&other| deltas[other]).collect()) else { continue };
        let (mean, allowed) = (delta.mean_ms(), median.max(1).saturating_mul(factor));
        if mean >= allowed {
            found.push((mean.saturating_mul(100) / allowed, index, Reason::Latency(mean, median)));
        }
    }
    found
}

/// The median of the means; the lower one of two.
fn median(members: Vec<Totals>) -> Option<u64> {
    let answering = members.into_iter().filter(|member| member.responses > 0);
    let mut means: Vec<u64> = answering.map(Totals::mean_ms).collect();
    means.sort_unstable();
    means.get(means.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> Settings {
        Settings {
            interval: Duration::from_secs(1),
            error_percent: 50,
            latency_factor: 3,
            min_requests: 10,
            ejection_time: Duration::from_secs(30),
            max_ejected: 50,
        }
    }

    fn totals(requests: u64, errors: u64, mean_ms: u64) -> Totals {
        Totals { requests, errors, responses: requests, latency_ms: requests * mean_ms }
    }

    fn first(all: &[Totals]) -> Vec<Decision> {
        let mut records = vec![Record::default(); all.len()];
        judge(&settings(), &mut records, all, 1000)
    }

    #[test]
    fn who_is_an_outlier() {
        let good = totals(100, 1, 5);
        for (all, expected) in [
            (vec![good, good, good], vec![]),
            (vec![good, totals(100, 50, 5), good], vec![Decision::Eject(1, Reason::Errors(50))]),
            (vec![good, totals(100, 49, 5), good], vec![]),
            (vec![good, totals(9, 9, 5), good], vec![]),
            (
                vec![good, totals(100, 0, 15), good],
                vec![Decision::Eject(1, Reason::Latency(15, 5))],
            ),
            (vec![good, totals(100, 0, 14), good], vec![]),
            (vec![totals(100, 0, 1), totals(100, 0, 9)], vec![]),
            (vec![totals(100, 100, 1)], vec![Decision::Spare(0, Reason::Errors(100))]),
            (vec![good, totals(100, 0, 100)], vec![Decision::Eject(1, Reason::Latency(100, 5))]),
            (
                vec![totals(100, 60, 5), totals(100, 90, 5), good],
                vec![
                    Decision::Eject(1, Reason::Errors(90)),
                    Decision::Spare(0, Reason::Errors(60)),
                ],
            ),
        ] {
            assert_eq!(first(&all), expected, "{all:?}");
        }
    }

    #[test]
    fn out_for_longer_each_time_and_forgiven() {
        let (settings, mut records) = (settings(), vec![Record::default(); 2]);
        let mut all = [Totals::default(); 2];
        let mut step = |now_ms, errors, records: &mut Vec<Record>| {
            for (index, total) in all.iter_mut().enumerate() {
                total.requests += 100;
                total.responses += 100;
                total.errors += if index == 0 { errors } else { 0 };
            }
            judge(&settings, records, &all, now_ms)
        };
        assert!(matches!(step(1_000, 100, &mut records)[..], [Decision::Eject(0, _)]));
        assert_eq!(step(30_999, 0, &mut records), []);
        assert_eq!(step(31_000, 0, &mut records), [Decision::Readmit(0)]);
        assert!(matches!(step(32_000, 100, &mut records)[..], [Decision::Eject(0, _)]));
        assert_eq!(step(61_999, 0, &mut records), []);
        assert_eq!(step(92_000, 0, &mut records), [Decision::Readmit(0)], "two ejection times");
        for now in 93..100 {
            assert_eq!(step(now * 1000, 0, &mut records), []);
        }
        assert!(matches!(step(100_000, 100, &mut records)[..], [Decision::Eject(0, _)]));
        assert_eq!(step(130_000, 0, &mut records), [Decision::Readmit(0)], "forgiven: one again");
    }

    proptest! {
        /// The cap holds whatever comes, and every ejection ends.
        #[test]
        fn never_more_out_than_the_cap(
            rounds in prop::collection::vec(
                prop::collection::vec((0_u64..50, 0_u64..50, 0_u64..400), 7), 1..40),
            max_ejected in 0_u32..=100,
        ) {
            let settings = Settings { max_ejected, ..settings() };
            let mut records = vec![Record::default(); 7];
            let mut all = [Totals::default(); 7];
            let mut now = 0;
            for round in rounds {
                for (total, (good, bad, latency)) in all.iter_mut().zip(round) {
                    total.requests += good + bad;
                    total.responses += good;
                    total.errors += bad;
                    total.latency_ms += good * latency;
                }
                now += 5_000;
                judge(&settings, &mut records, &all, now);
                let out = records.iter().filter(|record| record.is_ejected()).count();
                prop_assert!(out * 100 <= 7 * max_ejected as usize);
            }
            readmit(&mut records, now + 301_000);
            prop_assert!(records.iter().all(|record| !record.is_ejected()));
        }
    }
}
