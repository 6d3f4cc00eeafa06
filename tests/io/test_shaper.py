"""The shaping proxy of the benchmarks: what goes through it comes out as it was."""

import contextlib
import hashlib
import socket
import threading

import pytest

from benchmarks.shaped import calibrated, shaped_line
from benchmarks.shaper import LOOPBACK, Line, bandwidth, duration_s

MEBI = 1 << 20
FAST = Line(0.002, 400e6)
LINES = (Line(), FAST, Line(0.0, 200e6), Line(0.01, None))


@pytest.fixture
def listener():
    with socket.create_server((LOOPBACK, 0)) as listening:
        listening.settimeout(30)
        yield listening


def both_ends(listener, host):
    address, _, port = host.partition(":")
    client = socket.create_connection((address, int(port)), timeout=30)
    server, _ = listener.accept()
    server.settimeout(30)
    return client, server


def name_of(listener):
    return f"{LOOPBACK}:{listener.getsockname()[1]}"


def read_all(end):
    return b"".join(iter(lambda: end.recv(MEBI), b""))


def send_for_ever(end):
    while True:
        end.sendall(bytes(MEBI))


@pytest.mark.parametrize("line", LINES)
def test_bytes_come_as_they_went_in_both_directions(listener, line):
    up, down = (hashlib.shake_128(name).digest(3 * MEBI) for name in (b"up", b"down"))
    with shaped_line(line, name_of(listener)) as shaped:
        client, server = both_ends(listener, shaped.host)
        with client, server:
            received = []
            for end, data in ((client, up), (server, down)):

                def send(end=end, data=data):
                    end.sendall(data)
                    end.shutdown(socket.SHUT_WR)

                threading.Thread(target=send).start()
            reader = threading.Thread(target=lambda: received.append(read_all(server)))
            reader.start()
            assert read_all(client) == down
            reader.join()
            assert received == [up]
            counts = shaped.counts()
    assert (counts.up_bytes, counts.down_bytes) == (len(up), len(down))
    assert counts.connections == 1


def test_a_closed_direction_leaves_the_other_open(listener):
    with shaped_line(FAST, name_of(listener)) as shaped:
        client, server = both_ends(listener, shaped.host)
        with client, server:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == b"question"
            server.sendall(b"answer")
            server.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"answer"


def test_a_client_that_does_not_read_stops_the_server_and_nobody_else(listener):
    """More than all buffers hold cannot be sent; another connection has the line to itself."""
    with shaped_line(FAST, name_of(listener)) as shaped:
        client, server = both_ends(listener, shaped.host)
        with client, server:
            server.settimeout(1)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 200 * MEBI:
                    sent += server.send(bytes(MEBI))
            assert sent < 200 * MEBI
            held = shaped.counts().down_bytes
            assert held < 50 * MEBI
            second_client, second_server = both_ends(listener, shaped.host)
            with second_client, second_server:
                second_server.sendall(b"through")
                assert second_client.recv(7) == b"through"
            left = sent
            while left:
                left -= len(client.recv(min(left, MEBI)))
            assert shaped.counts().down_bytes == sent + len(b"through")


def test_an_end_that_goes_takes_the_other_along(listener):
    with shaped_line(FAST, name_of(listener)) as shaped:
        client, server = both_ends(listener, shaped.host)
        with server:
            client.close()
            assert server.recv(1) == b""
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                send_for_ever(server)
        client, server = both_ends(listener, shaped.host)  # and others are served still
        with client, server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"


def test_request_lines_are_counted_wherever_pieces_end(listener):
    with shaped_line(FAST, name_of(listener)) as shaped:
        client, server = both_ends(listener, shaped.host)
        with client, server:
            for part in (b"GET /a HTTP/1.1\r\n\r\nGET /b HT", b"TP/1.1\r", b"\n\r\n"):
                client.sendall(part)
                assert server.recv(100)
            assert shaped.counts().requests == 2


def test_a_line_is_no_better_than_was_asked_for():
    found = calibrated(Line(0.02, 20e6))
    assert found.rtt_s >= 0.02
    assert found.set_up_s >= 0.04
    assert found.bits_per_s < 25e6


def test_words_for_lines():
    assert (duration_s("0.5ms"), duration_s("2s"), duration_s("500us")) == (0.0005, 2, 0.0005)
    assert (bandwidth("100Mbit"), bandwidth("1Gbit"), bandwidth("500bit")) == (1e8, 1e9, 500)
