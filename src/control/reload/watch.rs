//! `run --watch`: notices that the file has changed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// How often the file is looked at. It is read once it has rested for one look.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// When and how the file was last written; symbolic links are followed, as Kubernetes mounts need it.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
}

/// Tells each time the file has changed and rested, for as long as `tell` returns true.
///
/// # Errors
/// When the thread cannot be made.
pub fn start(path: PathBuf, tell: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
    let mut seen = Seen::new(stamp(&path));
    thread::Builder::new().name("watch".into()).spawn(move || {
        loop {
            thread::sleep(LOOK_EVERY);
            if seen.look(stamp(&path)) && !tell() {
                return;
            }
        }
    })?;
    Ok(())
}

/// What was seen of the file. Pure.
struct Seen {
    told: Stamp,
    last: Stamp,
}

impl Seen {
    fn new(stamp: Stamp) -> Self {
        Self { told: stamp, last: stamp }
    }

    /// True when the file is another than was told of, and the same as at the last look. A file that is gone
    /// is about to come back.
    fn look(&mut self, now: Stamp) -> bool {
        let rested = now == self.last;
        self.last = now;
        let news = rested && now.is_some() && now != self.told;
        if news {
            self.told = now;
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_when_it_has_rested() {
        let at = |n: i64| Some((1, 2, 3, n, 0));
        let mut seen = Seen::new(at(1));
        for (step, (now, told)) in [
            (at(1), false),
            (at(2), false),
            (at(3), false),
            (at(3), true),
            (at(3), false),
            (None, false),
            (None, false),
            (at(3), false),
            (at(3), false),
            (at(4), false),
            (at(4), true),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(seen.look(now), told, "step {step}");
        }
    }
}
