//! The file with this process's number, for whoever signals it without a service manager.

use std::fs;
use std::io;
use std::path::Path;

/// Writes it: beside its place, and moved there, so that nobody reads half a number.
///
/// # Errors
/// What the file system says.
pub fn write(path: &Path) -> io::Result<()> {
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&beside, format!("{}\n", std::process::id()))
        .and_then(|()| fs::rename(&beside, path))
        .inspect_err(|_| drop(fs::remove_file(&beside)))
}

/// Removes it, unless it is a successor's by now.
pub fn remove(path: &Path) {
    let is_ours =
        fs::read_to_string(path).is_ok_and(|text| text.trim().parse() == Ok(std::process::id()));
    if is_ours {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_is_removed() {
        let path = std::env::temp_dir().join(format!("ringgate-pid-{}.pid", std::process::id()));
        write(&path).expect("writable");
        let text = fs::read_to_string(&path).expect("there");
        assert_eq!(text, format!("{}\n", std::process::id()));
        fs::write(&path, "1\n").expect("writable");
        remove(&path);
        assert!(path.exists());
        write(&path).expect("writable");
        remove(&path);
        assert!(!path.exists());
        assert!(write(Path::new("/nonexistent/x")).is_err());
    }
}
