//! `ringgate tune lint`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Answer, DONE, DRIFT, Stopped};
use crate::control::config;
use crate::tune::lint::{Level, lint};

/// Largest file that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// Exit code 1 when a trap is found; notes alone are none.
pub(super) fn run(
    files: &[PathBuf],
    config: Option<&Path>,
    err: &mut dyn Write,
) -> Result<Answer, Stopped> {
    let ports = match config {
        Some(file) => {
            let loaded = config::load(file).map_err(Stopped::usage)?;
            loaded.warnings.iter().for_each(|w| super::super::print(err, &format!("{w}\n")));
            loaded.tuning.ports
        }
        None => Vec::new(),
    };
    let (mut text, mut all, mut traps, mut notes) = (String::new(), Vec::new(), 0usize, 0usize);
    for file in files {
        let content = read(file)
            .map_err(|error| Stopped::usage(format!("{}: cannot read: {error}", file.display())))?;
        for finding in lint(&content, &ports) {
            let level = match finding.level {
                Level::Trap => "trap",
                Level::Note => "note",
            };
            *(if finding.level == Level::Trap { &mut traps } else { &mut notes }) += 1;
            let what = match finding.key.as_str() {
                "" => String::new(),
                key => format!("{} = {} ", printable(key), printable(&finding.value)),
            };
            let (says, instead) = (printable(&finding.says), printable(&finding.instead));
            let _ = writeln!(text, "{}:{}: {level}: {what}{says}", file.display(), finding.line);
            let _ = writeln!(text, "    instead: {instead} [{}]", finding.source);
            let mut finding = json!(finding);
            finding["file"] = json!(file.display().to_string());
            all.push(finding);
        }
    }
    let _ = writeln!(text, "{traps} traps, {notes} notes");
    let code = if traps > 0 { DRIFT } else { DONE };
    Ok(Answer { text, json: json!({ "findings": all, "traps": traps, "notes": notes }), code })
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a file says must not drive the terminal.
fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
