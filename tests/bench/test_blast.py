"""Single packets for layer 4: as many as asked for, of as many flows, well formed."""

import json
import signal
import socket
import struct
import subprocess

import pytest

from harness import eventually, free_port
from harness.process import Process

from .generator import bench

SYN = 0x02
SO_RCVBUFFORCE = 33


@pytest.fixture
def sink(tmp_path):
    """`sink()` starts one on a port of its choice and returns it with the port."""
    started = []

    def begin():
        port = free_port()
        process = Process([bench(), "sink", "--bind", f"127.0.0.1:{port}", "--json"], tmp_path / "sink.log")
        started.append(process)
        eventually(lambda: is_bound(port), 10, "the sink is bound")
        return process, port

    yield begin
    for process in started:
        process.kill()


def is_bound(port):
    """Whether somebody has the UDP port."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
            return False
        except OSError:
            return True


def counted(process):
    """What a sink says when it is asked to end."""
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    return json.loads(process.log())


def blast(*args, code=0):
    done = subprocess.run([str(bench()), "blast", *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=30)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if code in (0, 130) else done.stderr


@pytest.mark.parametrize("threads, size", [(1, 18), (2, 1200)])
def test_udp_packets_go_at_their_rate_and_all_arrive(sink, threads, size):
    process, port = sink()
    sent = blast(f"127.0.0.1:{port}", "--rate", 2000, "--flows", 20, "--size", size, "--threads", threads,
                 "--duration", "1s", "--json")
    # 2,000 in a second, less at most what the last moment held.
    assert 1800 <= sent["sent"] <= 2000
    assert (sent["no_room"], sent["errors"]) == (0, 0)
    seen = counted(process)
    assert (seen["packets"], seen["flows"]) == (sent["sent"], 20)
    assert seen["bytes"] == sent["sent"] * size


@pytest.mark.parametrize("threads, order", [(1, ()), (2, ()), (2, ("--random",))])
def test_made_up_datagrams_are_of_as_many_flows_as_asked(sink, threads, order):
    """26 ports of each of four addresses, without a socket for any of them."""
    process, port = sink()
    sent = blast(f"127.0.0.1:{port}", "--raw", "--rate", 2000, "--flows", 26, "--sources", 4, *order, "--threads", threads,
                 "--duration", "1s", "--json")
    assert sent["sent"] >= 1800 and sent["errors"] == 0
    seen = counted(process)
    assert (seen["packets"], seen["bytes"], seen["flows"]) == (sent["sent"], 18 * sent["sent"], 104)


@pytest.mark.parametrize("threads", [1, 2])
def test_it_ends_after_as_many_packets_as_asked(sink, threads):
    process, port = sink()
    sent = blast(f"127.0.0.1:{port}", "--rate", 5000, "--packets", 501, "--threads", threads, "--duration", "20s", "--json")
    assert sent["sent"] == 501 and sent["seconds"] < 20
    assert counted(process)["packets"] == 501


def captured(port, count, send):
    """The IPv4 packets to a TCP port on loopback that arrive while `send` runs."""
    packets = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)  # it is read only when all are sent
        tap.bind(("lo", 0x0800))
        tap.settimeout(5)
        send()
        while len(packets) < count:
            frame, (_, _, kind, *_) = tap.recvfrom(2048)
            ip = frame[14:]
            if kind == socket.PACKET_HOST and ip[9] == socket.IPPROTO_TCP and ip[22:24] == struct.pack("!H", port):
                packets.append(ip)
    return packets


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def test_syns_are_right_and_come_from_as_many_ports_as_asked():
    port = free_port()
    send = lambda: sent.update(blast(f"127.0.0.1:{port}", "--syn", "--rate", 400, "--flows", 50, "--threads", 1,
                                     "--duration", "2s", "--json"))
    sent = {}
    packets = captured(port, 100, send)  # of 800: a machine that stands still for a second does not matter
    assert sent["sent"] >= 100 and sent["errors"] == 0
    for ip in packets:
        assert (ip[0], len(ip), struct.unpack("!H", ip[2:4])[0]) == (0x45, 44, 44)
        assert checksum(ip[:20]) == 0
        assert ip[33] == SYN
        assert checksum(ip[12:20] + struct.pack("!BBH", 0, 6, 24) + ip[20:]) == 0
    assert len({ip[20:22] for ip in packets}) == 50
    assert len({ip[24:28] for ip in packets}) == len(packets)  # sequence numbers


def test_a_listening_server_answers_the_syns():
    """The kernel takes them for handshakes: SYN-ACKs come back."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as tap:
            tap.bind(("lo", 0x0800))
            tap.settimeout(5)
            blast(f"127.0.0.1:{port}", "--syn", "--rate", 20, "--flows", 5, "--threads", 1, "--duration", "200ms", "--json")
            while True:
                ip = tap.recv(2048)[14:]
                if ip[9] == socket.IPPROTO_TCP and ip[20:22] == struct.pack("!H", port) and ip[33] == 0x12:
                    break


def test_what_cannot_be_sent_is_explained():
    assert "IPv4 only" in blast("[::1]:9", "--syn", code=1)
    nobody = free_port()
    sent = blast(f"127.0.0.1:{nobody}", "--rate", 500, "--flows", 2, "--threads", 1, "--duration", "300ms", "--json")
    assert sent["errors"] > 10  # nobody listens, and the kernel says so
