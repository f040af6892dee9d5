//! What a value should be, and whether one is good enough.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde::Deserialize;

/// What a value should be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Exactly this.
    Is(String),
    /// This or more.
    AtLeast(Amount),
    /// This or less.
    AtMost(Amount),
    /// Each number this or more.
    EachAtLeast(Vec<u64>),
    /// A range of ports at least as wide.
    PortRange([u64; 2]),
    /// A list that has the listeners' ports, and those of this text if it is a list too.
    Ports(String),
    /// One of these; the first is set.
    OneOf(Vec<String>),
    /// Computed from the CPU placement.
    Placement(Placed),
    /// Shown and never changed.
    Untouched(String),
}

/// What the CPU placement decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placed {
    /// Entries of the machine's flow table.
    FlowEntries,
    /// Entries of a queue's flow table.
    FlowCount,
    /// CPUs that a receive queue's packets are spread over.
    Rps,
    /// CPUs that send on a transmit queue.
    Xps,
    /// CPU of a queue's interrupt.
    Irq,
    /// Number of queue pairs.
    Channels,
    /// Kernel parameter `nohz_full`.
    NohzFull,
    /// Kernel parameter `irqaffinity`.
    Irqaffinity,
}

/// A number, perhaps computed from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// This number.
    Number(u64),
    /// Per CPU and per GiB of memory, within bounds.
    Computed {
        /// For each CPU.
        #[serde(default)]
        per_cpu: u64,
        /// For each GiB of memory.
        #[serde(default)]
        per_gib: u64,
        /// At least.
        min: u64,
        /// At most.
        max: u64,
    },
}

/// What amounts are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// CPUs online.
    pub cpus: u64,
    /// Memory in KiB.
    pub memory_kib: u64,
}

impl Amount {
    /// The number on a machine of this size.
    #[must_use]
    pub fn on(&self, size: Size) -> u64 {
        match *self {
            Self::Number(number) => number,
            Self::Computed { per_cpu, per_gib, min, max } => {
                let memory = per_gib.saturating_mul(size.memory_kib) >> 20;
                memory.saturating_add(per_cpu.saturating_mul(size.cpus)).min(max).max(min)
            }
        }
    }
}

/// A judgement on a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// It is as wanted.
    Holds,
    /// It goes beyond what is wanted, and stays.
    Beyond,
    /// It has to become this.
    Becomes(String),
    /// It cannot be read as what it should be.
    Strange,
}

impl Wanted {
    /// The wanted value for people, on a machine of this size.
    #[must_use]
    pub fn show(&self, size: Size, ports: &[u16]) -> String {
        match self {
            Self::Is(value) => value.clone(),
            Self::AtLeast(amount) => format!(">= {}", amount.on(size)),
            Self::AtMost(amount) => format!("<= {}", amount.on(size)),
            Self::EachAtLeast(list) => format!(">= {}", join(list)),
            Self::PortRange([low, high]) => format!("{low} {high} or wider"),
            Self::Ports(own) => match show_ports(&all_ports(own, ports)).as_str() {
                "" => "with the listeners' ports".to_owned(),
                list => format!("with {list}"),
            },
            Self::OneOf(values) => values.join(" or "),
            Self::Placement(_) => "by placement".to_owned(),
            Self::Untouched(_) => "untouched".to_owned(),
        }
    }

    /// The same kind of rule with a value of the operator's: a bound stays a bound, so that a greater value
    /// is still left alone.
    #[must_use]
    pub fn with_value(&self, value: &str) -> Self {
        let exactly = || Self::Is(value.to_owned());
        let number = value.trim().parse().ok().map(Amount::Number);
        match self {
            Self::AtLeast(_) => number.map_or_else(exactly, Self::AtLeast),
            Self::AtMost(_) => number.map_or_else(exactly, Self::AtMost),
            Self::EachAtLeast(list) => numbers(value)
                .filter(|own| own.len() == list.len())
                .map_or_else(exactly, Self::EachAtLeast),
            Self::PortRange(_) => match numbers(value).as_deref() {
                Some(&[low, high]) => Self::PortRange([low, high]),
                _ => exactly(),
            },
            Self::Ports(_) => match parse_ports(value) {
                Some(_) => Self::Ports(value.to_owned()),
                None => exactly(),
            },
            Self::Placement(Placed::Channels) => number.map_or_else(exactly, Self::AtLeast),
            _ => exactly(),
        }
    }

    /// Judges the value `now`. With `force` a value beyond is brought back.
    #[must_use]
    pub fn judge(&self, now: &str, size: Size, ports: &[u16], force: bool) -> Judged {
        match self {
            Self::Is(value) => equal(now, value),
            Self::AtLeast(amount) => bound(now, amount.on(size), force, |now, want| now >= want),
            Self::AtMost(amount) => bound(now, amount.on(size), force, |now, want| now <= want),
            Self::EachAtLeast(list) => each_at_least(now, list, force),
            Self::PortRange(range) => port_range(now, *range, force),
            Self::Ports(own) => with_ports(now, &all_ports(own, ports)),
            Self::OneOf(values) => {
                let now = selected(now);
                match values.first() {
                    _ if values.contains(&now) => Judged::Holds,
                    Some(first) => Judged::Becomes(first.clone()),
                    None => Judged::Strange,
                }
            }
            Self::Placement(_) | Self::Untouched(_) => Judged::Holds,
        }
    }
}

/// The chosen word of a file that lists them (`always [madvise] never`), or the whole text with single
/// spaces.
#[must_use]
pub fn selected(text: &str) -> String {
    let bracketed = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[').and_then(|word| word.strip_suffix(']')));
    bracketed.map_or_else(|| tidy(text), str::to_owned)
}

/// Words with single spaces between them.
#[must_use]
pub fn tidy(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn join(list: &[u64]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn equal(now: &str, value: &str) -> Judged {
    if tidy(now) == tidy(value) || selected(now) == value {
        Judged::Holds
    } else {
        Judged::Becomes(value.to_owned())
    }
}

fn bound(now: &str, want: u64, force: bool, good: fn(u64, u64) -> bool) -> Judged {
    let becomes = || Judged::Becomes(want.to_string());
    match now.trim() {
        "unlimited" => Judged::Beyond,
        text => match text.parse::<i128>() {
            Err(_) => Judged::Strange,
            Ok(number) if number == i128::from(want) => Judged::Holds,
            Ok(_) if force => becomes(),
            // A negative number stands for `no limit` nowhere in the catalogue: less than anything.
            Ok(number) if good(u64::try_from(number).unwrap_or(0), want) => Judged::Beyond,
            Ok(_) => becomes(),
        },
    }
}

fn numbers(text: &str) -> Option<Vec<u64>> {
    text.split_whitespace().map(|word| word.parse().ok()).collect()
}

fn each_at_least(now: &str, list: &[u64], force: bool) -> Judged {
    let Some(found) = numbers(now).filter(|found| found.len() == list.len()) else {
        return Judged::Strange;
    };
    if found == list {
        return Judged::Holds;
    }
    let greater: Vec<u64> = found.iter().zip(list).map(|(now, want)| *now.max(want)).collect();
    match greater == found {
        _ if force => Judged::Becomes(join(list)),
        true => Judged::Beyond,
        false => Judged::Becomes(join(&greater)),
    }
}

fn port_range(now: &str, [low, high]: [u64; 2], force: bool) -> Judged {
    let Some(found) = numbers(now) else { return Judged::Strange };
    let [from, to] = found[..] else { return Judged::Strange };
    if (from, to) == (low, high) {
        Judged::Holds
    } else if force {
        Judged::Becomes(format!("{low} {high}"))
    } else if from <= low && to >= high {
        Judged::Beyond
    } else {
        Judged::Becomes(format!("{} {}", from.min(low), to.max(high)))
    }
}

fn all_ports(own: &str, ports: &[u16]) -> BTreeSet<u16> {
    let mut all = parse_ports(own).unwrap_or_default();
    all.extend(ports);
    all
}

fn with_ports(now: &str, ports: &BTreeSet<u16>) -> Judged {
    let Some(mut found) = parse_ports(now) else { return Judged::Strange };
    let before = found.len();
    found.extend(ports);
    if found.len() == before { Judged::Holds } else { Judged::Becomes(show_ports(&found)) }
}

/// Reads `80,443,8000-8010`; `None` when it is anything else.
#[must_use]
pub fn parse_ports(text: &str) -> Option<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range: RangeInclusive<u16> = first.trim().parse().ok()?..=last.trim().parse().ok()?;
        ports.extend(range);
    }
    Some(ports)
}

/// The inverse of [`parse_ports`].
#[must_use]
pub fn show_ports(ports: &BTreeSet<u16>) -> String {
    let ports: Vec<usize> = ports.iter().map(|port| usize::from(*port)).collect();
    show_list(&ports)
}

/// Ascending numbers as `0-3,6`.
#[must_use]
pub fn show_list(list: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in list {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let show = |(first, last): (usize, usize)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    runs.into_iter().map(show).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: Size = Size { cpus: 4, memory_kib: 8 << 20 };

    fn becomes(text: &str) -> Judged {
        Judged::Becomes(text.to_owned())
    }

    #[test]
    fn values_are_judged() {
        let least = Wanted::AtLeast(Amount::Number(100));
        let most = Wanted::AtMost(Amount::Number(100));
        let each = Wanted::EachAtLeast(vec![4, 8, 16]);
        let range = Wanted::PortRange([10_000, 65_535]);
        let one_of = Wanted::OneOf(vec!["madvise".into(), "never".into()]);
        for (wanted, now, judged) in [
            (&least, "99\n", becomes("100")),
            (&least, "100", Judged::Holds),
            (&least, "101", Judged::Beyond),
            (&least, "-1", becomes("100")),
            (&least, "unlimited", Judged::Beyond),
            (&least, "many", Judged::Strange),
            (&most, "4294967295", becomes("100")),
            (&most, "5", Judged::Beyond),
            (&each, "4\t8\t8\n", becomes("4 8 16")),
            (&each, "8 8 8", becomes("8 8 16")),
            (&each, "8 8 16", Judged::Beyond),
            (&each, "4 8 16", Judged::Holds),
            (&each, "4 8", Judged::Strange),
            (&range, "32768\t60999\n", becomes("10000 65535")),
            (&range, "1024 60999", becomes("1024 65535")),
            (&range, "1024 65535", Judged::Beyond),
            (&range, "1024", Judged::Strange),
            (&one_of, "always [madvise] never\n", Judged::Holds),
            (&one_of, "always madvise [never]\n", Judged::Holds),
            (&one_of, "[always] madvise never\n", becomes("madvise")),
            (&Wanted::Is("1".into()), "0\n", becomes("1")),
            (&Wanted::Is("1".into()), "1\n", Judged::Holds),
        ] {
            assert_eq!(wanted.judge(now, SIZE, &[], false), judged, "{wanted:?} {now:?}");
        }
        assert_eq!(least.judge("101", SIZE, &[], true), becomes("100"));
        assert_eq!(each.judge("8 8 16", SIZE, &[], true), becomes("4 8 16"));
        assert_eq!(range.judge("1024 65535", SIZE, &[], true), becomes("10000 65535"));
    }

    #[test]
    fn ports_are_added_to_the_list() {
        let wanted = Wanted::Ports("listeners".into());
        let judge = |now: &str, ports: &[u16]| wanted.judge(now, SIZE, ports, false);
        assert_eq!(judge("\n", &[80, 443]), becomes("80,443"));
        assert_eq!(judge("8080,9148\n", &[9149, 80]), becomes("80,8080,9148-9149"));
        assert_eq!(judge("1-100\n", &[80]), Judged::Holds);
        assert_eq!(judge("\n", &[]), Judged::Holds);
        assert_eq!(judge("x\n", &[80]), Judged::Strange);
        let own = wanted.with_value("8000-8001");
        assert_eq!(own.judge("\n", SIZE, &[80], false), becomes("80,8000-8001"));
    }

    #[test]
    fn amounts_grow_with_the_machine_within_bounds() {
        let amount = Amount::Computed { per_cpu: 10, per_gib: 100, min: 50, max: 900 };
        assert_eq!(amount.on(SIZE), 840);
        assert_eq!(amount.on(Size { cpus: 1, memory_kib: 0 }), 50);
        assert_eq!(amount.on(Size { cpus: u64::MAX, memory_kib: u64::MAX }), 900);
    }

    proptest! {
        #[test]
        fn ports_read_back(ports in prop::collection::btree_set(any::<u16>(), 0..40)) {
            prop_assert_eq!(parse_ports(&show_ports(&ports)), Some(ports));
        }

        #[test]
        fn what_was_set_holds(now in "[0-9 ]{0,12}", want in any::<u64>()) {
            for wanted in [Wanted::AtLeast(Amount::Number(want)), Wanted::AtMost(Amount::Number(want))] {
                if let Judged::Becomes(to) = wanted.judge(&now, SIZE, &[], false) {
                    prop_assert_eq!(wanted.judge(&to, SIZE, &[], false), Judged::Holds);
                }
            }
        }

        #[test]
        fn any_text_is_judged(now in ".{0,60}") {
            for wanted in [Wanted::EachAtLeast(vec![1, 2, 3]), Wanted::PortRange([1, 2]), Wanted::Ports(String::new())] {
                let _ = wanted.judge(&now, SIZE, &[80], false);
            }
        }
    }
}
