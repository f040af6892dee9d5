//! Tests of the whole file, and what the tests of its parts share.

use super::*;

/// A route, so that `[[listener]]` can stand before it.
pub(super) const ROUTES: &str = "[[route]]\nrespond = {}";

/// The least that is valid.
const REST: &str = "[[listener]]\nbind = \"0.0.0.0:80\"\n[[route]]\nrespond = {}";

/// Parses `text` with a listener and a route behind it.
pub(super) fn good(text: &str) -> Config {
    match parse("t", &format!("{text}\n{REST}")) {
        Ok(config) => config,
        Err(errors) => panic!("{text}\n{errors}"),
    }
}

/// Each text, with a listener and a route behind it, has one problem: `line:column` and a part of it.
pub(super) fn bad<T: AsRef<str>>(cases: &[(T, &str, &str)]) {
    let full: Vec<_> = cases
        .iter()
        .map(|(text, at, says)| (format!("{}\n{REST}", text.as_ref()), *at, *says))
        .collect();
    bad_exactly(&full);
}

/// Each text has one problem: `line:column` and a part of its message.
pub(super) fn bad_exactly<T: AsRef<str>>(cases: &[(T, &str, &str)]) {
    for (text, at, says) in cases {
        let text = text.as_ref();
        let Err(errors) = parse("t", text) else { panic!("accepted:\n{text}") };
        let [error] = errors.errors() else { panic!("not one problem:\n{errors}\nin\n{text}") };
        let place = error.position.map(|place| format!("{}:{}", place.line, place.column));
        assert_eq!(place.as_deref(), Some(*at), "{text}\n{error}");
        assert!(error.message.contains(says), "{text}\n{error}\nwanted: {says}");
    }
}
