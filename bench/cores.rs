//! `ringgate-bench cores A,B`: how long a cache line takes from one CPU to another.
//!
//! Two threads, one on each CPU, hand a counter to and fro; half of a round trip is the figure. Over loopback
//! every segment crosses from the sender's CPU to the receiver's so, sockets and packet alike, which makes it a
//! part of what a request costs. Cores that share a cache are several times nearer than others, and a hypervisor may
//! move virtual CPUs from the one to the other at any time.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringgate::sys::cpu;
use serde_json::json;

use crate::args::Cores;

/// Round trips of a batch.
const TRIPS: u32 = 400;
/// Batches; the fastest counts, as the others were interrupted or began before both threads ran.
const BATCHES: u32 = 8;
/// A thread that has not got its turn for so long will not get it.
const PATIENCE: Duration = Duration::from_secs(2);

/// A counter on cache lines of its own (two, since some CPUs fetch them in pairs).
#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU32);

impl Line {
    /// Waits for a value; false when it does not come before the deadline.
    fn becomes(&self, value: u32, deadline: Instant) -> bool {
        let mut looks = 0u32;
        while self.0.load(Ordering::Acquire) != value {
            std::hint::spin_loop();
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(4096) && Instant::now() > deadline {
                return false;
            }
        }
        true
    }
}

/// Prints the figure as JSON.
pub(crate) fn run(options: &Cores) -> Result<u8, String> {
    let [first, second] = options.cpus.0[..] else {
        return Err("name two CPUs, as in 0,1".to_owned());
    };
    let time = one_way(first, second)?;
    let line = json!({ "one_way_ns": time.as_secs_f64() * 1e9 });
    writeln!(io::stdout(), "{line}").map_err(|why| why.to_string())?;
    Ok(0)
}

/// The time a cache line takes from one CPU to the other.
fn one_way(first: usize, second: usize) -> Result<Duration, String> {
    let line = Line::default();
    let deadline = Instant::now() + PATIENCE;
    let batches = thread::scope(|scope| {
        let answers = scope.spawn(|| {
            pin(second)?;
            (0..TRIPS * BATCHES).try_for_each(|trip| answer(&line, trip, deadline))
        });
        let batches: Result<Vec<Duration>, String> =
            pin(first).and_then(|()| (0..BATCHES).map(|_| batch(&line, deadline)).collect());
        match answers.join() {
            Ok(answered) => answered.and(batches),
            Err(_) => Err("a thread failed".to_owned()),
        }
    });
    let fastest = batches?.into_iter().min().unwrap_or_default();
    Ok(fastest / (2 * TRIPS))
}

fn pin(to: usize) -> Result<(), String> {
    if cpu::pin(to) { Ok(()) } else { Err(format!("cannot pin a thread to CPU {to}")) }
}

/// The time of a batch: odd values are ours, even ones the other's.
fn batch(line: &Line, deadline: Instant) -> Result<Duration, String> {
    let began = Instant::now();
    for _ in 0..TRIPS {
        let sent = line.0.load(Ordering::Relaxed) + 1;
        line.0.store(sent, Ordering::Release);
        if !line.becomes(sent + 1, deadline) {
            return Err(late());
        }
    }
    Ok(began.elapsed())
}

fn answer(line: &Line, trip: u32, deadline: Instant) -> Result<(), String> {
    let asked = 2 * trip + 1;
    if !line.becomes(asked, deadline) {
        return Err(late());
    }
    line.0.store(asked + 1, Ordering::Release);
    Ok(())
}

fn late() -> String {
    format!("one of the CPUs had no time for {} s", PATIENCE.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_some_time_and_not_for_ever() {
        let cpus = cpu::allowed();
        let [first, second, ..] = cpus[..] else { return };
        let time = one_way(first, second).unwrap();
        assert!(Duration::ZERO < time && time < PATIENCE, "{time:?}");
    }

    #[test]
    fn two_cpus_are_needed_and_they_have_to_be_there() {
        use clap::Parser as _;
        let refused = |cpus: &str| {
            let parsed = crate::args::Args::try_parse_from(["ringgate-bench", "cores", cpus]);
            parsed.expect_err(cpus).to_string()
        };
        assert!(refused("0,0").contains("named twice"));
        assert!(refused("0,100000").contains("100000"));
        let one = cpu::allowed().into_iter().take(1).collect();
        assert!(run(&Cores { cpus: crate::args::CpuList(one) }).unwrap_err().contains("two CPUs"));
    }
}
