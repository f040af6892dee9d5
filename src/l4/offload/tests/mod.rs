//! The same frames through a director alone, and through the loaded program with a director behind it.

mod frames;
mod world;

use std::time::{Duration, Instant};

use self::frames::{Random, frame};
use self::world::{Change, Step, World};
use super::learn::key_of;
use crate::packet::xdp::layout::Reason;
use crate::protocol::ethernet::Mac;

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 8]);
/// The loopback: frames are redirected there without being sent in a test run.
const HERE: u32 = 7;

/// How many frames, and from where: `XDP_FRAMES` and `XDP_SEED` replace the defaults.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A million frames, which take minutes, from a seed of one's own:
/// `XDP_FRAMES=1000000 XDP_SEED=$RANDOM cargo test --lib program_and_verdict_agree -- --nocapture`
#[test]
fn program_and_verdict_agree() {
    let frames = number("XDP_FRAMES", 6_000);
    let first = number("XDP_SEED", 1);
    let (mut done, mut forwarded, mut worlds) = (0, 0, 0);
    let mut reasons = vec![0; Reason::ALL.len()];
    while done < frames {
        let seed = first.wrapping_add(worlds << 32);
        let count = FRAMES.min(frames - done);
        let Some(world) = agree(seed, count) else { return };
        (done, worlds) = (done + count, worlds + 1);
        forwarded += world.forwarded.values().sum::<u64>();
        for (sum, reason) in reasons.iter_mut().zip(Reason::ALL) {
            *sum += world.passed(reason);
        }
        println!("{done} frames from XDP_SEED={first}, {forwarded} forwarded by the program");
    }
    for (reason, count) in Reason::ALL.iter().zip(reasons) {
        println!("{}: {count}", reason.as_str());
    }
    // It would also agree if it passed everything up.
    assert!(forwarded * 20 > frames, "{forwarded} of {frames}");
}

/// Frames of one world.
const FRAMES: u64 = 10_000;
/// Services in it.
const SERVICES: usize = 6;

/// Random frames and changes, the same for the same seed.
fn agree(seed: u64, frames: u64) -> Option<World> {
    let mut random = Random(seed);
    let mut world = World::new(seed, SERVICES)?;
    let targets = world.targets();
    let mut steps = Vec::new();
    for count in 0..frames {
        if random.chance(200) {
            steps.push(Step::Change(Change::random(&mut random)));
            world.step(steps.last().expect("a change")).expect("a change of tables");
        }
        steps.push(Step::Frame(frame(&mut random, &targets)));
        if let Err(difference) = world.step(steps.last().expect("a frame")) {
            drop(world);
            let (steps, difference) = shrink(seed, steps, difference);
            steps.iter().for_each(|step| println!("{step:02x?}"));
            panic!("XDP_SEED={seed}, frame {count}, {} steps left: {difference}", steps.len());
        }
    }
    Some(world)
}

/// The difference in a fresh world, with the number of steps up to it.
fn replay(seed: u64, steps: &[Step]) -> Option<(usize, String)> {
    let mut world = World::new(seed, SERVICES)?;
    steps
        .iter()
        .enumerate()
        .find_map(|(at, step)| world.step(step).err().map(|difference| (at + 1, difference)))
}

/// Fewer steps that end in a difference: the history of the flow in question, if that is enough.
fn shrink(seed: u64, steps: Vec<Step>, difference: String) -> (Vec<Step>, String) {
    let end = Instant::now() + Duration::from_secs(number("XDP_SHRINK_SECONDS", 60));
    let mut least = (steps, difference);
    if let Some(Step::Frame(last)) = least.0.last() {
        let flow = key_of(last);
        let of_it = |step: &&Step| match step {
            Step::Frame(frame) => key_of(frame) == flow,
            Step::Change(_) => true,
        };
        let history: Vec<Step> = least.0.iter().filter(of_it).cloned().collect();
        if let Some((length, difference)) = replay(seed, &history) {
            least = (history[..length].to_vec(), difference);
        }
    }
    let mut chunk = least.0.len() / 2;
    while chunk > 0 && Instant::now() < end {
        let mut at = 0;
        while at < least.0.len() && Instant::now() < end {
            let rest = [&least.0[..at], least.0.get(at + chunk..).unwrap_or_default()].concat();
            match replay(seed, &rest) {
                Some((length, difference)) => least = (rest[..length].to_vec(), difference),
                None => at += chunk,
            }
        }
        chunk /= 2;
    }
    least
}
