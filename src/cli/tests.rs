use std::fs;

use super::*;

/// Exit code (`None`: would run), standard output, standard error.
fn ringgate(args: &[&str]) -> (Option<u8>, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = std::iter::once("ringgate").chain(args.iter().copied());
    let code = match prepare(args, &mut out, &mut err) {
        Step::Exit(code) => Some(code),
        Step::Run { .. } => None,
    };
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// A file of this content that lives as long as the value.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let name = format!("ringgate-cli-{}-{name}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn check_counts() {
    let text = "[[listener]]\nbind = \"127.0.0.1:80\"\n\n[[route]]\nrespond = {}\n\n[upstream.a]\n\
                servers = [{ address = \"a:1\" }]\n";
    let file = File::new("good", text);
    let (code, out, err) = ringgate(&["check", file.path()]);
    assert_eq!(code, Some(0));
    assert_eq!(out, format!("{}: ok (1 listener, 1 route, 1 upstream)\n", file.path()));
    assert_eq!(err, format!("{}:7:11: warning: `upstream.a` is used by no route\n", file.path()));
}

#[test]
fn bad_files_are_explained_on_standard_error() {
    let file = File::new("bad", "[[lisener]]\n");
    for command in ["check", "run"] {
        let (code, out, err) = ringgate(&[command, file.path()]);
        assert_eq!((code, out.as_str()), (Some(2), ""));
        let says =
            format!("{}:1:3: unknown key `lisener`: did you mean `listener`?\n", file.path());
        assert!(err.contains(&says), "{err}");
        assert!(err.contains("\n 1 | [[lisener]]\n   |   ^^^^^^^\n"), "{err}");
    }
    let (code, _, err) = ringgate(&["check", "/nonexistent/ringgate.toml"]);
    assert_eq!(code, Some(2));
    assert!(err.starts_with("/nonexistent/ringgate.toml: cannot read: No such file"), "{err}");
}

#[test]
fn run_takes_a_file_or_the_demo() {
    assert_eq!(ringgate(&["run", "--demo"]), (None, String::new(), String::new()));
    let file = File::new("run", DEMO);
    assert_eq!(ringgate(&["run", file.path()]).0, None);
    for args in [&["run"][..], &["run", "--demo", "x"], &["check"], &["start"], &[]] {
        let (code, out, err) = ringgate(args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}");
        assert!(err.contains("Usage: ringgate"), "{args:?}: {err}");
    }
}

#[test]
fn help_and_version() {
    for (args, says) in [
        (&["--help"][..], "ringgate run --demo "),
        (&["run", "--help"], "SIGTERM"),
        (&["check", "--help"], "ringgate check ringgate.toml"),
        (&["--version"], concat!("ringgate ", env!("CARGO_PKG_VERSION"))),
    ] {
        let (code, out, err) = ringgate(args);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}");
        assert!(out.contains(says), "{args:?}: {out}");
    }
}

/// Every write fails so.
struct Broken(io::ErrorKind);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_pipe_is_no_failure_but_a_full_disk_is() {
    for (kind, code) in [(io::ErrorKind::BrokenPipe, 0), (io::ErrorKind::StorageFull, 1)] {
        let args = ["ringgate", "--version"];
        let step = prepare(args, &mut Broken(kind), &mut Broken(kind));
        assert!(matches!(step, Step::Exit(got) if got == code), "{kind:?}");
    }
    let step =
        prepare(["ringgate", "nothing"], &mut io::sink(), &mut Broken(io::ErrorKind::BrokenPipe));
    assert!(matches!(step, Step::Exit(2)));
}
