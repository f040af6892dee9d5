"""Streams of HTTP/2 that nobody reads, with Python's h2 as the client: the stream beside them and other connections go on."""

import h2.config
import h2.connection
import h2.events

from harness import Client, eventually, get, names
from harness.http2 import get_fields
from harness.proxy import one

MIB = 1 << 20
LARGE, WHOLE = 64 * MIB, 3 * MIB
UNREAD = 8
WINDOW = 65_535  # SETTINGS_INITIAL_WINDOW_SIZE unless told otherwise (RFC 9113, section 6.5.2)


class Reader:
    """A client that gives window back for the streams it reads only. `wide`: its connection's window is no limit."""

    def __init__(self, proxy, wide):
        self.client = Client(proxy.address)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        if wide:
            self.h2.increment_flow_control_window(1 << 30)
        self.bodies, self.ended, self.read = {}, set(), set()

    def ask(self, path, read):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, get_fields(path), end_stream=True)
        self.bodies[stream] = 0
        if read:
            self.read.add(stream)
        self.flush()
        return stream

    def flush(self):
        self.client.sock.sendall(self.h2.data_to_send())

    def turn(self):
        """Takes in what comes next."""
        data = self.client.sock.recv(1 << 16)
        assert data, "closed"
        for event in self.h2.receive_data(data):
            assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)), event
            if isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += len(event.data)
                if event.stream_id in self.read and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
        self.flush()

    def until(self, condition):
        self.client.sock.settimeout(30)
        while not condition():
            self.turn()


def answer(connection):
    for request in connection.requests():
        length = LARGE if request.target == "/large" else WHOLE
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        for _ in range(length // (MIB // 16)):
            connection.send(bytes(MIB // 16))


def test_streams_that_nobody_reads(start, serve):
    """On one connection the connection's window is used up, on another those of its streams, beside one that is read."""
    origin = serve(answer)
    origin.timeout = 120
    node = {"shards": 1, "buffer_memory": "16m"}
    proxy = start({**one(origin, http={"send_timeout": "60s"}), "listener": [{"http2": True}], "node": node})
    before = proxy.rss()
    shut, mixed = Reader(proxy, wide=False), Reader(proxy, wide=True)
    with shut.client, mixed.client:
        for _ in range(UNREAD):
            shut.ask("/large", read=False)
        shut.until(lambda: sum(shut.bodies.values()) == WINDOW)
        unread = [mixed.ask("/large", read=False) for _ in range(UNREAD)]
        mixed.until(lambda: all(mixed.bodies[stream] == WINDOW for stream in unread))
        eventually(lambda: origin.open_connections() == 2 * UNREAD, 10, "each has a server's connection")

        # Twice: what a stream before it has left behind stands in nobody's way either.
        for _ in range(2):
            stream = mixed.ask("/whole", read=True)
            mixed.until(lambda: stream in mixed.ended)  # noqa: B023
            assert mixed.bodies[stream] == WHOLE
        other = Reader(proxy, wide=False)
        with other.client:
            stream = other.ask("/whole", read=True)
            other.until(lambda: stream in other.ended)
            assert other.bodies[stream] == WHOLE
        assert len(get(proxy.address, "/whole", timeout=30).body) == WHOLE

        assert all(mixed.bodies[stream] == WINDOW for stream in unread), "no byte beyond the window"
        assert proxy.metric(names.BUFFERS_USED) <= 16 * MIB // 16384
        assert proxy.rss() - before < 32 * MIB, "16 answers of 64 MiB wait at their servers"

        # A stream that is read after all has lost nothing.
        late = unread[0]
        mixed.read.add(late)
        mixed.h2.acknowledge_received_data(WINDOW, late)
        mixed.flush()
        mixed.until(lambda: late in mixed.ended)
        assert mixed.bodies[late] == LARGE
    # Who goes leaves nothing behind.
    eventually(lambda: proxy.metric(names.BUFFERS_USED) == 0, 10, "buffers are given back")
