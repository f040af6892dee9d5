use proptest::prelude::*;

use super::*;
use crate::l7::config::Pattern;
use crate::l7::config::{Action, HeaderEdits, PathMatch, Respond};

fn route(path: PathMatch) -> Route {
    Route {
        listeners: Vec::new(),
        hosts: Vec::new(),
        path,
        methods: Vec::new(),
        headers: Vec::new(),
        action: Action::Respond(Respond {
            status: 200,
            body: bytes::Bytes::new(),
            content_type: String::new(),
        }),
        rewrite: None,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        client_max_body_size: None,
    }
}

fn exact(path: &str) -> Route {
    route(PathMatch::Exact(path.to_owned()))
}

fn prefix(path: &str) -> Route {
    route(PathMatch::Prefix(path.to_owned()))
}

fn regex(pattern: &str) -> Route {
    route(PathMatch::Regex(Pattern::new(pattern).unwrap()))
}

fn header(name: &str, value: ValueMatch) -> HeaderMatch {
    HeaderMatch { name: name.to_owned(), value }
}

impl Route {
    /// `*.name` is a wildcard, anything else an exact name.
    fn at(mut self, host: &str) -> Self {
        self.hosts.push(match host.strip_prefix("*.") {
            Some(suffix) => HostMatch::Suffix(suffix.to_owned()),
            None => HostMatch::Exact(host.to_owned()),
        });
        self
    }

    fn method(mut self, method: &str) -> Self {
        self.methods.push(method.to_owned());
        self
    }

    fn header(mut self, name: &str, value: ValueMatch) -> Self {
        self.headers.push(header(name, value));
        self
    }

    fn listener(mut self, listener: usize) -> Self {
        self.listeners.push(listener);
        self
    }
}

#[derive(Debug, Clone, Default)]
struct Asked {
    host: String,
    path: String,
    method: String,
    headers: Vec<(String, String)>,
}

impl Request for Asked {
    fn host(&self) -> &[u8] {
        self.host.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn header_matches(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.headers.iter().any(|(known, value)| known == name && test(value.as_bytes()))
    }
}

fn get(host: &str, path: &str) -> Asked {
    let [host, path, method] = [host, path, "GET"].map(str::to_owned);
    Asked { host, path, method, headers: Vec::new() }
}

fn find(routes: &[Route], request: &Asked) -> Option<usize> {
    Router::new(routes, 1).find(routes, 0, request)
}

#[test]
fn hosts_go_from_exact_over_the_longest_wildcard_to_any() {
    let routes = [
        prefix("/"),
        prefix("/").at("*.example"),
        prefix("/").at("*.shop.example"),
        prefix("/").at("www.shop.example"),
        prefix("/only").at("narrow.example"),
    ];
    for (host, expected) in [
        ("www.shop.example", 3),
        ("WWW.shop.example", 2),
        ("www.shop.example.", 3),
        ("a.shop.example", 2),
        ("a.b.shop.example.", 2),
        ("shop.example", 1),
        (".shop.example", 1),
        ("ashop.example", 1),
        ("example", 0),
        (".example", 0),
        ("other", 0),
        ("", 0),
        (".", 0),
        ("..", 0),
        // The host is settled by name: `*.example` does not take what narrow.example leaves.
        ("narrow.example", 0),
    ] {
        assert_eq!(find(&routes, &get(host, "/x")), Some(expected), "{host:?}");
    }
    assert_eq!(find(&routes, &get("narrow.example", "/only")), Some(4));
}

#[test]
fn a_host_comes_before_a_better_path_elsewhere() {
    let routes = [exact("/x"), prefix("/").at("a.example")];
    assert_eq!(find(&routes, &get("a.example", "/x")), Some(1));
    assert_eq!(find(&routes, &get("b.example", "/x")), Some(0));
    assert_eq!(find(&routes, &get("b.example", "/y")), None);
}

#[test]
fn a_long_host_of_dots_costs_no_more_than_the_longest_wildcard() {
    let routes = [prefix("/").at("*.a.example")];
    let router = Router::new(&routes, 1);
    steps::take();
    assert_eq!(router.find(&routes, 0, &get(&".".repeat(30_000), "/")), None);
    assert!(steps::take() < 16);
}

#[test]
fn paths_go_from_exact_over_regex_to_the_longest_prefix() {
    let routes = [
        prefix("/"),
        prefix("/images/"),
        prefix("/images/big"),
        regex(r"\.png$"),
        regex(r"^/images/.*\.p"),
        exact("/images/a.png"),
        prefix("/im"),
    ];
    for (path, expected) in [
        ("/images/a.png", 5),
        ("/images/b.png", 3),
        ("/images/b.pdf", 4),
        ("/images/b", 1),
        ("/images/", 1),
        ("/images", 6),
        // Byte by byte, as in nginx: no boundary at the slash.
        ("/images/bigger", 2),
        ("/impossible", 6),
        ("/i", 0),
    ] {
        assert_eq!(find(&routes, &get("", path)), Some(expected), "{path}");
    }
    assert_eq!(find(&routes, &get("", "*")), Some(0));
    assert_eq!(find(&routes, &get("", "")), None);
}

#[test]
fn conditions_order_equal_paths_and_failed_ones_fall_through() {
    let routes = [
        prefix("/"),
        prefix("/api/"),
        prefix("/api/").method("POST"),
        prefix("/api/").header("x-beta", ValueMatch::Exact("1".into())),
        prefix("/api/v2/").method("PUT").method("DELETE"),
        exact("/api/v2/x").header("x-any", ValueMatch::Present),
        regex("^/api/v[0-9]").header("accept", ValueMatch::Regex(Pattern::new("json").unwrap())),
    ];
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        find(&routes, &Asked { method: method.to_owned(), headers, ..get("", path) })
    };
    assert_eq!(ask("GET", "/api/a", &[]), Some(1));
    assert_eq!(ask("POST", "/api/a", &[]), Some(2));
    assert_eq!(ask("post", "/api/a", &[]), Some(1));
    assert_eq!(ask("POST", "/api/a", &[("x-beta", "1")]), Some(2));
    assert_eq!(ask("GET", "/api/a", &[("x-beta", "2"), ("x-beta", "1")]), Some(3));
    assert_eq!(ask("GET", "/api/a", &[("x-beta", "11")]), Some(1));
    assert_eq!(ask("DELETE", "/api/v2/x", &[]), Some(4));
    assert_eq!(ask("GET", "/api/v2/x", &[]), Some(1));
    assert_eq!(ask("GET", "/api/v2/x", &[("x-any", "")]), Some(5));
    assert_eq!(ask("PUT", "/api/v2/x", &[("accept", "text/json")]), Some(6));
}

#[test]
fn a_host_that_refuses_leaves_the_request_to_routes_of_any_host() {
    let routes = [
        prefix("/").at("a.example").method("GET"),
        prefix("/").at("*.example"),
        exact("/x").method("POST"),
    ];
    let post = Asked { method: "POST".into(), ..get("a.example", "/x") };
    assert_eq!(find(&routes, &post), Some(2));
    assert_eq!(find(&routes, &Asked { path: "/y".into(), ..post }), None);
}

#[test]
fn listeners_see_only_their_routes() {
    let routes = [
        prefix("/").at("a.example").listener(1),
        prefix("/"),
        prefix("/").at("*.example").listener(0).listener(2),
    ];
    let router = Router::new(&routes, 4);
    let found: Vec<_> =
        (0..5).map(|listener| router.find(&routes, listener, &get("a.example", "/"))).collect();
    assert_eq!(found, [Some(2), Some(0), Some(2), Some(1), None]);
    assert_eq!(router.sites.len(), 3);
}

#[test]
fn no_routes_and_no_listeners_find_nothing() {
    assert_eq!(find(&[], &get("a", "/")), None);
    assert_eq!(Router::new(&[], 0).find(&[], 0, &get("a", "/")), None);
    let routes = [prefix("/")];
    assert_eq!(Router::new(&routes, 1).find(&[], 0, &get("a", "/")), None);
}

/// Routes that grow in every dimension but the conditions on one path.
fn many_routes(count: usize) -> Vec<Route> {
    let mut routes: Vec<Route> = (0..count)
        .map(|n| match n % 5 {
            0 => prefix("/").at(&format!("h{n}.example")),
            1 => prefix("/").at(&format!("*.s{n}.example")),
            2 => exact(&format!("/exact/{n:05}")).at("big.example"),
            3 => prefix(&format!("/prefix/{n:05}/")).at("big.example"),
            _ => prefix(&format!("/any/{n:05}")),
        })
        .collect();
    routes.push(prefix("/"));
    routes
}

#[test]
fn ten_thousand_routes_take_hardly_more_steps_than_ten() {
    let steps_max = |count: usize| {
        let routes = many_routes(count);
        let router = Router::new(&routes, 1);
        let last = count - 5;
        let requests = [
            (get(&format!("h{last}.example"), "/a"), last),
            (get(&format!("x.y.s{}.example", last + 1), "/a"), last + 1),
            (get("big.example", &format!("/exact/{:05}", last + 2)), last + 2),
            (get("big.example", &format!("/prefix/{:05}/a/b/c", last + 3)), last + 3),
            (get("none.example", &format!("/any/{:05}", last + 4)), last + 4),
            (get("none.example", "/other"), count),
        ];
        let cost = |(request, expected): &(Asked, usize)| {
            steps::take();
            assert_eq!(router.find(&routes, 0, request), Some(*expected), "{request:?}");
            steps::take()
        };
        requests.iter().map(cost).max().unwrap()
    };
    let (ten, ten_thousand) = (steps_max(10), steps_max(10_000));
    // A thousand times the routes: ten halvings more of the binary search.
    assert!(ten_thousand <= ten + 11, "{ten} {ten_thousand}");
}

#[test]
fn nested_prefixes_cost_one_step_a_level() {
    let path = |length: usize| format!("/{}", "a".repeat(length));
    let routes: Vec<Route> = (0..300).map(|length| prefix(&path(length)).method("PUT")).collect();
    let router = Router::new(&routes, 1);
    for (request, expected) in [
        (Asked { method: "PUT".into(), ..get("", &path(1000)) }, Some(299)),
        (Asked { method: "PUT".into(), ..get("", &(path(7) + "b")) }, Some(7)),
        (get("", &path(1000)), None),
    ] {
        steps::take();
        assert_eq!(router.find(&routes, 0, &request), expected);
        assert!(steps::take() < 2 * 300 + 15);
    }
}

/// The documented order, written as one sort.
fn reference(routes: &[Route], listener: usize, request: &Asked) -> Option<usize> {
    let host = request.host.strip_suffix('.').unwrap_or(&request.host);
    let host_rank = |route: &Route| {
        let rank = |host_match: &HostMatch| match host_match {
            HostMatch::Exact(name) if name == host => Some(usize::MAX),
            HostMatch::Suffix(name) => {
                let rest = host.strip_suffix(name.as_str())?.strip_suffix('.')?;
                (!rest.is_empty()).then_some(name.len() + 1)
            }
            HostMatch::Exact(_) => None,
        };
        if route.hosts.is_empty() { Some(0) } else { route.hosts.iter().filter_map(rank).max() }
    };
    let path_rank = |index: usize, route: &Route| {
        let free = route.methods.is_empty() && route.headers.is_empty();
        match &route.path {
            PathMatch::Exact(path) => {
                (*path == request.path).then_some((0, 0, usize::from(free), index))
            }
            PathMatch::Regex(regex) => regex.is_match(&request.path).then_some((1, 0, 0, index)),
            PathMatch::Prefix(prefix) => request.path.starts_with(prefix.as_str()).then_some((
                2,
                usize::MAX - prefix.len(),
                usize::from(free),
                index,
            )),
        }
    };
    let on_listener =
        |route: &Route| route.listeners.is_empty() || route.listeners.contains(&listener);
    let here = routes.iter().enumerate().filter(|(_, route)| on_listener(route));
    let ranked: Vec<_> =
        here.filter_map(|(index, route)| Some((host_rank(route)?, index, route))).collect();
    let best_host = ranked.iter().map(|(rank, ..)| *rank).max()?;
    let best_of = |host: usize| {
        let of_host = ranked.iter().filter(|(rank, ..)| *rank == host);
        let fitting = of_host.filter(|(.., route)| conditions_hold(route, request));
        fitting.filter_map(|(_, index, route)| path_rank(*index, route)).min()
    };
    best_of(best_host).or_else(|| best_of(0)).map(|(.., index)| index)
}

fn any_host() -> impl Strategy<Value = String> {
    "([ab]{0,1}[.]){0,3}[ab]?"
}

fn any_route() -> impl Strategy<Value = Route> {
    let hosts = proptest::collection::vec("([*][.])?[ab]([.][ab]){0,2}", 0..3);
    let path = (0..6, "/[ab/]{0,4}", proptest::sample::select(vec!["a$", "^/b", "/a+/", "x"]));
    let methods = proptest::collection::vec("GET|PUT", 0..2);
    let headers = proptest::collection::vec((proptest::bool::ANY, 0..3), 0..2);
    let listeners = proptest::collection::vec(0..3_usize, 0..2);
    (hosts, path, methods, headers, listeners).prop_map(
        |(hosts, (kind, path, pattern), methods, headers, listeners)| {
            let made = match kind {
                0 | 1 => exact(&path),
                2 => regex(pattern),
                _ => prefix(&path),
            };
            let made = hosts.iter().fold(made, |made, host| made.at(host));
            let made = methods.iter().fold(made, |made, method| made.method(method));
            let made = headers.iter().fold(made, |made, (first, kind)| {
                let value = match kind {
                    0 => ValueMatch::Present,
                    1 => ValueMatch::Exact("1".into()),
                    _ => ValueMatch::Regex(Pattern::new("2").unwrap()),
                };
                made.header(if *first { "x" } else { "y" }, value)
            });
            listeners.iter().fold(made, |made, listener| made.listener(*listener))
        },
    )
}

fn any_request() -> impl Strategy<Value = Asked> {
    let headers = proptest::collection::vec(("[xy]", "[12]{0,2}"), 0..3);
    (any_host(), "/[ab/]{0,6}", "GET|PUT|get", headers)
        .prop_map(|(host, path, method, headers)| Asked { host, path, method, headers })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_index_agrees_with_the_reference(
        routes in proptest::collection::vec(any_route(), 0..40),
        requests in proptest::collection::vec((any_request(), 0..3_usize), 40),
    ) {
        let router = Router::new(&routes, 3);
        for (request, listener) in &requests {
            prop_assert_eq!(
                router.find(&routes, *listener, request),
                reference(&routes, *listener, request),
                "{:?}", request
            );
        }
    }
}
