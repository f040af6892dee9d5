//! `ringgate tune`: plan, apply, verify, undo, explain.

pub mod args;
mod cpu;
mod lint;
mod render;
mod xdp;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use self::args::{Place, Tune, What};
use crate::control::config;
use crate::l4::config::L4;
use crate::sys::process::new_session;
use crate::tune::apply::rollback;
use crate::tune::journal::{Journal, Lock, Store};
use crate::tune::machine::Machine;
use crate::tune::plan::{Plan, Process, Status};
use crate::tune::setting::{self, PROFILES};
use crate::tune::step::{How, carry_out, look};
use crate::tune::trial::{self, Standing};
use crate::tune::{Config, Shards};

pub(super) const EXAMPLES: &str = args::EXAMPLES;

/// As wanted.
const DONE: u8 = 0;
/// Drift, or something could not be set.
const DRIFT: u8 = 1;

/// Text and JSON of an answer, and the exit code.
struct Answer {
    text: String,
    json: Value,
    code: u8,
}

/// Why there is no answer: what to say, and the exit code.
struct Stopped(String, u8);

impl Stopped {
    fn failed(why: impl ToString) -> Self {
        Self(why.to_string(), DRIFT)
    }

    fn usage(why: impl ToString) -> Self {
        Self(why.to_string(), super::EXIT_USAGE)
    }
}

/// Runs a command and returns the exit code.
pub(super) fn run(command: &Tune, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let (answer, as_json) = match command {
        Tune::Plan { what, place } => (plan(what, place, err, false), place.json),
        Tune::Verify { what, place } => (plan(what, place, err, true), place.json),
        Tune::Apply { what, place, trial, boot } => {
            (apply(what, place, *trial, *boot, err), place.json)
        }
        Tune::Confirm { file, place } => {
            (located(file.as_deref(), place).and_then(confirm), place.json)
        }
        Tune::Rollback { file, place } => {
            (located(file.as_deref(), place).and_then(undo), place.json)
        }
        Tune::Show { key: Some(key), place, .. } => (explain(key), place.json),
        Tune::Show { key: None, config, place } => {
            (located(config.as_deref(), place).and_then(show), place.json)
        }
        Tune::Cpu { file, interface, place } => {
            let (file, interface) = (file.clone(), interface.clone());
            let what = What { file, interface, profile: vec![], force: vec![], allow: vec![] };
            (cpu::run(&what, place, err), place.json)
        }
        Tune::Lint { files, config, json } => (lint::run(files, config.as_deref(), err), *json),
        Tune::Watch { place } => (located(None, place).and_then(watch), place.json),
    };
    match answer {
        Ok(answer) => {
            let text = if as_json { format!("{:#}\n", answer.json) } else { answer.text };
            match super::print_result(out, &text) {
                0 => answer.code,
                failed => failed,
            }
        }
        Err(Stopped(why, code)) => {
            super::print(err, &format!("ringgate: {}\n", why.trim_end()));
            code
        }
    }
}

/// What is to be tuned, and on which machine.
fn chosen(what: &What, place: &Place, err: &mut dyn Write) -> Result<(Config, Machine), Stopped> {
    chosen_with_director(what, place, err).map(|(config, machine, _)| (config, machine))
}

/// The same, and what the director is to do.
fn chosen_with_director(
    what: &What,
    place: &Place,
    err: &mut dyn Write,
) -> Result<(Config, Machine, L4), Stopped> {
    let (mut tuning, l4) = match &what.file {
        Some(file) => {
            let loaded = config::load(file).map_err(Stopped::usage)?;
            loaded.warnings.iter().for_each(|warning| super::print(err, &format!("{warning}\n")));
            (loaded.tuning, loaded.l4)
        }
        None => (Config { shards: Shards::Auto, ..Config::default() }, L4::default()),
    };
    if !what.profile.is_empty() {
        for name in &what.profile {
            if !PROFILES.iter().any(|(known, _)| known == name) {
                let names: Vec<&str> = PROFILES.iter().map(|(name, _)| *name).collect();
                return Err(Stopped::usage(format!(
                    "no profile {name}: there are {}",
                    names.join(", ")
                )));
            }
        }
        tuning.profiles.clone_from(&what.profile);
    }
    if !what.interface.is_empty() {
        tuning.interfaces.clone_from(&what.interface);
    }
    tuning.force.extend(what.force.iter().cloned());
    tuning.allow.extend(what.allow.iter().cloned());
    if let Some(root) = &place.root {
        tuning.root = absolute(root);
    }
    if let Some(state_dir) = &place.state_dir {
        tuning.state_dir.clone_from(state_dir);
    }
    let machine = Machine::new(&tuning.root);
    Ok((tuning, machine, l4))
}

/// The watcher of a trial runs in another directory. Without a current directory the path stays as it is.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The machine and its journal: where the arguments say, else the file, else the usual places.
fn located(file: Option<&Path>, place: &Place) -> Result<(Machine, Store), Stopped> {
    let (root, state_dir) =
        file.map(config::tuning_place).transpose().map_err(Stopped::usage)?.unwrap_or_default();
    let defaults = Config::default();
    let root = place.root.as_deref().map(absolute).or(root).unwrap_or(defaults.root);
    let machine = Machine::new(&root);
    let state_dir = place.state_dir.clone().or(state_dir).unwrap_or(defaults.state_dir);
    let store = Store::new(&machine, &state_dir);
    Ok((machine, store))
}

fn locked(store: &Store) -> Result<Lock, Stopped> {
    store.lock().map_err(|error| {
        Stopped::failed(match error.kind() {
            io::ErrorKind::WouldBlock => error.to_string(),
            _ => format!("{}: {error}", store.directory().display()),
        })
    })
}

fn failed(store: &Store) -> impl Fn(io::Error) -> Stopped {
    let directory = store.directory().display().to_string();
    move |error| Stopped::failed(format!("{directory}: {error}"))
}

fn plan(what: &What, place: &Place, err: &mut dyn Write, verify: bool) -> Result<Answer, Stopped> {
    let (config, machine, l4) = chosen_with_director(what, place, err)?;
    let store = Store::new(&machine, &config.state_dir);
    let plan = look(&config, &machine, Process::Other, &store, false).map_err(Stopped::failed)?;
    let standing = trial::standing(&store).unwrap_or(Standing::None);
    let drift = plan.drift().count();
    let mut text = if verify { render::drift(&plan) } else { render::plan(&plan) };
    let code = if verify && drift > 0 { DRIFT } else { DONE };
    let mut json = plan_json(&plan);
    json["trial"] = render::standing_json(&standing);
    if let Some(xdp) = xdp::look(&config, &machine, &l4, &plan).filter(|_| !verify) {
        text.push_str(&xdp.text());
        json["xdp"] = xdp.json();
    }
    Ok(Answer { text: text + &render::standing(&standing), json, code })
}

fn plan_json(plan: &Plan) -> Value {
    let counts: serde_json::Map<String, Value> = Status::ALL
        .into_iter()
        .map(|status| (status.name().to_owned(), plan.count(status).into()))
        .collect();
    json!({
        "items": plan.items,
        "counts": counts,
        "interfaces": plan.interfaces,
        "kernel_parameters": plan.kernel_parameters(),
    })
}

fn apply(
    what: &What,
    place: &Place,
    trial: Option<Duration>,
    boot: bool,
    err: &mut dyn Write,
) -> Result<Answer, Stopped> {
    let (config, machine) = chosen(what, place, err)?;
    let mut arm = || start_watch(&config);
    let how = match trial {
        Some(time) => How::Try(time, &mut arm),
        None if boot => How::Boot,
        None => How::ByHand,
    };
    let outcome = carry_out(&config, &machine, Process::Other, how).map_err(Stopped::failed)?;
    let drift = outcome.plan.drift().count();
    let mut text = render::applied(&outcome);
    if let Some(time) = trial.filter(|_| !outcome.changed.is_empty()) {
        let time = config::units::show_duration(time);
        let _ = writeln!(text, "all of it is undone in {time} unless: ringgate tune confirm");
    }
    let mut json = plan_json(&outcome.plan);
    json["changed"] = json!(outcome.changed);
    json["failed"] = json!(outcome.failed);
    json["notes"] = json!(outcome.notes);
    json["trial_seconds"] = json!(trial.map(|time| time.as_secs_f64()));
    Ok(Answer { text, json, code: if drift > 0 { DRIFT } else { DONE } })
}

/// Starts the process that waits for the end of a trial.
fn start_watch(config: &Config) -> io::Result<()> {
    // This very program, even if its file has been replaced by an upgrade.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("ringgate").args(["tune", "watch", "--root"]).arg(&config.root);
    command.arg("--state-dir").arg(&config.state_dir).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // It leaves the session by itself, so that a hang-up of the terminal does not end it.
    command.spawn().map(drop)
}

/// Waits for the end of a trial, and reverts what is not confirmed by then.
fn watch((machine, store): (Machine, Store)) -> Result<Answer, Stopped> {
    const LOOK: Duration = Duration::from_millis(500);
    /// Attempts to revert, a look apart: what fails for a minute needs a person.
    const ATTEMPTS: u32 = 120;
    new_session();
    let mut attempts = 0;
    loop {
        match trial::standing(&store) {
            Ok(Standing::None) => break,
            Ok(Standing::Pending(left)) => std::thread::sleep(left.min(LOOK)),
            Ok(Standing::Overdue) | Err(_) => match revert_overdue(&machine, &store) {
                Ok(()) => {}
                Err(stopped) if attempts >= ATTEMPTS => return Err(stopped),
                Err(_) => {
                    attempts += 1;
                    std::thread::sleep(LOOK);
                }
            },
        }
    }
    Ok(Answer { text: String::new(), json: json!({}), code: DONE })
}

fn revert_overdue(machine: &Machine, store: &Store) -> Result<(), Stopped> {
    let lock = locked(store)?;
    // Confirmed while this waited for the lock?
    if trial::standing(store).map_err(failed(store))? == Standing::Overdue {
        let undone = trial::revert(machine, store, &lock).map_err(failed(store))?;
        if !undone.failed.is_empty() {
            return Err(Stopped::failed("not everything could be reverted"));
        }
    }
    Ok(())
}

fn confirm((machine, store): (Machine, Store)) -> Result<Answer, Stopped> {
    let lock = locked(&store)?;
    if trial::standing(&store).map_err(failed(&store))? == Standing::Overdue {
        let undone = trial::revert(&machine, &store, &lock).map_err(failed(&store))?;
        let many = undone.restored.len();
        return Err(Stopped::failed(format!("too late: {many} settings have been reverted")));
    }
    if !trial::confirm(&store, &lock).map_err(failed(&store))? {
        return Err(Stopped::failed("no trial is under way"));
    }
    let text = "confirmed: the changes stay until rollback or reboot\n".to_owned();
    Ok(Answer { text, json: json!({ "confirmed": true }), code: DONE })
}

fn undo((machine, store): (Machine, Store)) -> Result<Answer, Stopped> {
    let lock = locked(&store)?;
    let tried = trial::revert(&machine, &store, &lock).map_err(failed(&store))?;
    trial::forget(&store, &lock).map_err(failed(&store))?;
    let mut undone = rollback(&machine, &store, &lock).map_err(failed(&store))?;
    undone.restored.splice(0..0, tried.restored);
    undone.failed.splice(0..0, tried.failed);
    undone.notes.splice(0..0, tried.notes);
    let code = if undone.failed.is_empty() { DONE } else { DRIFT };
    Ok(Answer { text: render::undone(&undone), json: json!(undone), code })
}

fn show((machine, store): (Machine, Store)) -> Result<Answer, Stopped> {
    let mut journal = store.read().map_err(failed(&store))?;
    let tried = store.of_trial().read().map_err(failed(&store))?;
    if !store.is_current(&journal) {
        journal = Journal::default();
    }
    if store.is_current(&tried) {
        journal.records.extend(tried.records);
    }
    let standing = trial::standing(&store).map_err(failed(&store))?;
    let changes: Vec<Value> = render::changes(&journal, &machine)
        .into_iter()
        .map(|change| json!({ "key": change.key, "original": change.original, "written": change.written, "now": change.now }))
        .collect();
    let profiles: Vec<Value> =
        PROFILES.iter().map(|(name, what)| json!({ "name": name, "for": what })).collect();
    let json = json!({
        "journal": store.directory().display().to_string(),
        "changes": changes,
        "trial": render::standing_json(&standing),
        "profiles": profiles,
    });
    let text =
        render::journal(&journal, &machine, store.directory()) + &render::standing(&standing);
    Ok(Answer { text, json, code: DONE })
}

fn explain(key: &str) -> Result<Answer, Stopped> {
    let setting = setting::known(key);
    let traps: Vec<_> = setting::traps().iter().filter(|trap| trap.concerns(key)).collect();
    if setting.is_none() && traps.is_empty() {
        return Err(Stopped::usage(format!(
            "nothing is known of {key}: `ringgate tune plan --profile edge` lists settings"
        )));
    }
    let json = json!({
        "key": key,
        "setting": setting.map(|setting| json!({
            "why": setting.why, "trap": setting.trap, "risk": setting.risk, "scope": setting.scope,
            "source": setting.source, "profiles": setting.profiles,
        })),
        "traps": traps.iter().map(|trap| json!({
            "says": trap.says, "instead": trap.instead, "source": trap.source, "refused": trap.refuse,
        })).collect::<Vec<_>>(),
    });
    Ok(Answer { text: render::explanation(key, setting, &traps), json, code: DONE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_root_means_the_current_directory_once_and_for_all() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("some/root")), here.join("some/root"));
        assert_eq!(absolute(Path::new("/some/root")), Path::new("/some/root"));
        let place = Place { root: Some("some/root".into()), state_dir: None, json: false };
        assert_eq!(
            located(None, &place).unwrap_or_else(|_| panic!()).0.path("/x"),
            here.join("some/root/x")
        );
    }
}
