"""RFC 9113 and RFC 7541, case by case as h2spec has them, by raw frames.

Each case sends something after the handshake and expects one of: a connection error (GOAWAY with the
code, then the end), a stream error (RST_STREAM with the code), or that everything goes on.

Exceptions, where h2spec would accept or expect something else:
- 3.4 a bad preface: the connection is closed; GOAWAY is sent too, but a client that speaks HTTP/1.1 gets
  HTTP/1.1's answer instead, since listeners take both.
- 5.1.2 streams over the limit: REFUSED_STREAM (h2spec takes PROTOCOL_ERROR or REFUSED_STREAM).
- 8.1.2 malformed requests are reset with PROTOCOL_ERROR; those that are well-formed but meaningless
  (a bad host or path) are answered with 400.
"""

import struct

import pytest

from harness import respond
from harness.http2 import (
    ACK, CLOSED, COMPRESSION, CONTINUATION, DATA, END_HEADERS, END_STREAM, FLOW, GOAWAY, H2, HEADERS,
    PADDED, PING, PREFACE, PRIORITY, PROTOCOL, PUSH, REFUSED, RST, SETTINGS, SIZE, WINDOW,
    WITH_PRIORITY, frame, get_fields, settings,
)
from harness.proxy import one
from harness import Origin, Proxy

LISTENER = [{"http2": True}]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    with Origin(respond()) as origin:
        config = {**one(origin), "listener": LISTENER}
        with Proxy(config, tmp_path_factory.mktemp("http2")) as running:
            yield running


def u32(value):
    return struct.pack(">I", value)


def post(h2, stream=1, more=()):
    return h2.headers(stream, [*get_fields(method="POST"), *more], end=False)


def get(h2, stream=1, more=(), fields=None):
    return h2.headers(stream, [*(fields or get_fields()), *more])


def without(name):
    return [f for f in get_fields() if f[0] != name]


CONNECTION = [
    ("4.2 a frame above the maximum size", lambda h: post(h) + frame(DATA, 0, 1, bytes(16385)), SIZE),
    ("4.2 HEADERS above it", lambda h: frame(HEADERS, END_HEADERS, 1, bytes(16385)), SIZE),
    ("4.3 a field block that is no HPACK", lambda h: frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff"), COMPRESSION),
    ("4.3 an index beyond the tables", lambda h: frame(HEADERS, 5, 1, b"\xff\x30"), COMPRESSION),
    ("4.3 PRIORITY within a field block", lambda h: frame(HEADERS, 1, 1, b"\x82") + frame(PRIORITY, 0, 1, bytes(5)), PROTOCOL),
    ("4.3 HEADERS of another stream within a block", lambda h: frame(HEADERS, 1, 1, b"\x82") + get(h, 3), PROTOCOL),
    ("5.1 idle: DATA", lambda h: frame(DATA, 1, 1, b"x"), PROTOCOL),
    ("5.1 idle: RST_STREAM", lambda h: frame(RST, 0, 1, u32(8)), PROTOCOL),
    ("5.1 idle: WINDOW_UPDATE", lambda h: frame(WINDOW, 0, 1, u32(100)), PROTOCOL),
    ("5.1 idle: CONTINUATION", lambda h: frame(CONTINUATION, 4, 1, b"\x82"), PROTOCOL),
    ("5.1.1 an even stream id", lambda h: get(h, 2), PROTOCOL),
    ("5.5 an unknown frame within a field block", lambda h: frame(HEADERS, 1, 1, b"\x82") + frame(22, 0, 0, b"x"), PROTOCOL),
    ("6.1 DATA on stream 0", lambda h: frame(DATA, 0, 0, b"x"), PROTOCOL),
    ("6.1 padding longer than the payload", lambda h: post(h) + frame(DATA, PADDED, 1, b"\x06hello"), PROTOCOL),
    ("6.1 padded without a length", lambda h: post(h) + frame(DATA, PADDED, 1), SIZE),
    ("6.2 HEADERS on stream 0", lambda h: frame(HEADERS, 5, 0, b"\x82"), PROTOCOL),
    ("6.2 padding longer than the payload", lambda h: frame(HEADERS, 5 | PADDED, 1, b"\x10\x82"), PROTOCOL),
    ("6.3 PRIORITY on stream 0", lambda h: frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    ("6.4 RST_STREAM on stream 0", lambda h: frame(RST, 0, 0, u32(8)), PROTOCOL),
    ("6.4 RST_STREAM of the wrong size", lambda h: post(h) + frame(RST, 0, 1, b"abc"), SIZE),
    ("6.5 SETTINGS ACK with payload", lambda h: frame(SETTINGS, ACK, 0, b"123456"), SIZE),
    ("6.5 SETTINGS on a stream", lambda h: frame(SETTINGS, 0, 1), PROTOCOL),
    ("6.5 SETTINGS of a size that is no multiple of six", lambda h: frame(SETTINGS, 0, 0, b"123"), SIZE),
    ("6.5.2 ENABLE_PUSH of 2", lambda h: settings((2, 2)), PROTOCOL),
    ("6.5.2 INITIAL_WINDOW_SIZE above the maximum", lambda h: settings((4, 1 << 31)), FLOW),
    ("6.5.2 MAX_FRAME_SIZE below the minimum", lambda h: settings((5, 16383)), PROTOCOL),
    ("6.5.2 MAX_FRAME_SIZE above the maximum", lambda h: settings((5, 1 << 24)), PROTOCOL),
    ("RFC 8441: ENABLE_CONNECT_PROTOCOL of 2", lambda h: settings((8, 2)), PROTOCOL),
    ("6.6 PUSH_PROMISE from a client", lambda h: frame(PUSH, 4, 1, u32(2) + b"\x82"), PROTOCOL),
    ("6.7 PING on a stream", lambda h: frame(PING, 0, 1, bytes(8)), PROTOCOL),
    ("6.7 PING of the wrong size", lambda h: frame(PING, 0, 0, bytes(6)), SIZE),
    ("6.8 GOAWAY on a stream", lambda h: frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    ("6.8 GOAWAY that is too short", lambda h: frame(GOAWAY, 0, 0, bytes(7)), SIZE),
    ("6.9 WINDOW_UPDATE of 0 on the connection", lambda h: frame(WINDOW, 0, 0, u32(0)), PROTOCOL),
    ("6.9 WINDOW_UPDATE of the wrong size", lambda h: frame(WINDOW, 0, 0, b"abc"), SIZE),
    ("6.9.1 a connection window beyond the maximum", lambda h: frame(WINDOW, 0, 0, u32((1 << 31) - 1)), FLOW),
    ("6.9.2 SETTINGS that widen a window beyond it", lambda h: post(h) + frame(WINDOW, 0, 1, u32((1 << 31) - 1 - 65535)) + settings((4, 65536)), FLOW),
    ("6.10 CONTINUATION behind END_HEADERS", lambda h: post(h) + frame(CONTINUATION, 4, 1, b"\x82"), PROTOCOL),
    ("6.10 CONTINUATION on stream 0", lambda h: frame(HEADERS, 1, 1, b"\x82") + frame(CONTINUATION, 4, 0, b""), PROTOCOL),
    ("6.10 CONTINUATION on another stream", lambda h: frame(HEADERS, 1, 1, b"\x82") + frame(CONTINUATION, 4, 3, b""), PROTOCOL),
    ("6.10 CONTINUATION behind DATA", lambda h: post(h) + frame(DATA, 1, 1, b"x") + frame(CONTINUATION, 4, 1, b""), PROTOCOL),
    ("7541 2.3.3 index 0", lambda h: frame(HEADERS, 5, 1, b"\x80"), COMPRESSION),
    ("7541 4.2 a size update behind a field", lambda h: frame(HEADERS, 5, 1, b"\x82\x84\x86\x41\x01a\x20"), COMPRESSION),
    ("7541 5.2 Huffman padding of more than seven bits", lambda h: frame(HEADERS, 5, 1, b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"), COMPRESSION),
    ("7541 5.2 Huffman padding of zeros", lambda h: frame(HEADERS, 5, 1, b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"), COMPRESSION),
    ("7541 5.2 Huffman with EOS", lambda h: frame(HEADERS, 5, 1, b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f"), COMPRESSION),
    ("7541 6.3 a table larger than agreed", lambda h: frame(HEADERS, 5, 1, b"\x3f\xff\xff\x03\x82"), COMPRESSION),
]

STREAM = [
    ("5.1 half-closed: DATA", lambda h: get(h) + frame(DATA, 1, 1, b"x"), CLOSED),
    ("5.1 half-closed: HEADERS", lambda h: get(h) + get(h), CLOSED),
    ("5.3.1 HEADERS that depend on themselves", lambda h: frame(HEADERS, 5 | WITH_PRIORITY, 1, u32(1) + b"\x10" + h.encoder.encode(get_fields())), PROTOCOL),
    ("5.3.1 PRIORITY that depends on itself", lambda h: post(h) + frame(PRIORITY, 0, 1, u32(1) + b"\x10"), PROTOCOL),
    ("6.3 PRIORITY of the wrong size", lambda h: post(h) + frame(PRIORITY, 0, 1, bytes(4)), SIZE),
    ("8.3.1 :path that is no path", lambda h: h.headers(1, get_fields(path="no-slash")), PROTOCOL),
    ("8.3.1 :path in absolute form", lambda h: h.headers(1, get_fields(path="http://a.example/")), PROTOCOL),
    ("8.3.1 :path of * without OPTIONS", lambda h: h.headers(1, get_fields(path="*")), PROTOCOL),
    ("6.9 WINDOW_UPDATE of 0", lambda h: post(h) + frame(WINDOW, 0, 1, u32(0)), PROTOCOL),
    ("6.9.1 a stream window beyond the maximum", lambda h: post(h) + frame(WINDOW, 0, 1, u32((1 << 31) - 1)), FLOW),
    ("8.1 trailers that do not end the stream", lambda h: post(h) + h.headers(1, [("x", "y")], end=False), PROTOCOL),
    ("8.1 pseudo-fields in trailers", lambda h: post(h) + h.headers(1, [(":method", "GET")]), PROTOCOL),
    ("8.1.2 upper case in a name", lambda h: get(h, more=[("X-Test", "y")]), PROTOCOL),
    ("8.1.2.1 an unknown pseudo-field", lambda h: get(h, more=[(":test", "y")]), PROTOCOL),
    ("8.1.2.1 a pseudo-field of responses", lambda h: get(h, fields=[*get_fields(), (":status", "200")]), PROTOCOL),
    ("8.1.2.1 a pseudo-field behind a field", lambda h: get(h, fields=[*without(":path"), ("x", "y"), (":path", "/")]), PROTOCOL),
    ("8.1.2.2 connection", lambda h: get(h, more=[("connection", "keep-alive")]), PROTOCOL),
    ("8.1.2.2 te other than trailers", lambda h: get(h, more=[("te", "trailers, deflate")]), PROTOCOL),
    ("8.1.2.2 transfer-encoding", lambda h: post(h, more=[("transfer-encoding", "chunked")]), PROTOCOL),
    ("8.1.2.2 upgrade", lambda h: get(h, more=[("upgrade", "h2c")]), PROTOCOL),
    ("8.1.2.3 an empty :path", lambda h: get(h, fields=[*without(":path"), (":path", "")]), PROTOCOL),
    ("8.1.2.3 no :method", lambda h: get(h, fields=without(":method")), PROTOCOL),
    ("8.1.2.3 no :scheme", lambda h: get(h, fields=without(":scheme")), PROTOCOL),
    ("8.1.2.3 no :path", lambda h: get(h, fields=without(":path")), PROTOCOL),
    ("8.1.2.3 no authority at all", lambda h: get(h, fields=without(":authority")), PROTOCOL),
    ("8.1.2.3 :method twice", lambda h: get(h, fields=[*get_fields(), (":method", "GET")]), PROTOCOL),
    ("8.1.2.3 :path twice", lambda h: get(h, fields=[*get_fields(), (":path", "/")]), PROTOCOL),
    ("8.1.2.6 less DATA than content-length", lambda h: post(h, more=[("content-length", "2")]) + frame(DATA, 1, 1, b"x"), PROTOCOL),
    ("8.1.2.6 more DATA than content-length", lambda h: post(h, more=[("content-length", "1")]) + frame(DATA, 0, 1, b"xy"), PROTOCOL),
    ("8.1.2.6 in several frames", lambda h: post(h, more=[("content-length", "1")]) + frame(DATA, 0, 1, b"x") + frame(DATA, 1, 1, b"y"), PROTOCOL),
    ("8.1.2.6 a length without DATA", lambda h: get(h, more=[("content-length", "1")]), PROTOCOL),
    ("smuggling: CR LF in a value", lambda h: get(h, more=[("x", "a\r\nb: c")]), PROTOCOL),
    ("smuggling: LF in a value", lambda h: get(h, more=[("x", "a\nb: c")]), PROTOCOL),
    ("smuggling: NUL in a value", lambda h: get(h, more=[("x", "a\0")]), PROTOCOL),
    ("smuggling: a colon in a name", lambda h: get(h, more=[("x: y\r\nz", "a")]), PROTOCOL),
    ("smuggling: a request line in :path", lambda h: get(h, fields=get_fields(path="/ HTTP/1.1\r\nx: y\r\n\r\n")), PROTOCOL),
    ("smuggling: a blank in :path", lambda h: get(h, fields=get_fields(path="/a b")), PROTOCOL),
    ("smuggling: a blank in :method", lambda h: get(h, fields=get_fields(method="GET / HTTP/1.1")), PROTOCOL),
    ("smuggling: CR LF in :authority", lambda h: get(h, fields=get_fields(authority="a\r\nx: y")), PROTOCOL),
    ("smuggling: a list in :authority", lambda h: get(h, fields=get_fields(authority="a,b")), PROTOCOL),
    ("smuggling: user information in :authority", lambda h: get(h, fields=get_fields(authority="u@a")), PROTOCOL),
    ("smuggling: host and :authority differ", lambda h: get(h, more=[("host", "b.example")]), PROTOCOL),
    ("smuggling: two content-length", lambda h: post(h, more=[("content-length", "1"), ("content-length", "1")]), PROTOCOL),
    ("smuggling: a signed content-length", lambda h: post(h, more=[("content-length", "+1")]), PROTOCOL),
    ("smuggling: a value that begins with a blank", lambda h: get(h, more=[("x", " y")]), PROTOCOL),
    ("RFC 8441: :protocol without CONNECT", lambda h: get(h, fields=[*get_fields(), (":protocol", "websocket")]), PROTOCOL),
]

GOES_ON = [
    ("3.4 nothing but the preface", lambda h: b""),
    ("4.1 an unknown frame type", lambda h: frame(0x16, 0, 0, b"x")),
    ("4.1 unknown flags", lambda h: frame(PING, 0xFE, 0, bytes(8))),
    ("4.1 the reserved bit", lambda h: frame(PING, 0, 1 << 31, bytes(8))),
    ("5.1 a WINDOW_UPDATE on a closed stream", lambda h: get(h) + frame(RST, 0, 1, u32(8)) + frame(WINDOW, 0, 1, u32(5))),
    ("5.1 an RST_STREAM on a closed stream", lambda h: get(h) + frame(RST, 0, 1, u32(8)) * 2),
    ("5.1 PRIORITY on an idle stream", lambda h: frame(PRIORITY, 0, 101, bytes(4) + b"\x10")),
    ("6.5.3 an unknown setting", lambda h: settings((0xFF, 1))),
    ("6.5.3 many settings in one frame, the last counts", lambda h: settings((4, 100), (4, 65535))),
    ("6.7 an unasked PING ACK", lambda h: frame(PING, ACK, 0, b"whatever")),
    ("6.9.2 a window that shrinks below zero", lambda h: settings((4, 0)) + settings((4, 65535))),
    ("6.10 a field block in many frames", lambda h: split(h)),
    ("7541 4.2 a size update at the start", lambda h: frame(HEADERS, 5, 1, b"\x20\x3f\xe1\x1f" + h.encoder.encode(get_fields()))),
    ("GOAWAY of the client's", lambda h: frame(GOAWAY, 0, 0, bytes(8))),
    ("8.1 padded HEADERS with priority", lambda h: padded(h)),
]


def split(h2):
    block = h2.encoder.encode(get_fields())
    return (
        frame(HEADERS, END_STREAM, 1, block[:1])
        + frame(CONTINUATION, 0, 1, block[1:2])
        + frame(CONTINUATION, END_HEADERS, 1, block[2:])
    )


def padded(h2):
    block = h2.encoder.encode(get_fields())
    flags = END_STREAM | END_HEADERS | PADDED | WITH_PRIORITY
    return frame(HEADERS, flags, 1, b"\x03" + u32(0) + b"\x10" + block + bytes(3))


def ids(cases):
    return [case[0] for case in cases]


@pytest.mark.parametrize("what,build,code", CONNECTION, ids=ids(CONNECTION))
def test_connection_errors(proxy, what, build, code):
    with H2(proxy.address) as h2:
        h2.send(build(h2))
        h2.until_closed(5)
        assert h2.goaway is not None and h2.goaway[1] == code, h2


@pytest.mark.parametrize("what,build,code", STREAM, ids=ids(STREAM))
def test_stream_errors(proxy, what, build, code):
    before = proxy.metric("ringgate_http2_stream_errors_total")
    with H2(proxy.address) as h2:
        h2.send(build(h2))
        h2.until(lambda: h2.stream(1).reset is not None, "RST_STREAM", 5)
        assert h2.stream(1).reset == code, h2
        h2.get(3)
        assert h2.reply(3).status == 200, "the connection goes on"
        assert h2.goaway is None
    proxy.await_equal("ringgate_http2_stream_errors_total", before + 1)


@pytest.mark.parametrize("what,build", GOES_ON, ids=ids(GOES_ON))
def test_what_goes_on(proxy, what, build):
    with H2(proxy.address) as h2:
        h2.send(build(h2))
        h2.get(33)
        reply = h2.reply(33)
        assert (reply.status, reply.body) == (200, b"ok") and h2.goaway is None


def test_the_handshake(proxy):
    with H2(proxy.address) as h2:
        h2.until(lambda: h2.settings and h2.acked, "SETTINGS and ACK")
        assert h2.frames[0][0] == SETTINGS, "SETTINGS come first"
        assert h2.settings[3] == 128 and h2.settings[8] == 1 and h2.settings[6] == 32768
        h2.ping()


@pytest.mark.parametrize("first", [PREFACE[:10] + b"X" * 14, PREFACE + b"\0" * 9, PREFACE + frame(PING, 0, 0, bytes(8))])
def test_bad_prefaces(proxy, first):
    with H2(proxy.address, begin=False) as h2:
        h2.send(first)
        h2.until_closed(5)
        assert h2.goaway[1] == PROTOCOL


def test_a_preface_byte_by_byte(proxy):
    with H2(proxy.address, begin=False) as h2:
        for byte in PREFACE + settings() + h2.headers(1, get_fields()):
            h2.send(bytes([byte]))
        assert h2.reply(1).status == 200


def test_an_initial_window_of_one_byte(proxy):
    # 6.5.3 and 6.9.1
    with H2(proxy.address, config=[(4, 1)]) as h2:
        h2.get(1)
        h2.until(lambda: h2.stream(1).body, "the first byte")
        h2.ping()
        assert h2.stream(1).body == b"o" and not h2.stream(1).ended
        h2.window(1, 1)
        assert h2.reply(1).body == b"ok"


def test_a_window_opened_by_settings(proxy):
    # 6.9.2: the window of an open stream follows SETTINGS, below zero if need be
    with H2(proxy.address, config=[(4, 0)]) as h2:
        h2.get(1)
        h2.until(lambda: h2.stream(1).heads, "the head")
        h2.ping()
        assert h2.stream(1).body == b""
        h2.send(settings((4, 1)))
        h2.until(lambda: h2.stream(1).body == b"o", "a byte")
        h2.send(settings((4, 0)))
        h2.window(1, 1)
        h2.ping()
        assert h2.stream(1).body == b"o", "the window is 0 again"
        h2.window(1, 1)
        assert h2.reply(1).body == b"ok"


def test_streams_over_the_limit(start, serve):
    # 5.1.2
    origin = serve(lambda connection: (connection.read_request(), connection.stall(20)))
    config = {**one(origin, http={"http2_max_concurrent_streams": 2}), "listener": LISTENER}
    proxy = start(config)
    with H2(proxy.address) as h2:
        for stream in (1, 3, 5):
            h2.get(stream)
        h2.until(lambda: h2.stream(5).reset is not None, "a refusal")
        assert h2.stream(5).reset == REFUSED
        assert h2.stream(1).reset is None and h2.stream(3).reset is None


def test_a_stream_id_that_goes_back(proxy):
    # 5.1.1: a lower id than the last is not new
    with H2(proxy.address) as h2:
        h2.get(5)
        assert h2.reply(5).status == 200
        h2.get(3)
        h2.until_closed(5)
        assert h2.goaway[1] in (PROTOCOL, CLOSED)


def test_data_on_a_closed_stream(proxy):
    # 5.1 closed
    with H2(proxy.address) as h2:
        h2.get(1)
        assert h2.reply(1).status == 200
        h2.data(1, b"x")
        h2.until_closed(5)
        assert h2.goaway[1] == CLOSED


def test_flow_control_is_enforced(proxy):
    with H2(proxy.address) as h2:
        h2.send(h2.headers(1, [*get_fields(method="POST"), ("expect", "100-continue")], end=False))
        h2.until(lambda: h2.settings, "SETTINGS")
        sent = 0
        while sent <= 2 << 20 and h2.try_send(frame(DATA, 0, 1, bytes(16384))):
            sent += 16384
        h2.until(lambda: h2.goaway or h2.stream(1).reset is not None or h2.stream(1).heads, "an end", 10)


@pytest.mark.parametrize("fields,status", [
    (get_fields(authority="a..b"), 400),
    (get_fields(path="/%2f"), 400),
    ([(":method", "CONNECT"), (":authority", "a.example:443")], 405),
    (get_fields(method="OPTIONS", path="*"), 200),
    ([*get_fields(), ("expect", "something")], 417),
    ([*without(":authority"), ("host", "a.example")], 200),
])
def test_answers_to_odd_requests(proxy, fields, status):
    with H2(proxy.address) as h2:
        h2.send(h2.headers(1, fields))
        assert h2.reply(1).status == status
