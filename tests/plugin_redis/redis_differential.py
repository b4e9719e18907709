"""Random pipelines to us and to a real redis-server: three connections in lockstep.

Each run opens three connections to both servers and sends the same random pipelines, in
RESP2 and RESP3, split anywhere, over them in turn; after each every byte that every
connection got is compared. A run is made from its number alone::

    python tests/plugin_redis/redis_differential.py --seconds 600
    python tests/plugin_redis/redis_differential.py --run 4711 --show
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator

from kv_server import packed, real
from redis_lockstep import Lockstep, table

from protoserve_redis import WFRedisServer

NAMES = "abc"
STEPS = 12
"""Pipelines of one run."""

KEYS = ["k", "k2", "h", "l", "n", ""]
VALUES = ["", "v", "1", "-7", "x" * 300, "a\r\nb", "\0\xff", "9223372036854775807", "1.5"]
CHANNELS = ["c", "c2", "news"]
PATTERNS = ["c*", "?", "[a-n]*", "\\c"]


class Pipelines:
    """Makes the pipelines of a run. It knows just enough of each connection to leave none
    in a state in which it could not be asked for a sign of life."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        # One thing at a time that is told without being asked for: in which order Redis
        # tells two is chance.
        self.tracking = number % 3 == 0
        self.monitoring = number % 3 == 1
        self.monitors: set[str] = set()
        # One pattern: in which order two are served is chance, too.
        self.pattern = self.random.choice(PATTERNS)

    def pipeline(self, name: str) -> list[list[str]]:
        """The commands of one pipeline, words by command."""
        pick = self.random
        commands: list[list[str]] = []
        for _ in range(pick.randint(1, 8)):
            commands += self._block(name)
        # Neither a transaction nor what is left of SKIP stays behind.
        return [*commands, ["DISCARD"], ["CLIENT", "REPLY", "ON"]]

    def _block(self, name: str) -> list[list[str]]:
        pick = self.random
        kind = pick.random()
        if kind < 0.5:
            return [self._data() for _ in range(pick.randint(1, 4))]
        if kind < 0.66:
            inner = [self._data() for _ in range(pick.randint(0, 4))]
            if pick.random() < 0.3:
                inner.append(self._connection(name, within=True))
            if pick.random() < 0.15:
                wrong = self._wrong()
                if wrong[0] != "EXEC" or name not in self.monitors:  # see below
                    inner.append(wrong)
            before = [["WATCH", pick.choice(KEYS)]] if pick.random() < 0.3 else []
            ends = [["EXEC"]] * 6 + [["DISCARD"], ["EXEC", "x"], ["RESET"]]
            # Redis 7.0 tells a monitor of its own transaction within the answer to it.
            end = pick.choice(ends[6:8] if name in self.monitors else ends[: 9 - self.tracking])
            return [*before, ["MULTI"], *inner, end]
        if kind < 0.78:
            return [self._messages()]
        if kind < 0.8:
            silent = [self._data() for _ in range(pick.randint(0, 3))]
            return [["CLIENT", "REPLY", "OFF"], *silent, ["CLIENT", "REPLY", "ON"]]
        if kind < 0.86:
            return [self._wrong()]
        return [self._connection(name, within=False)]

    def _data(self) -> list[str]:
        pick = self.random
        key, value = pick.choice(KEYS), pick.choice(VALUES)
        return pick.choice(
            [
                ["GET", key], ["get", key], ["SET", key, value], ["SET", key, value, "NX"],
                ["SET", key, value, "XX", "GET"], ["SET", key, value, "nx", "xx"],
                ["DEL", key, pick.choice(KEYS)], ["EXISTS", key, key], ["INCR", "n"],
                ["INCRBY", key, value], ["APPEND", key, value], ["STRLEN", key],
                ["MGET", *KEYS], ["MSET", key, value, "k2", "z"], ["MSET", key, value, key],
                ["HSET", "h", "f", value], ["HGET", key, "f"], ["HGETALL", key],
                ["RPUSH", "l", value, "y"], ["LRANGE", key, "0", "-1"], ["DBSIZE"],
                ["LRANGE", key, value, "1"], ["FLUSHALL"],
                ["SELECT", pick.choice(["0", "0", "1", "16", "x"])],
                ["PING"], ["PING", value], ["ECHO", value],
            ]
        )  # fmt: skip

    def _messages(self) -> list[str]:
        pick = self.random
        channel, pattern = pick.choice(CHANNELS), self.pattern
        return pick.choice(
            [
                ["SUBSCRIBE", channel], ["SUBSCRIBE", channel, "c2"], ["UNSUBSCRIBE", channel],
                ["PSUBSCRIBE", pattern], ["PUNSUBSCRIBE", pattern], ["UNSUBSCRIBE", channel, "c"],
                ["SSUBSCRIBE", channel], ["SUNSUBSCRIBE", channel], ["SPUBLISH", channel, "m"],
                ["PUBLISH", channel, "m"], ["PUBLISH", channel, "a\r\nb"],
                ["PUBSUB", "NUMSUB", *CHANNELS], ["PUBSUB", "NUMPAT"],
                ["PUBSUB", "SHARDNUMSUB", channel], ["PUBSUB", "CHANNELS", "news"],
            ]
        )  # fmt: skip

    def _wrong(self) -> list[str]:
        pick = self.random
        value = pick.choice(VALUES)
        return pick.choice(
            [
                ["nope"], ["nope", value, "x"], ["GET"], ["GET", "k", "x"], ["CLIENT"],
                ["CLIENT", "NOPE", value], ["EXEC"], ["EXEC", value], ["DISCARD"], ["HELLO", "4"],
                ["HELLO", "2", value], ["AUTH", "x", "y"], ["COMMAND", "GETKEYS", "GET", "k"],
                ["COMMAND", "GETKEYS", "PING", "x"], ["COMMAND", "INFO", "nope"], ["MULTI", "x"],
                ["SUBSCRIBE"], [value or "?", "x"], ["CLIENT", "KILL", "ID", "9999999"],
                ["CLIENT", "KILL", "USER", "nobody"], ["CLIENT", "UNBLOCK", "9999999"],
                ["CLIENT", "REPLY", "x"], ["CLIENT", "TRACKING", "x"], ["INCRBY", "n", value],
                ["CLIENT", "CACHING", "yes"], ["PUBSUB", "NOPE"],
            ]
        )  # fmt: skip

    def _connection(self, name: str, *, within: bool) -> list[str]:
        """What changes the connection. Redis breaks its own arrays where replies are
        switched off, or messages to oneself sent, ``within`` a transaction."""
        pick = self.random
        choices = [
            ["HELLO", pick.choice(["2", "3"])], ["HELLO", "3", "SETNAME", "me"], ["HELLO"],
            ["CLIENT", "GETNAME"], ["CLIENT", "SETNAME", "you"], ["CLIENT", "TRACKINGINFO"],
            ["CLIENT", "GETREDIR"], ["UNWATCH"],
        ]  # fmt: skip
        if within:
            return pick.choice(choices)
        choices += [
            ["WATCH", pick.choice(KEYS)], ["CLIENT", "REPLY", "SKIP"], ["CLIENT", "REPLY", "ON"],
        ]  # fmt: skip
        if self.tracking:
            # Redis remembers over RESET and OFF what was read before.
            choices += [
                ["CLIENT", "TRACKING", "on"], ["CLIENT", "TRACKING", "on", "NOLOOP"],
                ["CLIENT", "TRACKING", "on", "OPTIN"], ["CLIENT", "TRACKING", "on", "OPTOUT"],
                ["CLIENT", "CACHING", "yes"], ["CLIENT", "CACHING", "no"],
            ]  # fmt: skip
        else:
            choices.append(["RESET"])
        if self.monitoring:
            choices.append(["MONITOR"])
        words = pick.choice(choices)
        if words == ["MONITOR"]:
            self.monitors.add(name)
        return words

    def pieces(self, commands: list[list[str]]) -> list[bytes]:
        """The bytes of a pipeline, cut where chance will have it; some commands inline."""
        pick = self.random
        data = b""
        for words in commands:
            if pick.random() < 0.1 and all(word.isalnum() for word in words):
                data += " ".join(words).encode() + pick.choice([b"\r\n", b"\n"])
            else:
                data += packed(*(word.encode("latin-1") for word in words))
        cuts = sorted(pick.randrange(len(data) + 1) for _ in range(pick.choice([0, 0, 1, 3, 9])))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


def run(
    number: int, ours: tuple[str, int], theirs: tuple[str, int], *, show: bool = False
) -> Iterator[str]:
    """One run; what differed, each with the pipeline before it."""
    with Lockstep(ours, theirs, NAMES) as lockstep:
        lockstep.step("a", lambda _: [packed("FLUSHALL")])
        pipelines = Pipelines(number)
        for _ in range(STEPS):
            name = pipelines.random.choice(NAMES)
            commands = pipelines.pipeline(name)
            pieces = pipelines.pieces(commands)
            if show:
                print(name, commands)
            for other, got, expected in lockstep.step(name, lambda _, sent=pieces: sent):
                yield (
                    f"run {number}: after {name} said {commands}\n"
                    f"  {other} got   {got!r}\n  {other} wants {expected!r}"
                )
                return


def runs(seconds: float, first: int, *, show: bool = False) -> tuple[int, list[str]]:
    """Runs from ``first`` on, for so long; how many, and what differed."""
    different: list[str] = []
    number = first
    end = time.monotonic() + seconds
    with real() as port, WFRedisServer(table()).start("127.0.0.1", 0) as server:
        while not different and (number == first or time.monotonic() < end):
            different += run(number, server.address, ("127.0.0.1", port), show=show)
            number += 1
    return number - first, different


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--run", type=int, help="only this one")
    parser.add_argument("--show", action="store_true", help="print each pipeline")
    options = parser.parse_args()
    first = random.randrange(1 << 30) if options.run is None else options.run
    seconds = options.seconds if options.run is None else 0.0
    count, different = runs(seconds, first, show=options.show)
    print(f"{count} runs from {first} on: " + ("\n".join(different) or "no difference"))
    return bool(different)


if __name__ == "__main__":
    raise SystemExit(main())
