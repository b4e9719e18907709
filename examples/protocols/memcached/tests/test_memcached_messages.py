"""The protocol and the store without a server."""

from __future__ import annotations

import pytest
from memcached_protocol import MEMCACHED_SPEC, Reply, Request
from memcached_protocol.store import MONTH, Store

from protoserve import NEED_DATA, MessageParser, ProtocolError
from protoserve.testing import check_protocol

# Each is one whole request on the wire.
SAMPLES: list[bytes] = [
    b"get a\r\n",
    b"gets a b c\r\n",
    b"set a 0 0 5\r\nhello\r\n",
    b"set a 1 60 0 noreply\r\n\r\n",
    b"append a 0 0 8\r\nget x\r\n\n\r\n",
    b"cas a 0 -1 2 18446744073709551615\r\n\xff\0\r\n",
    b"delete a noreply\r\n",
    b"incr a 1\r\n",
    b"touch a 10\r\n",
    b"gat 10 a b\r\n",
    b"flush_all\r\n",
    b"version\n",
    b"stats\r\n",
    b"verbosity 1\r\n",
    b"quit\r\n",
    b"nonsense\r\n",
    b"\r\n",
]


def parser_of(data: bytes) -> MessageParser[Request]:
    parser = MEMCACHED_SPEC.message_in(MEMCACHED_SPEC.params)
    parser.feed(data)
    return parser


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_is_one_request_however_it_is_split(sample: bytes) -> None:
    whole = parser_of(sample)
    request = whole.next_message()
    assert isinstance(request, Request)
    assert whole.next_message() is NEED_DATA
    assert not whole.partial
    split = parser_of(b"")
    for byte in sample:
        assert split.next_message() is NEED_DATA
        split.feed(bytes([byte]))
    assert split.next_message() == request


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b"  get   a  b ", Request(b"get", [b"a", b"b"])),
        (b"get noreply", Request(b"get", [b"noreply"])),
        (b"delete noreply", Request(b"delete", [b"noreply"])),
        (b"delete noreply noreply", Request(b"delete", [b"noreply"], b"", True)),
        (b"flush_all noreply", Request(b"flush_all", [], b"", True)),
        (b"set noreply 0 0 1\r\nx", Request(b"set", [b"noreply", b"0", b"0", b"1"], b"x")),
        (b"GET a", Request(b"GET", [b"a"])),
    ],
)
def test_words(line: bytes, request_: Request) -> None:
    assert parser_of(line + b"\r\n").next_message() == request_


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"set a 0 0\r\n", b"ERROR\r\n"),
        (b"set a 0 0 1 2 3\r\n", b"ERROR\r\n"),
        (b"set a 0 0 -1\r\n", b"CLIENT_ERROR bad command line format\r\n"),
        (b"set a 0 0 1_0\r\n", b"CLIENT_ERROR bad command line format\r\n"),
        (b"set a 0 0 2\r\nabc\r\n", b"CLIENT_ERROR bad data chunk\r\n"),
        (b"set a 0 0 5000000\r\n", b"SERVER_ERROR object too large for cache\r\n"),
        (b"get " + b"x" * 300_000, b"CLIENT_ERROR more than 262144 bytes\r\n"),
    ],
)
def test_where_nobody_knows_how_to_go_on(data: bytes, reply: bytes) -> None:
    parser = parser_of(data + b"get a\r\n")
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            parser.next_message()
        assert caught.value.reply == reply


def test_what_goes_wrong_inside_is_said_but_to_those_who_want_to_hear() -> None:
    assert MEMCACHED_SPEC.error_response is not None
    failed = MEMCACHED_SPEC.error_response(Request(b"get", [b"a"]), KeyError())
    assert failed == Reply([b"SERVER_ERROR internal error\r\n"])
    quiet = MEMCACHED_SPEC.error_response(Request(b"delete", [b"a"], b"", True), KeyError())
    assert quiet == Reply()


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000_000.0

    def __call__(self) -> float:
        return self.time


def test_items_expire() -> None:
    clock = Clock()
    store = Store(now=clock)
    for key, seconds in ((b"stays", 0), (b"gone", -1), (b"ten", 10), (b"month", MONTH)):
        store.put(key, b"x", 0, store.expiry(seconds))
    store.put(b"then", b"x", 0, store.expiry(1_000_000_020))
    there = {b"stays", b"ten", b"month", b"then"}
    for seconds, expires in ((9.9, b""), (0.2, b"ten"), (9.8, b""), (0.2, b"then")):
        clock.time += seconds
        there.discard(expires)
        keys = (b"stays", b"gone", b"ten", b"month", b"then")
        assert {key for key in keys if store.get(key) is not None} == there
    store.touch(b"stays", store.expiry(5))
    clock.time += 5
    assert store.get(b"stays") is None
    assert len(store) == 1
    store.delete(b"month")
    assert store.size == 0


def test_what_is_there_then_is_flushed() -> None:
    clock = Clock()
    store = Store(now=clock)
    store.put(b"before", b"x", 0, store.expiry(0))
    store.flush(10)
    store.put(b"meanwhile", b"x", 0, store.expiry(0))
    clock.time += 9
    assert store.get(b"before") is not None
    clock.time += 2
    store.put(b"after", b"x", 0, store.expiry(0))
    assert [store.get(key) is None for key in (b"before", b"meanwhile", b"after")] == [1, 1, 0]
    store.flush(0)
    assert store.get(b"after") is None
    assert (store.size, len(store)) == (0, 0)


def test_what_was_not_used_for_longest_makes_room() -> None:
    store = Store(limit=10_000)
    for number in range(5):
        store.put(b"%d" % number, bytes(1700), 0, store.expiry(0))
    assert store.evictions == 0
    store.get(b"0")
    store.put(b"5", bytes(1700), 0, store.expiry(0))
    assert [store.get(b"%d" % number) is None for number in range(6)] == [0, 1, 0, 0, 0, 0]
    assert store.evictions == 1
    assert store.size <= 10_000


def test_it_keeps_the_contract() -> None:
    check_protocol(MEMCACHED_SPEC, SAMPLES)
