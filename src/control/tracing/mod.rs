//! Export of traces by OTLP over HTTP: a thread that takes spans out of the queue, and never holds up who put them in.

mod encode;
mod post;

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::control::logger::Logger;
use crate::l7::tracing::{Figures, Item, Settings, Span, Traces};

/// Spans in one request.
const BATCH_MAX: usize = 512;
/// A batch waits this long for more.
const BATCH_TIME: Duration = Duration::from_secs(1);
/// How often the queue is looked at meanwhile: who puts a span in need not wake anybody.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Pauses before a batch is sent once more; the last is the end.
const AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// The end of the process waits this long for what is left.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Exports until nobody can hand a span over any more; once for each [`Traces`].
///
/// # Errors
/// When the thread cannot be made.
pub fn start(traces: &Traces, logger: Logger) -> io::Result<()> {
    let Some(queue) = traces.receiver() else { return Ok(()) };
    let (settings, figures) = (traces.settings.clone(), Arc::clone(&traces.figures));
    let client = traces.verified.get().map(|read| Arc::clone(&read.client));
    let exporter = Exporter { settings, client, figures, logger, waiting: Vec::new() };
    thread::Builder::new().name("traces".into()).spawn(move || exporter.run(&queue))?;
    Ok(())
}

/// Of another configuration: the very same as before if nothing changed, else with the figures there were.
#[must_use]
pub fn succeed(old: Option<&Arc<Traces>>, new: Option<Arc<Traces>>) -> Option<Arc<Traces>> {
    match (old, new) {
        (Some(old), Some(new)) if old == &new => Some(Arc::clone(old)),
        (Some(old), Some(new)) => {
            let mut next = Traces::new(new.settings.clone(), Arc::clone(&old.figures));
            // Nobody else has a configuration that was just read.
            next.verified = Arc::into_inner(new).map(|new| new.verified).unwrap_or_default();
            Some(Arc::new(next))
        }
        (_, new) => new,
    }
}

/// Exports what is left, before the process ends.
pub fn finish(traces: &Traces) {
    // Too late is too late: a dead collector does not hold up the end.
    let _ = traces.flush(LAST_WORDS);
}

struct Exporter {
    settings: Settings,
    client: Option<Arc<ClientConfig>>,
    figures: Arc<Figures>,
    logger: Logger,
    waiting: Vec<Span>,
}

impl Exporter {
    fn run(mut self, queue: &Receiver<Item>) {
        // Without spans it sleeps.
        while let Ok(first) = queue.recv() {
            let asked = self.collect(first, queue);
            self.export();
            for done in asked {
                let _ = done.try_send(());
            }
        }
    }

    /// Fills a batch; returns who waits for its export.
    fn collect(&mut self, first: Item, queue: &Receiver<Item>) -> Vec<SyncSender<()>> {
        let (began, mut asked) = (Instant::now(), Vec::new());
        let mut next = Ok(first);
        loop {
            match next {
                Ok(Item::Span(span)) => self.waiting.push(*span),
                Ok(Item::Flush(done)) => asked.push(done),
                Err(TryRecvError::Disconnected) => return asked,
                Err(TryRecvError::Empty) => {
                    if !asked.is_empty() || began.elapsed() >= BATCH_TIME {
                        return asked;
                    }
                    thread::sleep(LOOK_EVERY);
                }
            }
            if self.waiting.len() >= BATCH_MAX {
                return asked;
            }
            next = queue.try_recv();
        }
    }

    /// Sends the batch, again if that may help; what the collector does not take is counted and forgotten.
    fn export(&mut self) {
        let spans = std::mem::take(&mut self.waiting);
        if spans.is_empty() {
            return;
        }
        let body = encode::request(&self.settings.service_name, &spans);
        let count = spans.len() as u64;
        drop(spans);
        let mut pauses = AGAIN_AFTER.iter();
        let problem = loop {
            match post::post(&self.settings, self.client.as_ref(), &body) {
                Ok(answer) => {
                    let (rejected, why) = encode::rejected(&answer);
                    let rejected = rejected.min(count);
                    self.figures.exported.fetch_add(count - rejected, Relaxed);
                    self.figures.failed.fetch_add(rejected, Relaxed);
                    break (rejected > 0).then(|| format!("{rejected} spans rejected: {why}"));
                }
                Err(refused) => match pauses.next().filter(|_| refused.again) {
                    Some(pause) => thread::sleep(*pause),
                    None => {
                        self.figures.failed.fetch_add(count, Relaxed);
                        break Some(refused.why);
                    }
                },
            }
        };
        self.note(problem);
    }

    /// Says so when it begins to fail, and when that is over.
    fn note(&self, problem: Option<String>) {
        let mut known = self.figures.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let fields = [("collector", self.settings.authority.as_str())];
        match (&*known, &problem) {
            (None, Some(why)) => {
                let fields = [fields[0], ("reason", why)];
                self.logger.warn("traces cannot be exported", &fields);
            }
            (Some(_), None) => self.logger.info("traces are exported again", &fields),
            _ => {}
        }
        *known = problem;
    }
}
