"""The application: a broker. Who subscribes, what is retained, what is on its way."""

import threading
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from mqtt_protocol import MqttTask
from mqtt_protocol.packets import (
    ACCEPTED,
    PINGRESP,
    REFUSED,
    WRONG_IDENTIFIER,
    Connect,
    Disconnect,
    Pingreq,
    Puback,
    Publish,
    Subscribe,
    Unsubscribe,
    connack,
    puback,
    suback,
    unsuback,
)
from protoserve import CommConnection

__all__ = ["Broker", "matches", "process"]

WINDOW: Final = 20  # as mosquitto has it
"""Messages of QoS 1 that a client may have without acknowledging them."""

WAITING_LIMIT: Final = 1000  # as mosquitto has it
"""Messages of QoS 1 that wait for a client; more are dropped."""

FILTER_LIMIT: Final = 1000
"""Filters of one client; more are refused."""

ABSENT_LIMIT: Final = 1000
"""Sessions of clients that are away; the one that left first is forgotten."""

RETAINED_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of topics and payloads that are retained; more are delivered, and not retained."""


@dataclass(slots=True, eq=False)
class Session:
    """What is kept of a client (3.1.2.4)."""

    clean: bool
    connection: CommConnection | None = None
    """None while the client is away."""
    filters: dict[str, int] = field(default_factory=dict)
    """Each with its QoS."""
    sent: dict[int, Publish] = field(default_factory=dict)
    """Of QoS 1 and not acknowledged, by packet identifier, in order."""
    waiting: deque[Publish] = field(default_factory=deque)
    last_id: int = 0

    def next_id(self) -> int:
        while True:
            self.last_id = self.last_id % 65535 + 1
            if self.last_id not in self.sent:
                return self.last_id


@dataclass(slots=True, eq=False)
class Link:
    """``connection.state`` of a client that has connected."""

    client_id: str
    session: Session
    will: Publish | None


class Broker:
    """A handler: ``WFServer(MQTT_SPEC, Broker())``. On any threads."""

    may_block = False  # the lock is held for moments, and push never waits

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards what follows
        self._sessions: dict[str, Session] = {}
        self._retained: dict[str, Publish] = {}
        self._retained_size = 0
        self._busy = False
        self._gone: deque[CommConnection] = deque()

    def __call__(self, task: MqttTask) -> None:
        connection = task.connection
        match task.req:
            case Connect() as packet:
                self._connect(task, packet)
            case Publish() as packet:
                with self._turn():
                    self._publish(packet)
                if packet.qos:
                    task.resp.packet = puback(packet.packet_id)
            case Puback(packet_id):
                with self._turn():
                    session = connection.state.session
                    session.sent.pop(packet_id, None)
                    self._send_waiting(session)
            case Subscribe() as packet:
                with self._turn():
                    self._subscribe(connection, packet)
            case Unsubscribe(packet_id, filters):
                with self._turn():
                    for pattern in filters:
                        connection.state.session.filters.pop(pattern, None)
                task.resp.packet = unsuback(packet_id)
            case Pingreq():
                task.resp.packet = PINGRESP
            case Disconnect():
                connection.state.will = None
                task.noreply()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One thread at a time; clients that have left meanwhile are seen to at the end."""
        with self._lock:
            self._busy = True
            try:
                yield
            finally:
                while self._gone:
                    self._part(self._gone.popleft())
                self._busy = False

    def _left(self, connection: CommConnection) -> None:
        """A connection has closed; perhaps since this thread has just pushed to it."""
        with self._lock:
            self._gone.append(connection)
            if self._busy:
                return
            with self._turn():
                pass

    def _connect(self, task: MqttTask, packet: Connect) -> None:
        connection = task.connection
        if not packet.client_id and not packet.clean:
            task.resp.packet = connack(WRONG_IDENTIFIER)
            task.set_keep_alive(0)
            return
        silence = packet.keep_alive * 1.5 or None  # 3.1.2.10
        connection.set_timeout(keep_alive=silence)
        task.set_keep_alive(silence)
        client_id = packet.client_id or uuid.uuid4().hex
        with self._turn():
            session = self._sessions.get(client_id)
            if session is not None and session.connection is not None:
                session.connection.close()  # 3.1.4: the old one gives way
                session.connection = None
            present = session is not None and not session.clean and not packet.clean
            if session is None or not present:
                session = self._sessions[client_id] = Session(packet.clean)
            connection.state = Link(client_id, session, packet.will)
            # Not as the reply: what others publish from now on comes after it.
            connection.push(connack(ACCEPTED, session_present=present))
            session.connection = connection
            for packet_id, message in session.sent.items():
                connection.push(replace(message, packet_id=packet_id, dup=True).encode())
            self._send_waiting(session)
        connection.on_close(self._left)

    def _part(self, connection: CommConnection) -> None:
        link: Link = connection.state
        session = link.session
        if session.connection is connection:
            session.connection = None
        if session.connection is None and self._sessions.get(link.client_id) is session:
            del self._sessions[link.client_id]
            if not session.clean:
                self._sessions[link.client_id] = session  # the last of those that are away
                self._forget()
        if link.will is not None:
            self._publish(link.will)

    def _forget(self) -> None:
        absent = [name for name, one in self._sessions.items() if one.connection is None]
        for name in absent[: max(0, len(absent) - ABSENT_LIMIT)]:
            del self._sessions[name]

    def _subscribe(self, connection: CommConnection, packet: Subscribe) -> None:
        session: Session = connection.state.session
        codes = []
        granted: dict[str, int] = {}
        for pattern, qos in packet.filters:
            if pattern not in session.filters and len(session.filters) >= FILTER_LIMIT:
                codes.append(REFUSED)
                continue
            session.filters[pattern] = granted[pattern] = min(qos, 1)
            codes.append(min(qos, 1))
        connection.push(suback(packet.packet_id, codes))
        for pattern, qos in granted.items():
            for message in self._retained.values():
                if matches(pattern, message.topic):
                    self._deliver(session, replace(message, qos=min(message.qos, qos)))

    def _publish(self, message: Publish) -> None:
        if message.retain:
            self._retain(message)
        for session in list(self._sessions.values()):
            filters = session.filters.items()
            wanted = [qos for pattern, qos in filters if matches(pattern, message.topic)]
            if wanted:  # once, however many filters match
                qos = min(message.qos, max(wanted))
                self._deliver(session, replace(message, qos=qos, retain=False, dup=False))

    def _retain(self, message: Publish) -> None:
        old = self._retained.pop(message.topic, None)
        if old is not None:
            self._retained_size -= len(old.topic) + len(old.payload)
        size = len(message.topic) + len(message.payload)
        if message.payload and self._retained_size + size <= RETAINED_LIMIT:
            self._retained[message.topic] = replace(message, dup=False)
            self._retained_size += size

    def _deliver(self, session: Session, message: Publish) -> None:
        connection = session.connection
        if message.qos:
            if len(session.waiting) < WAITING_LIMIT:
                session.waiting.append(message)
                self._send_waiting(session)
        elif connection is not None and (
            message.retain or connection.pending < connection.unsent_limit
        ):  # who does not keep up misses what has QoS 0
            connection.push(message.encode())

    def _send_waiting(self, session: Session) -> None:
        connection = session.connection
        while connection is not None and session.waiting and len(session.sent) < WINDOW:
            packet_id = session.next_id()
            message = replace(session.waiting.popleft(), packet_id=packet_id)
            session.sent[packet_id] = message
            connection.push(message.encode())


def matches(pattern: str, topic: str) -> bool:
    """Whether a filter means this topic (4.7)."""
    if topic.startswith("$") and pattern[0] in "+#":
        return False
    levels = topic.split("/")
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        if part == "#":
            return True
        if number == len(levels) or part not in ("+", levels[number]):
            return False
    return len(parts) == len(levels)


process = Broker()
"""What ``protoserve run mqtt`` serves."""
