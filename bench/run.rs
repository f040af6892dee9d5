//! `ringgate-bench run`: makes load, adds up, reports.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use ringgate::sys::signal::{self, SignalFd};

use crate::agent::Agents;
use crate::args::Run;
use crate::fleet::{Fleet, News, Sources};
use crate::live::{Live, Marks};
use crate::machine::Machine;
use crate::plan::Plan;
use crate::report::Outcome;
use crate::tally::Tally;
use crate::target::{self, Entry, Target};
use crate::tls::Tls;

/// Where systems keep the authorities they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Time between two live lines.
const LINE: Duration = Duration::from_secs(1);

/// The signals that end a run early, with the exit codes that shells give them.
const SIGNALS: [(i32, u8); 2] = [(libc::SIGINT, 130), (libc::SIGTERM, 143)];

/// Does it and returns the exit code; an error also when nothing was answered.
pub(crate) fn run(options: &Run, plan: Plan) -> Result<u8, String> {
    let interruption = Interruption::watch()?;
    let (machines, sources) = if options.agents.is_empty() {
        let fleet = Fleet::prepare(&plan, &options.placement)?;
        (vec![("local".to_owned(), Machine::this(fleet.threads()))], fleet.start())
    } else {
        let mut agents = Agents::prepare(&plan, &options.agents)?;
        (std::mem::take(&mut agents.machines), agents.start()?)
    };
    let mut live = Live::new(!options.no_live, &plan);
    let marks = Marks::new(options.marks, &plan);
    let began = Instant::now();
    let agents = !options.agents.is_empty();
    let tally = collect(sources, &mut live, marks, &interruption, agents)?;
    let measured = began.elapsed().saturating_sub(options.warmup).min(options.duration);
    let code = interruption.code();
    let measured = if code == 0 { options.duration } else { measured };
    report(options, Outcome { plan, machines, tally, measured, interrupted: code != 0 })?;
    Ok(code)
}

/// Whether a signal has asked for the end.
#[derive(Clone)]
pub(crate) struct Interruption(Arc<AtomicU8>);

impl Interruption {
    /// Has signals wait for a thread of their own; to be called before any other is started.
    pub(crate) fn watch() -> Result<Self, String> {
        let failed = |error: io::Error| format!("signals: {error}");
        let numbers = SIGNALS.map(|(number, _)| number);
        let mut signals = File::from(OwnedFd::from(SignalFd::block(&numbers).map_err(failed)?));
        let seen = Arc::new(AtomicU8::new(0));
        let noted = Arc::clone(&seen);
        let wait = move || {
            let mut record = [0; signal::RECORD_LEN];
            while let Ok(length) = signals.read(&mut record) {
                let number = record.get(..length).and_then(signal::number);
                let known = SIGNALS.iter().find(|(signal, _)| Some(*signal) == number);
                if let Some(&(_, code)) = known {
                    noted.store(code, Ordering::Relaxed);
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
        Ok(Self(seen))
    }

    /// The exit code that the signal stands for; 0 when there was none.
    pub(crate) fn code(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the options ask for; an error is wrong usage.
pub(crate) fn plan(options: &Run) -> Result<Plan, String> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let requests = match &options.requests {
        Some(file) => {
            let named = |why: String| format!("{}: {why}", file.display());
            let text = fs::read_to_string(file).map_err(|error| named(error.to_string()))?;
            target::parse_mix(&text).map_err(named)?
        }
        None => vec![Entry {
            weight: 1,
            method: options.method.clone(),
            path: Target::parse(&options.url)?.path,
            body: options.body,
        }],
    };
    let header = |text: &String| {
        let (name, value) =
            text.split_once(':').ok_or_else(|| format!("`{text}`: write \"Name: value\""))?;
        Ok((name.to_owned(), value.trim().to_owned()))
    };
    let plan = Plan {
        url: options.url.clone(),
        connections: options.connections,
        duration_ms: millis(options.duration),
        warmup_ms: millis(options.warmup),
        timeout_ms: millis(options.timeout),
        pipeline: options.pipeline,
        http2: options.http2,
        streams: options.streams,
        tls: tls(options)?,
        new_connections: options.new_connections,
        think_ms: millis(options.think),
        read_rate: options.read_rate,
        rate: options.rate,
        headers: options.headers.iter().map(header).collect::<Result<_, String>>()?,
        requests,
    };
    plan.check().map(|_| plan)
}

/// What is asked for of TLS; nothing of a URL without.
fn tls(options: &Run) -> Result<Option<Tls>, String> {
    let asked = options.insecure
        || options.resume
        || options.ca.is_some()
        || options.server_name.is_some()
        || options.tls_version.is_some();
    if !Target::parse(&options.url)?.tls {
        let wrong =
            "--insecure, --ca, --server-name, --tls-version and --resume are for https URLs";
        return if asked { Err(wrong.to_owned()) } else { Ok(None) };
    }
    let authorities = if options.insecure { None } else { Some(authorities(options)?) };
    Ok(Some(Tls {
        authorities,
        server_name: options.server_name.clone(),
        version: options.tls_version,
        resume: options.resume,
    }))
}

fn authorities(options: &Run) -> Result<String, String> {
    if let Some(file) = &options.ca {
        return fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()));
    }
    SYSTEM_ROOTS
        .iter()
        .find_map(|file| fs::read_to_string(file).ok())
        .ok_or_else(|| "no authorities on this system: give --ca FILE or --insecure".to_owned())
}

/// Adds up what the sources tell until all are over, or a signal ends it. Agents are not waited for
/// then: what they have reported counts, and closing the connection ends their part.
fn collect(
    sources: Sources,
    live: &mut Live,
    mut marks: Marks,
    interruption: &Interruption,
    agents: bool,
) -> Result<Tally, String> {
    let began = Instant::now();
    let (mut total, mut left, mut next_line) = (Tally::default(), sources.count, LINE);
    while left > 0 {
        if interruption.code() != 0 {
            sources.abort.store(true, Ordering::Relaxed);
            if agents {
                break;
            }
        }
        marks.say(began.elapsed());
        let next = marks.next().map_or(next_line, |mark| mark.min(next_line));
        match sources.news.recv_timeout(next.saturating_sub(began.elapsed())) {
            Ok(News::Ready) => {}
            Ok(News::Report(part)) => {
                live.note(&part);
                total.add(&part);
            }
            Ok(News::Ended(part)) => {
                live.note(&part);
                total.add(&part);
                left -= 1;
            }
            Ok(News::Failed(why)) => {
                sources.abort.store(true, Ordering::Relaxed);
                live.end();
                return Err(why);
            }
            Err(RecvTimeoutError::Timeout) if began.elapsed() < next_line => {}
            Err(RecvTimeoutError::Timeout) => {
                live.show(began.elapsed());
                next_line += LINE;
            }
            Err(RecvTimeoutError::Disconnected) => return Err("a thread died".to_owned()),
        }
    }
    marks.say(began.elapsed());
    live.end();
    Ok(total)
}

fn report(options: &Run, outcome: Outcome) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write the result: {error}");
    let json = format!("{:#}\n", outcome.json());
    let mut text = outcome.text();
    match options.json.as_deref() {
        Some("-") => text = json,
        Some(file) => fs::write(file, json).map_err(failed)?,
        None => {}
    }
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
        _ => {}
    }
    if outcome.tally.counts.responses == 0 && !outcome.interrupted {
        return Err("no response at all".to_owned());
    }
    Ok(())
}
