"""CLIENT TRACKING: clients are told when keys change that they have cached.

A store calls ``CommandTable.touch`` for each change, and its commands carry the flag
``readonly`` and say which of their words are keys: that is all it takes. As in Redis a
client is told of a key once, until it reads that again; databases make no difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from protoserve_redis.arguments import integer, text_of
from protoserve_redis.clients import on_off
from protoserve_redis.serialiser import encode
from protoserve_redis.session import RedisSession, deliver, session_of
from protoserve_redis.values import OK, Push, RedisError

if TYPE_CHECKING:
    from protoserve import CommConnection
    from protoserve_redis.command import Command
    from protoserve_redis.commands import CommandTable

CHANNEL: Final = b"__redis__:invalidate"
"""Where clients of RESP2 hear of changes, on the connection that they redirect to."""

MAX_KEYS: Final = 1_000_000  # Redis' tracking-table-max-keys
"""Keys that are remembered, unless ``Tracking.limit`` says otherwise."""


class Tracked:
    """What a connection asked for with CLIENT TRACKING ON."""

    __slots__ = (
        "broadcast",
        "broken",
        "caching",
        "lengths",
        "noloop",
        "optin",
        "optout",
        "prefixes",
        "redirect",
    )

    def __init__(self) -> None:
        self.redirect = 0  # the id of another connection
        self.broken = False
        self.broadcast = False
        self.prefixes: dict[bytes, None] = {}
        """In their order."""
        self.lengths: list[int] = []
        """Those that its prefixes have, by which they are found."""
        self.optin = False
        self.optout = False
        self.noloop = False
        self.caching = False  # CLIENT CACHING was said, and holds for the next command

    @property
    def remembers(self) -> bool:
        """Whether the keys of the command that runs are tracked."""
        if self.broadcast or (self.optin and not self.caching):
            return False
        return not (self.optout and self.caching)

    def command_ended(self, command: Command) -> None:
        """A command, or a transaction, is over: what CLIENT CACHING said was for it."""
        if not command.name.startswith(b"CLIENT|"):
            self.caching = False


class _Batch(threading.local):
    """What the command that this thread runs has invalidated: told when it has ended, so
    that who runs it gets its reply first, and broadcasts come together."""

    def __init__(self) -> None:
        self.session: RedisSession | None = None
        self.keys: list[tuple[RedisSession, bytes | None]] = []
        self.broadcast: dict[tuple[RedisSession, bytes], dict[bytes, None]] = {}


class Tracking:
    """Who tracks which keys. Any thread.

    ``clients`` is empty when nobody tracks: then ``touch`` is not called, and commands do
    not come by here.
    """

    def __init__(self, table: CommandTable) -> None:
        self.clients: dict[int, RedisSession] = {}
        """The sessions that track, by their id. Changed under the lock."""
        self._broadcasting: dict[int, RedisSession] = {}  # those of them with BCAST
        self._table = table
        self._lock = threading.Lock()
        self._keys: dict[bytes, set[int]] = {}  # who has read them
        self._max_keys = MAX_KEYS
        self._batch = _Batch()
        self._acting: dict[asyncio.Task[Any], RedisSession] = {}

    @property
    def key_count(self) -> int:
        """How many keys are remembered."""
        return len(self._keys)

    @property
    def item_count(self) -> int:
        """How many are remembered, counted for each who has read them."""
        with self._lock:
            return sum(map(len, self._keys.values()))

    @property
    def prefix_count(self) -> int:
        """How many prefixes are listened to; one that several listen to is one."""
        with self._lock:
            tracked = [session.tracked for session in self._broadcasting.values()]
        return len({prefix for one in tracked if one is not None for prefix in one.prefixes})

    def limit(self, keys: int) -> None:
        """Remember so many keys at most (Redis' ``tracking-table-max-keys``): beyond it some
        are declared changed, now and later. 0 is no limit."""
        with self._lock:
            self._max_keys = keys
            self._evict()
        if self._batch.session is None:
            self._flush()

    def begin(self, session: RedisSession, tracked: Tracked) -> None:
        """A connection tracks from now on."""
        with self._lock:
            session.tracked = tracked
            session.reads = False
            self.clients[session.id] = session
            if tracked.broadcast:
                self._broadcasting[session.id] = session
            self._look()
        session.update()

    def drop(self, session: RedisSession) -> None:
        """A connection tracks no more."""
        if session.tracked is None:
            return
        with self._lock:
            session.tracked = None
            self.clients.pop(session.id, None)
            self._broadcasting.pop(session.id, None)
            if not self.clients:
                self._keys.clear()
            self._look()
        session.update()

    def _look(self) -> None:
        # Broadcasts of one command come together: then all commands are looked at.
        self._table.detour("tracking", on=bool(self._broadcasting))

    def remember(
        self, session: RedisSession, tracked: Tracked, command: Command, args: list[bytes]
    ) -> None:
        """A command of a client that tracks has run: note the keys that it read."""
        # Of a script it is what it runs that reads.
        read = session.reads or (
            "readonly" in command.flags and "skip_monitor" not in command.flags
        )
        session.reads = False
        if not read or not tracked.remembers:
            return
        keys = command.keys_of(args)
        with self._lock:
            for key in keys:
                self._keys.setdefault(key, set()).add(session.id)
            self._evict()
        if self._batch.session is None:
            self._flush()

    def _evict(self) -> None:
        while len(self._keys) > self._max_keys > 0:
            self._tell_readers(next(iter(self._keys)), None)

    # -- changes -----------------------------------------------------------------------

    @contextlib.contextmanager
    def batch(self, session: RedisSession) -> Iterator[None]:
        """Tell what the command of a session invalidates, in this thread, at its end."""
        self._batch.session = session
        try:
            yield
        finally:
            self._flush()

    @contextlib.contextmanager
    def acting(self, session: RedisSession) -> Iterator[None]:
        """What the running asyncio task invalidates is the doing of a session's command,
        whose reply is still to come. It is told at once: the command may take long."""
        task = asyncio.current_task()
        if task is None:
            yield
            return
        with self._lock:
            self._acting[task] = session
        try:
            yield
        finally:
            with self._lock:
                del self._acting[task]

    def _actor(self) -> RedisSession | None:
        """The session whose command runs here."""
        if self._batch.session is not None or not self._acting:
            return self._batch.session
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop runs in this thread
            return None
        return None if task is None else self._acting.get(task)

    def touch(self, key: bytes | None, *, expired: bool = False) -> None:
        """A key has changed, or with None all of them; or its time has come."""
        batch = self._batch
        actor = self._actor()
        by = None if expired else actor
        with self._lock:
            if key is None:
                self._keys.clear()
                batch.keys += [(session, None) for session in self.clients.values()]
                batch.broadcast.clear()
            else:
                self._tell_readers(key, by)
                for session in self._broadcasting.values():
                    self._tell_prefixes(session, key, by)
        if batch.session is None:
            self._flush(actor)

    def _tell_readers(self, key: bytes, by: RedisSession | None) -> None:
        for number in self._keys.pop(key, ()):
            session = self.clients.get(number)
            if session is not None and _wants(session, by) and number not in self._broadcasting:
                self._batch.keys.append((session, key))

    def _tell_prefixes(self, session: RedisSession, key: bytes, by: RedisSession | None) -> None:
        tracked = session.tracked
        if tracked is None or not _wants(session, by):
            return
        for length in tracked.lengths:
            if length > len(key):
                break
            prefix = key[:length]
            if prefix in tracked.prefixes:
                self._batch.broadcast.setdefault((session, prefix), {})[key] = None

    def _flush(self, own: RedisSession | None = None) -> None:
        """Tell what was noted, its own session after its reply. Without the lock: a push may
        close a connection."""
        batch = self._batch
        own, batch.session = batch.session or own, None
        keys, batch.keys = batch.keys, []
        broadcast, batch.broadcast = batch.broadcast, {}
        for session, key in keys:
            self._send(session, own, None if key is None else [key])
        for (session, _), together in sorted(broadcast.items(), key=lambda item: item[0][1]):
            self._send(session, own, sorted(together))

    def _send(
        self, session: RedisSession, own: RedisSession | None, keys: list[bytes] | None
    ) -> None:
        tracked = session.tracked
        if tracked is None:
            return
        connection = self._table.connection_of(tracked.redirect or session.id)
        if connection is None:
            if tracked.redirect:
                tracked.broken = True
                connection = self._table.connection_of(session.id)
                if session.protocol >= 3 and connection is not None:
                    _push(connection, own, Push([b"tracking-redir-broken", tracked.redirect]))
            return
        target: RedisSession = connection.state
        if target.protocol >= 3:
            _push(connection, own, Push([b"invalidate", keys]))
        elif target is not session and target.subscribed:
            _push(connection, own, Push([b"message", CHANNEL, keys]))


def _wants(session: RedisSession, by: RedisSession | None) -> bool:
    """Whether a client wants to be told of what another, or it itself, has done; ``by`` is
    None where nobody has."""
    tracked = session.tracked
    if tracked is None:
        return False
    return not (tracked.noloop and session is by)


def _push(connection: CommConnection, own: RedisSession | None, message: Push) -> None:
    target: RedisSession = connection.state
    # To oneself after the reply of the command that did it.
    deliver(connection, target, encode(message, target.protocol), own=target is own)


# -- commands --------------------------------------------------------------------------


def _switch_on(
    table: CommandTable, session: RedisSession, asked: Tracked, prefixes: list[bytes]
) -> None:
    """CLIENT TRACKING ON, in Redis' order of objections."""
    if prefixes and not asked.broadcast:
        raise RedisError("ERR PREFIX option requires BCAST mode to be enabled")
    before = session.tracked
    if before is not None and before.broadcast != asked.broadcast:
        raise RedisError(
            "ERR You can't switch BCAST mode on/off before disabling tracking for this client, "
            "and then re-enabling it with a different mode."
        )
    if asked.broadcast and (asked.optin or asked.optout):
        raise RedisError("ERR OPTIN and OPTOUT are not compatible with BCAST")
    if asked.optin and asked.optout:
        raise RedisError("ERR You can't specify both OPTIN mode and OPTOUT mode")
    if before is not None and ((asked.optin and before.optout) or (asked.optout and before.optin)):
        raise RedisError(
            "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, "
            "and then re-enabling it with a different mode."
        )
    if asked.broadcast:
        held = [] if before is None else [*before.prefixes]
        _check_prefixes(prefixes, held)
        # All keys may come on top of some.
        asked.prefixes = dict.fromkeys(sorted({*held, *(prefixes or [b""])}))
        asked.lengths = sorted({*map(len, asked.prefixes)})
    if before is not None:
        asked.caching = before.caching
    table.tracking.begin(session, asked)


def _check_prefixes(prefixes: list[bytes], held: list[bytes]) -> None:
    """Raise for the first that overlaps with one before, or with one behind it."""
    # All pairs would take minutes for what fits into one request. In order, what begins
    # with a word follows it at once.
    overlapping: set[bytes] = set()
    open_words: list[bytes] = []
    for word in sorted([*held, *prefixes]):
        while open_words and not word.startswith(open_words[-1]):
            open_words.pop()
        if open_words:
            overlapping.update((word, open_words[-1]))
        open_words.append(word)
    for at, prefix in enumerate(prefixes):
        if prefix not in overlapping:
            continue
        for others, what in ((held, "an existing"), (prefixes[at + 1 :], "another provided")):
            for other in others:
                if prefix.startswith(other) or other.startswith(prefix):
                    raise RedisError(
                        f"ERR Prefix '{text_of(prefix)}' overlaps with {what} prefix "
                        f"'{text_of(other)}'. Prefixes for a single client must not overlap."
                    )


def _read_options(table: CommandTable, words: tuple[bytes, ...]) -> tuple[Tracked, list[bytes]]:
    asked = Tracked()
    prefixes: list[bytes] = []
    rest = iter(words)
    for word in rest:
        option = word.upper()
        value = next(rest, None) if option in (b"REDIRECT", b"PREFIX") else b""
        if value is None:
            raise RedisError("ERR syntax error")
        if option == b"REDIRECT":
            if asked.redirect:
                raise RedisError("ERR A client can only redirect to a single other client")
            asked.redirect = integer(value)
            if table.connection_of(asked.redirect) is None:
                raise RedisError("ERR The client ID you want redirect to does not exist")
        elif option == b"PREFIX":
            prefixes.append(value)
        elif option == b"BCAST":
            asked.broadcast = True
        elif option == b"OPTIN":
            asked.optin = True
        elif option == b"OPTOUT":
            asked.optout = True
        elif option == b"NOLOOP":
            asked.noloop = True
        else:
            raise RedisError("ERR syntax error")
    return asked, prefixes


def _facts(tracked: Tracked | None) -> dict[str, Any]:
    if tracked is None:
        return {"flags": {"off": None}.keys(), "redirect": -1, "prefixes": []}
    flags = ["on"]
    if tracked.broadcast:
        flags.append("bcast")
    if tracked.optin:
        flags.append("optin")
        flags += ["caching-yes"] if tracked.caching else []
    if tracked.optout:
        flags.append("optout")
        flags += ["caching-no"] if tracked.caching else []
    if tracked.noloop:
        flags.append("noloop")
    if tracked.broken:
        flags.append("broken_redirect")
    return {
        "flags": dict.fromkeys(flags).keys(),
        "redirect": tracked.redirect,
        "prefixes": [*tracked.prefixes],
    }


def register(table: CommandTable) -> None:
    """Put CLIENT TRACKING and its kin into a table."""
    flags = ("noscript", "loading", "stale")

    @table.command(
        "CLIENT|TRACKING",
        -3,
        flags,
        group="connection",
        summary="Controls server-assisted caching of the client.",
        since="6.0.0",
    )
    def track(task: Any, switch: bytes, *words: bytes) -> Any:
        session = session_of(task)
        asked, prefixes = _read_options(table, words)
        if on_off(switch):
            _switch_on(table, session, asked, prefixes)
            table.joined(task.connection, session)
        else:
            table.tracking.drop(session)
        return OK

    @table.command(
        "CLIENT|CACHING",
        3,
        flags,
        group="connection",
        summary="Says whether the keys of the next command are tracked.",
        since="6.0.0",
    )
    def caching(task: Any, switch: bytes) -> Any:
        tracked = session_of(task).tracked
        if tracked is None:
            raise RedisError(
                "ERR CLIENT CACHING can be called only when the client is in tracking mode "
                "with OPTIN or OPTOUT mode enabled"
            )
        word = switch.lower()
        if word not in (b"yes", b"no"):
            raise RedisError("ERR syntax error")
        if word == b"yes" and not tracked.optin:
            raise RedisError(
                "ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode."
            )
        if word == b"no" and not tracked.optout:
            raise RedisError(
                "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode."
            )
        tracked.caching = True
        return OK

    @table.command(
        "CLIENT|TRACKINGINFO",
        2,
        flags,
        group="connection",
        summary="Tells about the tracking of the connection.",
        since="6.2.0",
    )
    def about(task: Any) -> dict[str, Any]:
        return _facts(session_of(task).tracked)

    @table.command(
        "CLIENT|GETREDIR",
        2,
        flags,
        group="connection",
        summary="Tells which connection hears of changes.",
        since="6.0.0",
    )
    def redirection(task: Any) -> int:
        tracked = session_of(task).tracked
        return -1 if tracked is None else tracked.redirect
