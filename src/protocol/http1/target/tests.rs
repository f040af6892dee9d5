use proptest::prelude::*;

use super::*;

/// A target with what it was parsed from.
#[derive(Debug)]
struct Parsed<'a>(Target, &'a [u8]);

impl Parsed<'_> {
    fn path(&self) -> &[u8] {
        self.0.path(self.1)
    }

    fn query(&self) -> Option<&[u8]> {
        self.0.query(self.1)
    }

    fn path_and_query(&self) -> &[u8] {
        self.0.path_and_query(self.1)
    }

    fn authority(&self) -> Option<&[u8]> {
        self.0.authority(self.1)
    }

    fn is_asterisk(&self) -> bool {
        self.0.is_asterisk(self.1)
    }
}

fn parse(method: Method, raw: &[u8]) -> Result<Parsed<'_>, TargetError> {
    let mut target = Target::new();
    target.parse(method, raw).map(|()| Parsed(target, raw))
}

fn path(raw: &str) -> Result<String, TargetError> {
    parse(Method::Get, raw.as_bytes()).map(|target| String::from_utf8_lossy(target.path()).into())
}

#[test]
fn normal_paths() {
    let table = [
        ("/", "/"),
        ("/a/b.html", "/a/b.html"),
        ("/a/", "/a/"),
        ("/.well-known/x", "/.well-known/x"),
        ("/..a", "/..a"),
        ("/...", "/..."),
        ("/a..", "/a.."),
        ("//", "/"),
        ("//a///b//", "/a/b/"),
        ("/.", "/"),
        ("/./", "/"),
        ("/./a", "/a"),
        ("/a/.", "/a/"),
        ("/a/./b", "/a/b"),
        ("/a/..", "/"),
        ("/a/../", "/"),
        ("/a/b/..", "/a/"),
        ("/a/b/../c", "/a/c"),
        ("/a/b/../../c", "/c"),
        ("/a//../b", "/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/%2e/b", "/a/b"),
        ("/%61%7E%5f%2D", "/a~_-"),
        ("/%c3%a9", "/%C3%A9"),
        ("/%0d%0a", "/%0D%0A"),
        ("/%2541", "/%2541"),
        ("/%25%34%31", "/%2541"),
        ("/%252f", "/%252f"),
        ("/%3f%23%20", "/%3F%23%20"),
        ("/a;b=c,d:e@f!$&'()*+=~", "/a;b=c,d:e@f!$&'()*+=~"),
        ("/a|b^{c}\"<>[]`", "/a|b^{c}\"<>[]`"),
        ("/..a;b/.;c", "/..a;b/.;c"),
    ];
    for (raw, normal) in table {
        assert_eq!(path(raw).as_deref(), Ok(normal), "{raw:?}");
    }
}

#[test]
fn refused_paths() {
    use TargetError::*;
    let table = [
        ("", Form),
        ("*", Form),
        ("a", Form),
        ("?a", Form),
        ("example.com:80", Form),
        ("ftp://a/", Form),
        ("http:/a", Form),
        ("file:///etc/passwd", Form),
        ("/a\\b", Character),
        ("/a b", Character),
        ("/a#b", Character),
        ("/a\tb", Character),
        ("/a\0b", Character),
        ("/a\x7f", Character),
        ("/\u{e9}", Character),
        ("/a?b#c", Character),
        ("/a?b c", Character),
        ("/a?\x01", Character),
        ("/a?\u{e9}", Character),
        ("/a?\x7f", Character),
        ("/%", Escape),
        ("/%4", Escape),
        ("/%4/1", Escape),
        ("/%g1", Escape),
        ("/%1g", Escape),
        ("/%u0041", Escape),
        ("/%?41", Escape),
        ("/%00", EscapedSeparator),
        ("/a%2fb", EscapedSeparator),
        ("/a%2Fb", EscapedSeparator),
        ("/a%5cb", EscapedSeparator),
        ("/a%5Cb", EscapedSeparator),
        ("/..", AboveRoot),
        ("/../a", AboveRoot),
        ("/a/../..", AboveRoot),
        ("/./..", AboveRoot),
        ("//..", AboveRoot),
        ("/%2e%2e/a", AboveRoot),
        ("/a/..;/b", DotParameter),
        ("/a/%2e.;x=y", DotParameter),
    ];
    for (raw, error) in table {
        assert_eq!(path(raw), Err(error), "{raw:?}");
        assert_eq!(error.status(), 400);
    }
    let long = vec![b'/'; 65_536];
    assert_eq!(parse(Method::Get, &long).unwrap_err().status(), 414);
}

#[test]
fn queries() {
    let table = [
        ("/a", "/a", None),
        ("/a?", "/a", Some("")),
        ("/a?b=c&d", "/a", Some("b=c&d")),
        ("/a?b?c/../d//%2f%zz\\%", "/a", Some("b?c/../d//%2f%zz\\%")),
        ("/b/..?x", "/", Some("x")),
        ("http://h?x", "/", Some("x")),
    ];
    for (raw, path, query) in table {
        let target = parse(Method::Get, raw.as_bytes()).unwrap();
        assert_eq!(target.path(), path.as_bytes(), "{raw:?}");
        assert_eq!(target.query(), query.map(str::as_bytes), "{raw:?}");
        let whole = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        assert_eq!(target.path_and_query(), whole.as_bytes(), "{raw:?}");
    }
}

#[test]
fn absolute() {
    let table = [
        ("http://example.com", "example.com", "/"),
        ("HTTP://Example.com:8080/a/../b", "Example.com:8080", "/b"),
        ("https://[::1]:443/?q", "[::1]:443", "/"),
        ("http://a//b", "a", "/b"),
    ];
    for (raw, authority, path) in table {
        let target = parse(Method::Get, raw.as_bytes()).unwrap();
        assert_eq!(target.authority(), Some(authority.as_bytes()), "{raw:?}");
        assert_eq!(target.path(), path.as_bytes(), "{raw:?}");
    }
    for raw in ["http://", "http:///a", "http://u@h/", "http://a,b/", "http://a\\b/", "http://a#/"]
    {
        let error = parse(Method::Get, raw.as_bytes()).unwrap_err();
        assert!(matches!(error, TargetError::Authority(_)), "{raw:?}: {error}");
    }
}

#[test]
fn asterisk_and_connect() {
    for raw in [&b"*"[..], b"http://example.com"] {
        let target = parse(Method::Options, raw).unwrap();
        assert!(target.is_asterisk());
        assert_eq!((target.path(), target.query()), (&b"*"[..], None));
    }
    assert!(!parse(Method::Options, b"http://example.com/").unwrap().is_asterisk());
    assert_eq!(parse(Method::Options, b"**").unwrap_err(), TargetError::Form);

    assert_eq!(parse(Method::Connect, b"a:443").unwrap_err(), TargetError::Connect);
    assert_eq!(TargetError::Connect.status(), 405);
    for raw in [&b"a"[..], b"/", b"a:", b"http://a/", b"*", b""] {
        assert_eq!(parse(Method::Connect, raw).unwrap_err().status(), 400);
    }
}

#[test]
fn reuse_leaves_nothing_behind() {
    let mut target = Target::new();
    target.parse(Method::Get, b"http://a//b?c").unwrap();
    let raw = b"/d";
    target.parse(Method::Get, raw).unwrap();
    assert_eq!((target.path_and_query(raw), target.authority(raw)), (&b"/d"[..], None));
    let raw = b"http://a/b/%";
    assert!(target.parse(Method::Get, raw).is_err());
    assert_eq!((target.path_and_query(raw), target.authority(raw)), (&b""[..], None));
}

#[test]
fn what_is_forwarded_to_the_byte_is_known() {
    for (raw, is_as_received) in [
        ("/", true),
        ("/a/b?c//d", true),
        ("/a//b", false),
        ("/a/./b?c", false),
        ("/%41", false),
        ("http://a/b", false),
        ("http://a", false),
    ] {
        let Parsed(target, raw) = parse(Method::Get, raw.as_bytes()).unwrap();
        assert_eq!(target.is_as_received(raw), is_as_received, "{raw:?}");
        assert_eq!(target.path_and_query(raw) == raw, is_as_received, "{raw:?}");
    }
    assert!(!parse(Method::Options, b"*").unwrap().0.is_as_received(b"*"), "it has its own form");
}

fn check_normal(raw: &[u8]) {
    let Ok(once) = parse(Method::Get, raw) else { return };
    let text = String::from_utf8(once.path().to_vec()).unwrap();
    assert!(text.starts_with('/'), "{text}");
    for part in ["//", "/./", "/../", "\\", "#", " "] {
        assert!(!text.contains(part), "{text}");
    }
    assert!(!text.ends_with("/.") && !text.ends_with("/.."), "{text}");
    let twice = parse(Method::Get, once.path_and_query()).unwrap();
    assert_eq!(twice.path_and_query(), once.path_and_query());
}

proptest! {
    #[test]
    fn normal_form(parts in prop::collection::vec(prop::sample::select(vec![
        "/", "/", ".", "..", "%2e", "%2E", "a", "b;c", "%41", "%c3", "%25", "2", "e", "?", "%", ";",
    ]), 0..14)) {
        check_normal(format!("/{}", parts.concat()).as_bytes());
    }

    #[test]
    fn any_bytes(raw in prop::collection::vec(any::<u8>(), 0..40)) {
        check_normal(&raw);
        check_normal(&[b"/", &raw[..]].concat());
    }

    /// Whenever the fast path is taken, the slow one would have written the same.
    #[test]
    fn both_paths_agree(raw in "/[a./;%2e]{0,12}") {
        let (len, is_normal) = survey(raw.as_bytes()).unwrap();
        prop_assert_eq!(len, raw.len());
        let mut out = Vec::new();
        if is_normal {
            push_normalised(&mut out, raw.as_bytes()).unwrap();
            prop_assert_eq!(out, raw.into_bytes());
        }
    }
}
