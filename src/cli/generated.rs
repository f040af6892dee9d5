//! What is generated from the arguments' definition: shell completions and the manual page.

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::args::Args;

/// The completion script for a shell.
#[must_use]
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "ringgate", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The manual page of section 8, with a chapter for each command.
#[must_use]
pub fn manual() -> String {
    let mut page = Vec::new();
    let command = Args::command().name("ringgate");
    let man = clap_mangen::Man::new(command.clone()).section("8").manual("Ringgate");
    // Writing into a vector cannot fail.
    let _ = man.render(&mut page);
    let mut built = command;
    built.build();
    for child in built.get_subcommands() {
        chapter(child, &mut page);
    }
    String::from_utf8_lossy(&page).into_owned()
}

fn chapter(command: &Command, page: &mut Vec<u8>) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_uppercase();
    page.extend_from_slice(format!(".SH \"{name}\"\n").as_bytes());
    let man = clap_mangen::Man::new(command.clone());
    let _ = man.render_synopsis_section(page);
    let _ = man.render_description_section(page);
    let _ = man.render_options_section(page);
    if command.get_after_help().is_some() || command.get_after_long_help().is_some() {
        let _ = man.render_extra_section(page);
    }
    for child in command.get_subcommands() {
        chapter(child, page);
    }
}
