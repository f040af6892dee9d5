//! Any text is a valid configuration or is refused with problems that stand in the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringgate::control::config::parse;

fuzz_target!(|text: &str| {
    let Err(errors) = parse("fuzz.toml", text) else { return };
    assert!(!errors.errors().is_empty());
    let lines = text.split('\n').count();
    for error in errors.errors() {
        assert!(error.position.is_none_or(|at| at.line <= lines && at.column >= 1));
        assert!(!error.message.contains('\n'));
    }
    assert!(errors.to_string().starts_with("fuzz.toml:"));
});
