#![no_main]
//! A foreign sysctl.conf, a journal and the kernel's lists: any text is judged or refused.

use libfuzzer_sys::fuzz_target;
use ringgate::tune::machine::{parse_list, sysctl_path};
use ringgate::tune::wanted::{parse_ports, selected, show_ports};
use ringgate::tune::{journal, lint};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for finding in lint::lint(text, &[80, 8443]) {
        assert!(finding.line >= 1 && !finding.says.is_empty());
    }
    if let Ok(journal) = journal::parse(text) {
        assert!(journal.originals().len() <= journal.records.len());
    }
    for line in text.lines() {
        if let Some(path) = sysctl_path(line) {
            assert!(path.starts_with("/proc/sys/") && !path.contains("/../"));
        }
        if let Some(ports) = parse_ports(line) {
            assert_eq!(parse_ports(&show_ports(&ports)), Some(ports));
        }
        let _ = (parse_list(line).len(), selected(line));
    }
});
