//! Changes of servers written into the configuration file, in place: comments and layout stay.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

use toml_edit::{Array, DocumentMut, InlineTable, Item, TableLike, Value};

use crate::control::config::{self, FILE_SIZE_MAX};
use crate::control::servers::Change;
use crate::l7::config::Server;

/// Writes changes of the servers called `names` into the file at `path`, all or none.
///
/// # Errors
/// Text for the operator; the file is as it was then.
pub fn write(path: &Path, upstream: &str, changes: &[(String, Change)]) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    // Through symbolic links: the link stays one.
    let path = &fs::canonicalize(path).map_err(failed)?;
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    file.take(FILE_SIZE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    for (name, change) in changes {
        text = edit(&text, upstream, name, change)
            .map_err(|why| format!("{} is not changed: {why}", path.display()))?;
    }
    config::parse(&path.to_string_lossy(), &text)
        .map_err(|errors| format!("{} is not changed: {errors}", path.display()))?;
    replace(path, &meta, &text).map_err(failed)
}

/// A new file beside the old one, moved over it: a crash leaves one or the other.
fn replace(path: &Path, meta: &fs::Metadata, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&beside);
    let made = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        // Whoever could read it can, and nobody else.
        fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
        file.set_permissions(meta.permissions())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(directory)?.sync_all()
    };
    let result = made();
    if result.is_err() {
        let _ = fs::remove_file(&beside);
    }
    result
}

/// The text after the change.
fn edit(text: &str, upstream: &str, name: &str, change: &Change) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error| format!("{error}"))?;
    let servers = document
        .get_mut("upstream")
        .and_then(Item::as_table_like_mut)
        .and_then(|upstreams| upstreams.get_mut(upstream))
        .and_then(Item::as_table_like_mut)
        .and_then(|upstream| upstream.get_mut("servers"))
        .ok_or_else(|| format!("it has no [upstream.{upstream}] with servers"))?;
    match servers {
        Item::Value(Value::Array(array)) => edit_array(array, name, change)?,
        Item::ArrayOfTables(tables) => {
            let at = tables.iter().position(|table| is_called(table, name));
            match (change, at) {
                (Change::Add(server), None) => tables.push(table_of(server).into_table()),
                (Change::Remove, Some(at)) => {
                    tables.remove(at);
                }
                (_, at) => {
                    let table = at.and_then(|at| tables.get_mut(at));
                    set(table.map(|table| table as &mut dyn TableLike), name, change)?;
                }
            }
        }
        _ => return Err(format!("the servers of [upstream.{upstream}] are no list")),
    }
    Ok(document.to_string())
}

fn edit_array(array: &mut Array, name: &str, change: &Change) -> Result<(), String> {
    let called =
        |value: &Value| value.as_inline_table().is_some_and(|table| is_called(table, name));
    let at = array.iter().position(called);
    match (change, at) {
        (Change::Add(server), None) => push(array, table_of(server)),
        (Change::Remove, Some(at)) => remove(array, at),
        (_, at) => {
            let table = at.and_then(|at| array.get_mut(at)).and_then(Value::as_inline_table_mut);
            set(table.map(|table| table as &mut dyn TableLike), name, change)?;
        }
    }
    Ok(())
}

fn is_called(table: &dyn TableLike, name: &str) -> bool {
    let address = table.get("address").and_then(Item::as_str).unwrap_or_default();
    match address.parse::<SocketAddr>() {
        Ok(address) => address.to_string() == name,
        Err(_) => address.eq_ignore_ascii_case(name),
    }
}

fn set(table: Option<&mut dyn TableLike>, name: &str, change: &Change) -> Result<(), String> {
    let table = match (table, change) {
        (Some(_), Change::Add(_)) => return Err(format!("it has a server {name} already")),
        (Some(table), _) => table,
        (None, _) => return Err(format!("it has no server {name}")),
    };
    match change {
        Change::Drain => put(table, "down", true.into()),
        Change::Undrain if table.contains_key("down") => put(table, "down", false.into()),
        Change::Weight(weight) => put(table, "weight", i64::from(*weight).into()),
        _ => {}
    }
    Ok(())
}

/// Sets a key; what is written around its value stays.
fn put(table: &mut dyn TableLike, key: &str, mut value: Value) {
    if let Some(old) = table.get_mut(key).and_then(Item::as_value_mut) {
        *value.decor_mut() = old.decor().clone();
        *old = value;
        return;
    }
    // The space before `}` belongs to the last value.
    let last =
        table.iter_mut().last().and_then(|(_, item)| item.as_value_mut().map(Value::decor_mut));
    if let Some(decor) = last {
        let suffix =
            decor.suffix().and_then(|suffix| suffix.as_str()).unwrap_or_default().to_owned();
        if suffix.trim().is_empty() {
            decor.set_suffix("");
            value.decor_mut().set_prefix(" ");
            value.decor_mut().set_suffix(suffix);
        }
    }
    table.insert(key, Item::Value(value));
}

/// The keys that differ from their defaults.
fn table_of(server: &Server) -> InlineTable {
    let mut table = InlineTable::new();
    table.insert("address", server.address.to_string().into());
    if server.weight != 1 {
        table.insert("weight", i64::from(server.weight).into());
    }
    if server.max_fails != 1 {
        table.insert("max_fails", i64::from(server.max_fails).into());
    }
    let fail_timeout = server.fail_timeout.as_millis();
    if fail_timeout != 10_000 {
        table.insert("fail_timeout", format!("{fail_timeout}ms").into());
    }
    if server.max_conns != 0 {
        table.insert("max_conns", i64::from(server.max_conns).into());
    }
    for (key, value) in [("backup", server.backup), ("down", server.down)] {
        if value {
            table.insert(key, true.into());
        }
    }
    table
}

/// Appends in the list's own layout. A comment behind the last element stays behind that.
fn push(array: &mut Array, table: InlineTable) {
    let mut value = Value::InlineTable(table);
    let text = |raw: Option<&toml_edit::RawString>| {
        raw.and_then(|raw| raw.as_str()).unwrap_or_default().to_owned()
    };
    let Some(last) = array.iter_mut().last() else {
        array.push(value);
        return;
    };
    let prefix = text(last.decor().prefix());
    let indent = prefix.rfind('\n').map_or_else(|| " ".to_owned(), |at| prefix[at..].to_owned());
    let suffix = text(last.decor().suffix());
    if !array.trailing_comma() && suffix.contains('\n') {
        if let Some(last) = array.iter_mut().last() {
            last.decor_mut().set_suffix("");
        }
        // Text before the comma would follow the new comma: a comment there cannot stay in place.
        value.decor_mut().set_suffix(suffix);
        value.decor_mut().set_prefix(indent);
        array.push_formatted(value);
        return;
    }
    let trailing = text(Some(array.trailing()));
    if trailing.contains('#') {
        value.decor_mut().set_prefix(format!("{}{indent}", trailing.trim_end()));
        array.set_trailing("\n");
    } else {
        value.decor_mut().set_prefix(indent);
    }
    value.decor_mut().set_suffix("");
    array.push_formatted(value);
}

/// Takes an element out with the comment on its line; those of its neighbours stay.
fn remove(array: &mut Array, at: usize) {
    let text = |raw: Option<&toml_edit::RawString>| {
        raw.and_then(|raw| raw.as_str()).unwrap_or_default().to_owned()
    };
    let gone = array.remove(at);
    let prefix = text(gone.decor().prefix());
    // Up to the end of the line it is about the element before.
    let before = prefix.split_once('\n').map_or("", |(before, _)| before).to_owned();
    let behind = |rest: &str| {
        let rest = rest.find('\n').map_or(rest, |at| &rest[at..]);
        format!("{before}{rest}")
    };
    if let Some(next) = array.get_mut(at) {
        let rest = text(next.decor().prefix());
        next.decor_mut().set_prefix(if at == 0 && !rest.contains('\n') {
            prefix
        } else {
            behind(&rest)
        });
    } else if array.trailing_comma() {
        let rest = text(Some(array.trailing()));
        array.set_trailing(behind(&rest));
    } else {
        let rest = text(gone.decor().suffix());
        if let Some(last) = array.iter_mut().last() {
            last.decor_mut().set_suffix(behind(&rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::l7::config::ServerAddress;

    const FILE: &str = r#"# the shop
[upstream.api]   # by hand
balance = "least_conn"
servers = [
  { address = "10.0.0.1:80", weight = 5 }, # the old one
  # the new ones
  { address = "App.internal:80" },         # by name
  { address = "10.0.0.3:80", down = true },# broken
]
keepalive = 32 # few

[[listener]]
bind = "127.0.0.1:80"
"#;

    fn server(address: &str) -> Server {
        Server {
            address: ServerAddress::Socket(address.parse().unwrap()),
            weight: 2,
            max_fails: 1,
            fail_timeout: Duration::from_secs(10),
            backup: true,
            max_conns: 0,
            down: false,
        }
    }

    /// What was replaced, line by line.
    fn changed(name: &str, change: &Change) -> (Vec<String>, Vec<String>) {
        let new = edit(FILE, "api", name, change).unwrap();
        config::parse("t", &new).expect(&new);
        let lacks = |one: &str, other: &str| {
            let lines = one.lines().filter(|line| !other.lines().any(|known| known == *line));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        (lacks(FILE, &new), lacks(&new, FILE))
    }

    #[test]
    fn one_line_changes() {
        for (name, change, old, new) in [
            (
                "10.0.0.1:80",
                Change::Weight(7),
                r#"  { address = "10.0.0.1:80", weight = 5 }, # the old one"#,
                r#"  { address = "10.0.0.1:80", weight = 7 }, # the old one"#,
            ),
            (
                "app.internal:80",
                Change::Drain,
                r#"  { address = "App.internal:80" },         # by name"#,
                r#"  { address = "App.internal:80", down = true },         # by name"#,
            ),
            (
                "10.0.0.3:80",
                Change::Undrain,
                r#"  { address = "10.0.0.3:80", down = true },# broken"#,
                r#"  { address = "10.0.0.3:80", down = false },# broken"#,
            ),
        ] {
            assert_eq!(changed(name, &change), (vec![old.to_owned()], vec![new.to_owned()]));
        }
    }

    #[test]
    fn lines_come_and_go_with_their_comments() {
        let new = r#"  { address = "[::1]:80", weight = 2, backup = true },"#;
        let add = Change::Add(server("[::1]:80"));
        assert_eq!(changed("[::1]:80", &add), (vec![], vec![new.to_owned()]));
        for (name, gone) in [
            ("10.0.0.1:80", r#"  { address = "10.0.0.1:80", weight = 5 }, # the old one"#),
            ("10.0.0.3:80", r#"  { address = "10.0.0.3:80", down = true },# broken"#),
        ] {
            assert_eq!(changed(name, &Change::Remove), (vec![gone.to_owned()], vec![]));
        }
        let gone = ["  # the new ones", r#"  { address = "App.internal:80" },         # by name"#];
        let (old, new) = changed("app.internal:80", &Change::Remove);
        assert_eq!((old.as_slice(), new.len()), (&gone.map(str::to_owned)[..], 0));
    }

    #[test]
    fn other_forms() {
        let add = Change::Add(server("10.0.0.9:80"));
        for (text, change, expected) in [
            (
                "upstream.a.servers = [{ address = \"b:1\" }]\n",
                &add,
                "upstream.a.servers = [{ address = \"b:1\" }, { address = \"10.0.0.9:80\", weight = 2, backup = true }]\n",
            ),
            (
                "[upstream.a]\nservers = [\n  { address = \"b:1\" },\n  { address = \"c:1\" }\n]\n",
                &add,
                "[upstream.a]\nservers = [\n  { address = \"b:1\" },\n  { address = \"c:1\" },\n  { address = \"10.0.0.9:80\", weight = 2, backup = true }\n]\n",
            ),
            (
                "[upstream.a]\nservers = [{ address = \"10.0.0.9:80\" }, { address = \"c:1\" }]\n",
                &Change::Remove,
                "[upstream.a]\nservers = [{ address = \"c:1\" }]\n",
            ),
            (
                "[[upstream.a.servers]]\naddress = \"10.0.0.9:80\" # x\n",
                &Change::Weight(3),
                "[[upstream.a.servers]]\naddress = \"10.0.0.9:80\" # x\nweight = 3\n",
            ),
        ] {
            assert_eq!(edit(text, "a", "10.0.0.9:80", change).unwrap(), expected);
        }
    }

    #[test]
    fn refusals() {
        let says =
            |upstream, name, change: &Change| edit(FILE, upstream, name, change).unwrap_err();
        assert!(says("web", "10.0.0.1:80", &Change::Drain).contains("no [upstream.web]"));
        assert!(says("api", "10.0.0.2:80", &Change::Drain).contains("no server 10.0.0.2:80"));
        let known = Change::Add(server("10.0.0.1:80"));
        assert!(says("api", "10.0.0.1:80", &known).contains("already"));
    }

    #[test]
    fn the_file_keeps_its_permissions_and_is_whole_or_as_it_was() {
        use std::os::unix::fs::PermissionsExt as _;
        let path =
            std::env::temp_dir().join(format!("ringgate-persist-{}.toml", std::process::id()));
        fs::write(&path, FILE).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let weight = |name: &str| (name.to_owned(), Change::Weight(9));
        let error = write(&path, "api", &[weight("10.0.0.1:80"), weight("nobody:1")]).unwrap_err();
        assert!(error.contains("is not changed"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), FILE);
        write(&path, "api", &[weight("10.0.0.1:80")]).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("weight = 9"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        fs::remove_file(&path).unwrap();
    }
}
