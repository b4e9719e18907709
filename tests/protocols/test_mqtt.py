"""examples/protocols/mqtt, with paho-mqtt, mosquitto's clients, and bytes of our own."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, eventually
from mqtt_protocol import MQTT_SPEC
from mqtt_protocol import broker as broker_module
from mqtt_protocol.broker import Broker
from mqtt_protocol.packets import Publish
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from protocol_packages import program, serving

from protoserve import WFServer
from protoserve.events import CloseReason, ConnectionClosed


@pytest.fixture(params=["threads", "loop"])
def server(request: pytest.FixtureRequest) -> Iterator[WFServer[Any, Any]]:
    with serving(MQTT_SPEC, Broker(), request.param) as server:
        yield server


class Paho:
    """A client that has connected, and what it hears."""

    def __init__(self, server: WFServer[Any, Any], name: str, **options: Any) -> None:
        will = options.pop("will", None)
        keepalive = options.pop("keepalive", 60)
        self.client = paho.Client(CallbackAPIVersion.VERSION2, name, **options)
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.acknowledged: queue.Queue[Any] = queue.Queue()
        self.client.on_message = lambda _, __, message: self.messages.put(message)
        self.client.on_subscribe = lambda *args: self.acknowledged.put(args[3])
        self.client.on_unsubscribe = lambda *args: self.acknowledged.put(args[3])
        connected: queue.Queue[Any] = queue.Queue()
        self.client.on_connect = lambda *args: connected.put(args[2])
        if will is not None:
            self.client.will_set(*will)
        host, port = server.address[:2]
        self.client.connect(host, port, keepalive)
        self.client.loop_start()
        self.flags = connected.get(timeout=PATIENCE)

    def subscribe(self, *filters: tuple[str, int]) -> list[int]:
        """The codes of the reply."""
        self.client.subscribe(list(filters))
        return [code.value for code in self.acknowledged.get(timeout=PATIENCE)]

    def unsubscribe(self, pattern: str) -> None:
        self.client.unsubscribe(pattern)
        self.acknowledged.get(timeout=PATIENCE)

    def publish(self, topic: str, payload: bytes, qos: int = 0, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos, retain).wait_for_publish(PATIENCE)

    def heard(self, count: int) -> list[tuple[str, bytes, int, bool]]:
        """The next so many messages: topic, payload, QoS, and whether it was retained."""
        found = [self.messages.get(timeout=PATIENCE) for _ in range(count)]
        return [(m.topic, m.payload, m.qos, bool(m.retain)) for m in found]

    def vanish(self) -> None:
        """Go without DISCONNECT."""
        sock = self.client.socket()
        assert sock is not None
        self.client.on_socket_close = None
        self.client.reconnect_delay_set(60, 60)
        sock.shutdown(2)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.client._reset_sockets()


@pytest.fixture
def connect(server: WFServer[Any, Any]) -> Iterator[Any]:
    with ExitStack() as stack:

        def connected(name: str = "", **options: Any) -> Paho:
            client = Paho(server, name, **options)
            stack.callback(client.close)
            return client

        yield connected


def test_publish_and_subscribe(connect: Any) -> None:
    one, other = connect("one"), connect("other")
    assert one.subscribe(("a/+", 0), ("b/#", 1), ("c", 2)) == [0, 1, 1]
    for topic in ("a/1", "a", "a/1/2", "b", "b/1/2", "c", "$c"):
        for qos in (0, 1):
            other.publish(topic, b"%d" % qos, qos)
    expected = [("a/1", 0), ("b", 1), ("b/1/2", 1), ("c", 1)]
    assert one.heard(8) == [
        (topic, b"%d" % qos, min(qos, most), False) for topic, most in expected for qos in (0, 1)
    ]
    one.unsubscribe("b/#")
    other.publish("b", b"x", 1)
    other.publish("c", b"y" * 500_000, 1)
    assert one.heard(1) == [("c", b"y" * 500_000, 1, False)]
    assert one.messages.empty()


def test_filters_that_overlap_give_a_message_once(connect: Any) -> None:
    one = connect("one")
    one.subscribe(("a/#", 0), ("a/b", 1), ("+/b", 0))
    one.publish("a/b", b"x", 1)
    one.publish("a/c", b"y", 1)
    assert one.heard(2) == [("a/b", b"x", 1, False), ("a/c", b"y", 0, False)]


def test_retained(connect: Any) -> None:
    one = connect("one")
    one.subscribe(("a/#", 1))
    for topic, qos in (("a/1", 0), ("a/2", 1), ("a/3", 1)):
        one.publish(topic, b"old", qos, retain=True)
        one.publish(topic, b"new", qos, retain=True)
    one.publish("a/3", b"", 1, retain=True)
    assert [message[3] for message in one.heard(7)] == [False] * 7
    other = connect("other")
    other.subscribe(("a/+", 1))
    assert sorted(other.heard(2)) == [("a/1", b"new", 0, True), ("a/2", b"new", 1, True)]
    other.subscribe(("a/2", 0))  # again, and they come again
    assert other.heard(1) == [("a/2", b"new", 0, True)]
    assert other.messages.empty()


def test_a_will(connect: Any) -> None:
    one = connect("one")
    one.subscribe(("wills/#", 1))
    connect("in order", will=("wills/1", b"not said", 1, False)).close()
    connect("gone", will=("wills/2", b"bye", 1, True)).vanish()
    assert one.heard(1) == [("wills/2", b"bye", 1, False)]
    other = connect("other")
    other.subscribe(("wills/#", 1))
    assert other.heard(1) == [("wills/2", b"bye", 1, True)]
    assert one.messages.empty()


def test_a_kept_session(connect: Any) -> None:
    away = connect("away", clean_session=False)
    assert not away.flags.session_present
    away.subscribe(("a", 1), ("b", 0))
    away.close()
    other = connect("other")
    for number in range(100):
        other.publish("a", b"%d" % number, 1)
    other.publish("b", b"missed", 0)
    back = connect("away", clean_session=False)
    assert back.flags.session_present
    assert back.heard(100) == [("a", b"%d" % number, 1, False) for number in range(100)]
    other.publish("b", b"heard", 0)
    assert back.heard(1) == [("b", b"heard", 0, False)]
    back.close()
    assert not connect("away", clean_session=True).flags.session_present


def test_many_at_once(connect: Any) -> None:
    listener = connect("listener")
    listener.subscribe(("n/+", 1))
    clients = [connect(f"c{number}") for number in range(4)]

    def publish(number: int) -> None:
        sent = [clients[number].client.publish(f"n/{number}", b"%d" % n, 1) for n in range(100)]
        for info in sent:
            info.wait_for_publish(PATIENCE)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    heard = listener.heard(400)
    for thread in threads:
        thread.join(PATIENCE)
    for number in range(4):  # in order, of each
        assert [p for topic, p, *_ in heard if topic == f"n/{number}"] == [
            b"%d" % n for n in range(100)
        ]


# -- bytes of our own ----------------------------------------------------------------------


def connection(name: bytes, *, clean: bool = True, keep_alive: int = 60) -> bytes:
    body = b"\0\4MQTT\4" + bytes([clean << 1]) + keep_alive.to_bytes(2, "big")
    body += len(name).to_bytes(2, "big") + name
    return bytes([0x10, len(body)]) + body


def subscription(topic: bytes, qos: int) -> bytes:
    body = b"\0\1" + len(topic).to_bytes(2, "big") + topic + bytes([qos])
    return bytes([0x82, len(body)]) + body


@contextmanager
def raw(server: WFServer[Any, Any], data: bytes, *replies: bytes) -> Iterator[RawClient]:
    """A client that sent this, and got these replies."""
    with RawClient(server.address) as client:
        client.send(data)
        for reply in replies:
            assert client._file.read(len(reply)) == reply
        yield client


ACCEPTED = b"\x20\2\0\0"
PRESENT = b"\x20\2\1\0"


@pytest.mark.parametrize("bytewise", [False, True])
def test_on_the_wire(server: WFServer[Any, Any], bytewise: bool) -> None:
    message = Publish("a", b"x", 1, packet_id=1).encode()
    asked = connection(b"a") + subscription(b"a", 1) + message + b"\x40\2\0\1\xc0\0"
    asked += b"\xa2\5\0\2\0\1a" + message + b"\xe0\0"
    replies = ACCEPTED + b"\x90\3\0\1\1" + message + b"\x40\2\0\1\xd0\0\xb0\2\0\2\x40\2\0\1"
    with RawClient(server.address) as client:
        if bytewise:
            client.send_bytewise(asked)
        else:
            client.send(asked)
        assert client.rest() == replies


def test_what_was_not_acknowledged_comes_again(server: WFServer[Any, Any]) -> None:
    hello = connection(b"a", clean=False)
    sent = [Publish("a", b"%d" % n, 1, packet_id=n) for n in range(1, 31)]
    with raw(server, hello + subscription(b"a", 1), ACCEPTED, b"\x90\3\0\1\1") as client:
        for number in range(1, 31):
            client.send(Publish("a", b"%d" % number, 1, packet_id=number).encode())
        got = b""
        window = b"".join(message.encode() for message in sent[:20])
        while len(got) < len(window) + 30 * 4:
            got += client._file.read1(65536)
        for number in range(1, 31):
            got = got.replace(b"\x40\2" + number.to_bytes(2, "big"), b"")
        assert got == window
        # Each acknowledgement makes room for one more.
        client.send(b"\x40\2\0\1\x40\2\0\2")
        more = b"".join(message.encode() for message in sent[20:22])
        assert client._file.read(len(more)) == more
    # Another connection of the same client: the old one has gone, or gives way.
    again = b"".join(
        Publish("a", b"%d" % n, 1, packet_id=n, dup=True).encode() for n in range(3, 23)
    )
    with raw(server, hello, PRESENT, again) as client:
        client.send(b"".join(b"\x40\2" + n.to_bytes(2, "big") for n in range(3, 23)))
        rest = b"".join(message.encode() for message in sent[22:])
        assert client._file.read(len(rest)) == rest


def test_the_same_client_again(server: WFServer[Any, Any]) -> None:
    will = b"\x10\x13\0\4MQTT\4\6\0\x3c\0\1a\0\1w\0\1x"
    with (
        raw(server, connection(b"b") + subscription(b"w", 0), ACCEPTED, b"\x90\3\0\1\0") as other,
        raw(server, will, ACCEPTED) as old,
        raw(server, connection(b"a"), ACCEPTED) as new,
    ):
        assert old._file.read() == b""
        assert other._file.read(6) == Publish("w", b"x").encode()
        new.send(b"\xc0\0")
        assert new._file.read(2) == b"\xd0\0"
        # Those without a name are others each.
        nameless = connection(b"")
        with raw(server, nameless, ACCEPTED) as one, raw(server, nameless, ACCEPTED) as two:
            for client in (one, two):
                client.send(b"\xc0\0")
                assert client._file.read(2) == b"\xd0\0"


def test_a_connection_that_is_refused(server: WFServer[Any, Any]) -> None:
    with raw(server, connection(b"", clean=False) + b"\xc0\0") as client:
        assert client.rest() == b"\x20\2\0\2"
    with raw(server, connection(b"a").replace(b"MQTT\4", b"MQTT\5")) as client:
        assert client.rest() == b"\x20\2\0\1"
    with raw(server, b"GET / HTTP/1.1\r\n\r\n") as client:
        assert client.rest() == b""
    with raw(server, connection(b"a") + Publish("a", b"", 2, packet_id=1).encode()) as client:
        assert client.rest() == ACCEPTED


def test_silence(server: WFServer[Any, Any]) -> None:
    reasons: queue.Queue[CloseReason] = queue.Queue()
    server.subscribe(
        lambda event: reasons.put(event.reason) if isinstance(event, ConnectionClosed) else None
    )
    watcher = connection(b"w", keep_alive=0) + subscription(b"w", 0)
    will = b"\x10\x13\0\4MQTT\4\6\0\1\0\1a\0\1w\0\1x"
    with (
        raw(server, watcher, ACCEPTED, b"\x90\3\0\1\0") as other,
        raw(server, connection(b"b", keep_alive=60), ACCEPTED) as patient,
    ):
        limits = {c.peername: c.keep_alive_limit for c in server.connections()}
        assert limits == {other.name: None, patient.name: 90}
        begun = time.monotonic()
        with raw(server, will, ACCEPTED) as client:
            assert client.rest() == b""
        assert time.monotonic() - begun > 1.4
        assert reasons.get(timeout=PATIENCE) is CloseReason.IDLE
        # It did not go in order; and one without a limit is still there.
        assert other._file.read(6) == Publish("w", b"x").encode()


def test_who_does_not_keep_up_misses_what_may_be_missed() -> None:
    params = MQTT_SPEC.params.replace(unsent_limit=64 * 1024, peer_response_timeout=60)
    hello = connection(b"slow") + subscription(b"a", 1)
    with (
        serving(MQTT_SPEC, Broker(), "threads", params) as server,
        RawClient(server.address, receive_buffer=4096) as slow,
        raw(server, connection(b"fast"), ACCEPTED) as fast,
    ):
        slow.send(hello)
        assert slow._file.read(9) == ACCEPTED + b"\x90\3\0\1\1"
        (connected,) = [c for c in server.connections() if c.peername == slow.name]
        most = 0
        for _ in range(400):
            fast.send(Publish("a", bytes(50_000)).encode() + b"\xc0\0")
            assert fast._file.read(2) == b"\xd0\0"
            most = max(most, connected.pending)
        assert 64 * 1024 <= most < 64 * 1024 + 50_100
        fast.send(Publish("a", b"must arrive", 1, packet_id=9).encode())
        assert fast._file.read(4) == b"\x40\2\0\x09"
        last = Publish("a", b"must arrive", 1, packet_id=1).encode()
        got = bytearray()
        while not got.endswith(last):
            got += slow._file.read1(1 << 20)


def test_what_is_kept_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "WAITING_LIMIT", 3)
    monkeypatch.setattr(broker_module, "FILTER_LIMIT", 2)
    monkeypatch.setattr(broker_module, "ABSENT_LIMIT", 2)
    monkeypatch.setattr(broker_module, "RETAINED_LIMIT", 10)
    with serving(MQTT_SPEC, Broker(), "threads") as server:
        for name in (b"1", b"2", b"3"):
            hello = connection(name, clean=False) + b"".join(
                subscription(topic, 1) for topic in (b"a", b"b", b"c")
            )
            codes = b"\x90\3\0\1\1\x90\3\0\1\1\x90\3\0\1\x80"
            with raw(server, hello + b"\xe0\0", ACCEPTED, codes) as client:
                assert client.rest() == b""
            eventually(lambda: server.conn_count == 0)
        publishes = [Publish("a", b"%d" % n, 1, packet_id=n + 1) for n in range(5)]
        with raw(server, connection(b"p"), ACCEPTED) as client:
            for publish in publishes:
                client.send(publish.encode())
                assert client._file.read(4) == b"\x40\2" + publish.packet_id.to_bytes(2, "big")
            client.send(Publish("r", b"fits", 0, True).encode())
            client.send(Publish("s", b"not this", 0, True).encode() + b"\xc0\0")
            assert client._file.read(2) == b"\xd0\0"
        waiting = b"".join(publish.encode() for publish in publishes[:3])
        for name, replies in ((b"1", ACCEPTED), (b"3", PRESENT + waiting)):
            with raw(server, connection(name, clean=False) + b"\xe0\0") as client:
                assert client.rest() == replies
        with raw(server, connection(b"q") + subscription(b"#", 1) + b"\xe0\0") as client:
            retained = Publish("r", b"fits", 0, True).encode()
            assert client.rest() == ACCEPTED + b"\x90\3\0\1\1" + retained


def test_clients_that_leave_in_the_middle(server: WFServer[Any, Any]) -> None:
    message = Publish("a", b"x", 1, packet_id=1).encode()
    asked = connection(b"a") + subscription(b"#", 1) + message + b"\x40\2\0\1\xe0\0"
    for cut in range(len(asked)):
        with RawClient(server.address) as client:
            client.send(asked[:cut])
    eventually(lambda: server.conn_count == 0)
    with raw(server, connection(b"b") + b"\xc0\0", ACCEPTED, b"\xd0\0"):
        pass


# -- mosquitto's clients -------------------------------------------------------------------


def test_mosquitto(server: WFServer[Any, Any]) -> None:
    pub = program("mosquitto_pub", "mosquitto-clients")
    sub = program("mosquitto_sub", "mosquitto-clients")
    host, port = server.address[:2]
    at = ["-h", host, "-p", str(port)]

    def publish(*arguments: str) -> None:
        done = subprocess.run([pub, *at, *arguments], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr

    publish("-q", "1", "-r", "-t", "house/hall/light", "-m", "on")
    listener = subprocess.Popen(
        [sub, *at, "-q", "1", "-v", "-C", "4", "-W", "20", "-t", "house/+/light", "-t", "bye"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "house/hall/light on\n"
            publish("-q", "0", "-t", "house/hall/light", "-m", "off")
            publish("-q", "1", "-t", "house/hall/heat", "-m", "off")
            publish("-q", "1", "-t", "house/door/light", "-m", "on")
            publish("-q", "1", "-t", "bye", "-n")
            rest, _ = listener.communicate(timeout=30)
        finally:
            listener.kill()
    assert rest == "house/hall/light off\nhouse/door/light on\nbye (null)\n"
    assert listener.returncode == 0
