"""Several connections at once, byte for byte as a real redis-server answers them."""

from __future__ import annotations

import pytest
from redis_lockstep import Lockstep, table

from protoserve_redis import WFRedisServer

# A step a line: who says it, and what; `;` is a line end within a pipeline. `{b}` is the
# number of a connection. Who has a transaction open is not disturbed.
SCRIPTS = {
    "reply skip": """
        a CLIENT REPLY SKIP ; CLIENT REPLY SKIP ; PING 1 ; PING 2
        a CLIENT REPLY SKIP ; RESET ; PING c
        a CLIENT REPLY OFF ; RESET ; PING d
        a CLIENT REPLY OFF ; CLIENT REPLY SKIP ; PING ; CLIENT REPLY ON ; PING e
        a CLIENT REPLY SKIP ; CLIENT REPLY ON ; PING f
        a CLIENT REPLY SKIP ; CLIENT REPLY OFF ; CLIENT REPLY ON ; PING g
        a CLIENT REPLY SKIP ; nope ; PING h
        a CLIENT REPLY SKIP ; get ; PING
        a CLIENT REPLY SKIP ; SUBSCRIBE x ; PING
        a UNSUBSCRIBE
        a HELLO 3
        a CLIENT REPLY OFF ; SUBSCRIBE x ; PUBLISH x y ; UNSUBSCRIBE x ; PING ; CLIENT REPLY ON
        a MULTI ; CLIENT REPLY ON ; PING ; EXEC
        a CLIENT REPLY foo
        a CLIENT REPLY SKIP ; CLIENT REPLY foo ; PING i
    """,
    "hello in a transaction": """
        a MULTI ; HELLO 3 ; PING ; GET no ; HGETALL no ; HELLO 2 ; GET no ; HGETALL no ; EXEC
        a MULTI ; GET none ; HELLO 3 ; GET none ; EXEC
        a MULTI ; HGETALL none ; HELLO 2 ; HGETALL none ; RESET
        a PING
        a HELLO 3 SETNAME me ; CLIENT GETNAME ; HELLO ; HELLO 2 ; HELLO
    """,
    "refused exec": """
        a EXEC
        a EXEC x
        a MULTI ; EXEC x ; PING
        a MULTI ; SET k v ; EXEC a b ; GET k
        a SUBSCRIBE c ; EXEC ; MULTI ; DISCARD
        a UNSUBSCRIBE
        a MULTI ; SUBSCRIBE c ; PING ; EXEC
        a EXEC x
        a UNSUBSCRIBE
        a MULTI ; nope ; EXEC
        a MULTI ; DISCARD x ; EXEC
    """,
    "inline words": r"""
        a "a\x0bb" x
        a PING{vt}x
        a {vt}PING
        a {ff}PING{ff}
        a PING x{vt}
        a PING {vt}{ff}x{vt}y
        a PING "x"{vt}y
        a PING 'x'{ff}
        a PING "x"y
    """,
    "quoted text": r"""
        a HELLO 2 "foo\r\n"
        a "foo\r\n"
        a "\r\nfoo" "\r\n" "a\r\n"
        a CLIENT "foo\r\n"
        a CLIENT KILL USER "foo\r\n"
        a CLIENT KILL TYPE "foo\r\n"
    """,
    "sharded channels": """
        a SSUBSCRIBE x y
        a SUBSCRIBE q
        a SPUBLISH x 1
        a CLIENT INFO
        b SPUBLISH x 1
        b PUBLISH x 1
        b SPUBLISH q z
        b SPUBLISH nobody z
        b PUBSUB SHARDCHANNELS y*
        b PUBSUB SHARDNUMSUB x z
        b PUBSUB SHARDNUMSUB
        b PUBSUB CHANNELS
        b PUBSUB NUMSUB x q
        b PUBSUB SHARDCHANNELS x y
        b SPUBLISH a
        b SSUBSCRIBE
        b SUNSUBSCRIBE
        a SUNSUBSCRIBE x
        a UNSUBSCRIBE
        a SUNSUBSCRIBE
        a SUNSUBSCRIBE ; SUNSUBSCRIBE x z
        a HELLO 3
        a SSUBSCRIBE x
        a SPUBLISH x 1
        a PUBLISH x 1
        b SPUBLISH x 2
        a SUNSUBSCRIBE ; SUNSUBSCRIBE
        a MULTI ; SSUBSCRIBE x ; SUBSCRIBE y ; SUNSUBSCRIBE ; EXEC
        a SSUBSCRIBE z ; RESET ; PING
        b SPUBLISH z 1
    """,
    "monitor": r"""
        a MONITOR
        b SET k "a\x00\n\"\\\xff\t\r\a\b'"
        b get
        b nope
        b AUTH x y
        b HELLO 2 AUTH x y SETNAME z
        b HELLO 2 SETNAME z
        b CLIENT SETNAME x ; CLIENT LIST ID 999999 ; CLIENT KILL ID 999999
        b SELECT 2 ; SELECT 0
        b MULTI ; PING ; INCR n ; get ; DISCARD
        b MULTI ; PING ; INCR n ; EXEC
        b MULTI ; EXEC
        b EXEC ; EXEC x
        b MULTI ; nope ; EXEC
        b HGET k f
        b SUBSCRIBE x ; UNSUBSCRIBE
        a PING hello
        a GET k
        a SET k v
        a PUBLISH x y
        a SPUBLISH x y
        a DBSIZE
        a ECHO x
        a SUBSCRIBE x
        a ECHO x
        a MONITOR
        b PING x
        a UNSUBSCRIBE
        a MONITOR
        b PUBLISH x y
        a RESET
        b PING y
        a GET k
        b MULTI ; MONITOR ; PING ; EXEC
        b WATCH k ; UNWATCH
        b MONITOR ; QUIT
    """,
    "tracking": """
        a CLIENT TRACKING on
        a CLIENT TRACKINGINFO ; CLIENT GETREDIR
        a HELLO 3
        a GET k ; GET k2 ; MGET k3 k4
        b SET k 1 ; SET k 2
        b SET k2 3 ; DEL k3 ; MSET k3 1 k4 2
        a GET k
        a SET k 5 ; PING
        a GET k
        a MULTI ; SET k 6 ; GET k ; PING ; EXEC
        a GET k
        a MULTI ; SET k 6 ; SET k2 7 ; GET k ; EXEC
        b SET k 7
        b FLUSHDB
        b FLUSHALL
        a FLUSHALL
        a GET k ; SELECT 3 ; SET k 1 ; SELECT 0
        b SELECT 2 ; SET k 1
        a EXISTS k ; STRLEN k2 ; HGETALL k3 ; LRANGE k4 0 -1 ; HGET k5 f
        b MSET k 1 k2 2 k3 3 k4 4 k5 5
        b MSET k 1 k2 2 k3 3 k4 4 k5 5
        a CLIENT TRACKING off
        b SET k 1
        a CLIENT TRACKINGINFO ; CLIENT GETREDIR
        a CLIENT TRACKING on NOLOOP
        a GET k ; SET k 1
        b SET k 2
        a GET k
        b SET k 2
        a CLIENT TRACKING off ; CLIENT TRACKING on OPTIN
        a GET k ; CLIENT CACHING yes ; GET k2 ; GET k3
        b MSET k 2 k2 3 k3 4
        a CLIENT CACHING yes ; MULTI ; GET k ; GET k2 ; EXEC ; GET k3
        b MSET k 2 k2 3 k3 4
        a CLIENT CACHING yes ; CLIENT GETNAME ; GET k
        a CLIENT CACHING yes ; PING ; GET k2
        b MSET k 2 k2 3 k3 4
        a CLIENT TRACKING off ; CLIENT TRACKING on OPTOUT
        a GET k ; CLIENT CACHING no ; GET k2 ; GET k3
        b MSET k 2 k2 3 k3 4
        a CLIENT CACHING no ; CLIENT TRACKING on OPTOUT ; CLIENT TRACKINGINFO ; GET k
        b SET k 2
        a CLIENT TRACKING off ; CLIENT TRACKING on OPTIN
        a CLIENT CACHING yes ; CLIENT TRACKING on OPTIN ; CLIENT TRACKINGINFO ; GET k
        b SET k 2
        a RESET
        a CLIENT TRACKINGINFO
        b SET k 1
    """,
    "tracking's words": """
        a HELLO 3
        a CLIENT TRACKING ; CLIENT TRACKING foo ; CLIENT TRACKING on FOO ; CLIENT TRACKING off FOO
        a CLIENT TRACKING on ; CLIENT CACHING yes ; CLIENT TRACKING on OPTIN ; CLIENT TRACKINGINFO
        a CLIENT TRACKING on OPTOUT ; CLIENT TRACKING on BCAST ; CLIENT TRACKING off
        a CLIENT TRACKING on OPTIN OPTOUT ; CLIENT TRACKING on OPTIN BCAST
        a CLIENT TRACKING on PREFIX x
        a CLIENT TRACKING on OPTIN ; CLIENT CACHING no ; CLIENT CACHING yes ; CLIENT TRACKINGINFO
        a CLIENT CACHING x ; CLIENT CACHING ; CLIENT TRACKING off ; CLIENT CACHING yes
        a CLIENT TRACKING on OPTOUT ; CLIENT CACHING yes ; CLIENT CACHING no ; CLIENT TRACKINGINFO
        a CLIENT TRACKING off ; CLIENT TRACKING on BCAST PREFIX x PREFIX y NOLOOP
        a CLIENT TRACKINGINFO ; CLIENT TRACKING on BCAST PREFIX xa
        a CLIENT TRACKING on BCAST PREFIX z
        a CLIENT TRACKING on BCAST PREFIX d PREFIX da ; CLIENT TRACKING on BCAST PREFIX d PREFIX d
        a CLIENT TRACKING on BCAST PREFIX z ; CLIENT TRACKINGINFO ; CLIENT TRACKING on
        a CLIENT TRACKING off ; CLIENT TRACKINGINFO
        a CLIENT TRACKING on REDIRECT 999999 ; CLIENT TRACKING on REDIRECT x
        a CLIENT TRACKING on REDIRECT {b} REDIRECT {c} ; CLIENT TRACKING on REDIRECT -1
        a CLIENT TRACKING on REDIRECT 0 ; CLIENT TRACKING off BCAST ; CLIENT TRACKING on REDIRECT
        a CLIENT TRACKING on BCAST PREFIX ; CLIENT TRACKING off REDIRECT 999999
        a HELLO 2 ; CLIENT TRACKING on ; CLIENT TRACKINGINFO
    """,
    "tracking with broadcasts": """
        a HELLO 3
        a CLIENT TRACKING on BCAST PREFIX k PREFIX z
        b MSET k 2 k2 3 z 4 y 5
        b MULTI ; SET k 1 ; SET k2 1 ; SET k 3 ; EXEC
        b FLUSHALL
        b DEL k
        a MULTI ; SET k 1 ; SET k2 1 ; GET k ; EXEC
        b GET k ; DEL k2
        a CLIENT TRACKING on BCAST PREFIX m PREFIX q PREFIX qq PREFIX mm
        a CLIENT TRACKING on BCAST PREFIX q PREFIX m PREFIX kk PREFIX k
        a CLIENT TRACKING on BCAST ; CLIENT TRACKINGINFO ; CLIENT TRACKING on BCAST PREFIX q
        b MSET other 1 k 1
        a CLIENT TRACKING off ; CLIENT TRACKING on BCAST PREFIX k
        c HELLO 3 ; CLIENT TRACKING on BCAST
        b SET other 1
        a CLIENT TRACKING off
        b SET k 1
        c CLIENT TRACKING off ; CLIENT TRACKING on BCAST NOLOOP ; SET k 2
        b SET k 2
    """,
    "tracking redirected": """
        c SUBSCRIBE __redis__:invalidate
        a CLIENT TRACKING on REDIRECT {c}
        a GET k ; SET k 1
        b SET k 1
        a GET k ; GET k2
        b MSET k 1 k2 2
        b FLUSHALL
        a GET k
        c UNSUBSCRIBE
        b SET k 1
        c HELLO 3
        a GET k
        b SET k 1
        a CLIENT TRACKING off ; CLIENT TRACKING on ; GET k
        b SET k 1
        a HELLO 3 ; CLIENT TRACKING on REDIRECT {b} ; GET k
        c SET k 1
        b QUIT
        c SET k 1
        a CLIENT TRACKINGINFO
        a GET k
        c SET k 1
        a CLIENT TRACKINGINFO
    """,
    "pause": """
        a CLIENT PAUSE ; CLIENT PAUSE x ; CLIENT PAUSE -1 ; CLIENT PAUSE 100 FOO ; CLIENT UNPAUSE x
        a CLIENT PAUSE 100000 WRITE
        a GET k ; nope ; get ; MULTI ; GET k ; EXEC
        a CLIENT UNPAUSE
        a SET k 1 ; CLIENT PAUSE 50 ALL ; GET k ; SET k 2 ; GET k
        a CLIENT PAUSE 50 WRITE ; MULTI ; SET k 3 ; GET k ; EXEC ; PUBLISH a b
        a CLIENT PAUSE 50 WRITE ; CLIENT REPLY SKIP ; SET k 4 ; GET k
        a CLIENT PAUSE 0 ; SET k 5
    """,
    "kill and unblock": """
        a CLIENT KILL USER nobody ; CLIENT KILL USER
        a CLIENT KILL LADDR 1.2.3.4:5 ; CLIENT KILL LADDR
        a CLIENT UNBLOCK ; CLIENT UNBLOCK x ; CLIENT UNBLOCK {a} ; CLIENT UNBLOCK {a} FOO
        a CLIENT UNBLOCK 999999 ; CLIENT UNBLOCK {a} ERROR
        a CLIENT LIST TYPE replica ; CLIENT LIST TYPE master ; CLIENT LIST ID 999999
        a CLIENT NO-EVICT on ; CLIENT NO-EVICT x
        b CLIENT KILL ID {a} ; CLIENT KILL USER default SKIPME no ID 999999
        b CLIENT KILL ID {b} SKIPME yes
        b CLIENT KILL USER default TYPE normal LADDR 1.1.1.1:1
    """,
    "messages to oneself": """
        a HELLO 3
        a SUBSCRIBE x
        a PUBLISH x y ; PING
        a PSUBSCRIBE x*
        a PUBLISH x y
        b PUBLISH x z
    """,
    "watch": """
        a WATCH k ; MULTI ; PING ; EXEC
        a WATCH k
        b DEL k
        a MULTI ; PING ; EXEC
        a WATCH k
        b SET k 1
        a MULTI ; PING ; EXEC
        a WATCH k
        b DEL k
        a MULTI ; PING ; EXEC
        a WATCH none k
        b FLUSHALL
        a MULTI ; PING ; EXEC
        a WATCH k k k ; SET k 1 ; UNWATCH ; MULTI ; EXEC
    """,
    "get keys": """
        a COMMAND GETKEYS GET a ; COMMAND GETKEYS MSET a 1 b 2 ; COMMAND GETKEYS MGET a b c
        a COMMAND GETKEYS nope a ; COMMAND GETKEYS PING ; COMMAND GETKEYS PING a
        a COMMAND GETKEYS GET
        a COMMAND GETKEYS GET a b ; COMMAND GETKEYS ; COMMAND GETKEYS CLIENT
        a COMMAND GETKEYS CLIENT ID
        a COMMAND GETKEYS CLIENT NOPE ; COMMAND GETKEYS MSET a ; COMMAND GETKEYS DBSIZE
        a COMMAND GETKEYS FLUSHALL ASYNC ; COMMAND GETKEYS MSET a 1 b ; COMMAND GETKEYS CLIENT ID x
        a COMMAND GETKEYS HELLO 3 ; COMMAND GETKEYS WATCH a b ; COMMAND GETKEYS nope
        a COMMAND GETKEYS SELECT 1 ; COMMAND GETKEYS EXEC ; COMMAND GETKEYS CLIENT KILL
        a COMMAND INFO nope ; COMMAND INFO ping nope client|id client|nope ; COMMAND NOPE
        a COMMAND COUNT x
        a COMMAND LIST FILTERBY MODULE x ; COMMAND LIST FILTERBY PATTERN
        a COMMAND LIST FILTERBY X y
        a COMMAND LIST x ; COMMAND DOCS nope ; COMMAND LIST FILTERBY PATTERN pin*
        a COMMAND LIST FILTERBY ACLCAT nope
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_conversation(redis_port: int, name: str) -> None:
    theirs = ("127.0.0.1", redis_port)
    different = []
    with (
        WFRedisServer(table()).start("127.0.0.1", 0) as server,
        Lockstep(server.address, theirs) as lockstep,
    ):
        lockstep.step("a", lambda _: [b"FLUSHALL\r\n"])
        ids = lockstep.identify()
        for line in filter(None, map(str.strip, SCRIPTS[name].splitlines())):
            who, _, text = line.partition(" ")

            def pieces(which: int, text: str = text) -> list[bytes]:
                for other, numbers in ids.items():
                    text = text.replace(f"{{{other}}}", numbers[which].decode())
                text = text.replace("{vt}", "\v").replace("{ff}", "\f")
                lines = [part.strip(" ").encode() + b"\r\n" for part in text.split(" ; ")]
                return [b"".join(lines)]

            answered = name == "tracking with broadcasts"
            for other, ours, expected in lockstep.step(who, pieces, answered=answered):
                different.append(
                    f"{line}\n  {other} got      {ours!r}\n  {other} expected {expected!r}"
                )
    assert not different, "\n".join(different)
