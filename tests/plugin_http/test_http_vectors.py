"""Each wire vector on file gives what is expected, alone and in company. That it does however
it is split is in test_http_conformance."""

from __future__ import annotations

from typing import Any

import pytest
from http_exchanges import Outcome, every_byte, parse, vectors

GOOD = b"GET /good HTTP/1.1\r\nHost: good.example\r\n\r\n"


def load(kind: str) -> list[Any]:
    return [
        pytest.param(data, expected, id=name) for name, (data, expected) in vectors(kind).items()
    ]


def check_requests(outcome: Outcome, expected: list[dict[str, Any]]) -> None:
    assert outcome.error is None
    assert len(outcome.requests) == len(expected)
    for request, facts in zip(outcome.requests, expected, strict=True):
        for name, value in facts.items():
            found = getattr(request, name)
            if name in ("headers", "trailers"):
                found = [list(field) for field in found.items()]
            elif name == "body":
                found = found.decode("latin-1")
            assert found == value, name


@pytest.mark.parametrize(("data", "expected"), load("valid"))
class TestValid:
    def test_replays(self, data: bytes, expected: dict[str, Any]) -> None:
        whole = parse([data])
        check_requests(whole, expected["requests"])
        assert not whole.partial

    def test_after_a_good_request(self, data: bytes, expected: dict[str, Any]) -> None:
        for pieces in ([GOOD + data], [GOOD, data], every_byte(GOOD + data)):
            outcome = parse(pieces)
            assert outcome.requests.pop(0).target == "/good"
            check_requests(outcome, expected["requests"])

    def test_followed_by_a_request(self, data: bytes, expected: dict[str, Any]) -> None:
        stays = expected["requests"][-1]["keep_alive"]
        for pieces in ([data + GOOD], [data, GOOD], every_byte(data + GOOD)):
            outcome = parse(pieces)
            if stays:
                assert outcome.requests.pop().target == "/good"
            check_requests(outcome, expected["requests"])


@pytest.mark.parametrize(("data", "expected"), load("invalid"))
class TestInvalid:
    def test_replays(self, data: bytes, expected: dict[str, Any]) -> None:
        whole = parse([data])
        assert whole.error is not None
        assert whole.status == expected["status"], whole.error
        assert expected["says"] in whole.error
        assert len(whole.requests) == expected["good"]
        assert not whole.partial

    def test_after_good_requests(self, data: bytes, expected: dict[str, Any]) -> None:
        for pieces in ([GOOD * 3 + data], [GOOD * 3, data], every_byte(GOOD * 3 + data)):
            outcome = parse(pieces)
            assert len(outcome.requests) == 3 + expected["good"]
            assert outcome.status == expected["status"]

    def test_nothing_follows(self, data: bytes, expected: dict[str, Any]) -> None:
        for pieces in ([data + GOOD], [data, GOOD], every_byte(data + GOOD)):
            outcome = parse(pieces)
            assert len(outcome.requests) == expected["good"]
            assert outcome.status == expected["status"]

    def test_farewell_is_complete(self, data: bytes, expected: dict[str, Any]) -> None:
        outcome = parse([data])
        head, _, body = outcome.reply.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 %d " % expected["status"])
        fields = dict(line.split(b": ", 1) for line in lines[1:])
        assert set(fields) == {b"Date", b"Content-Type", b"Connection", b"Content-Length"}
        assert fields[b"Connection"] == b"close"
        assert fields[b"Content-Type"].startswith(b"text/plain")
        assert int(fields[b"Content-Length"]) == len(body)
        assert body.decode() == f"{outcome.error}\n"


def first_words(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and version of the first line, as far as it has them."""
    line = data.partition(b"\r\n")[0]
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    return method, target, version


def judgement(data: bytes) -> tuple[int, str | None, int]:
    """How many requests were good, and what was wrong with the next; in whole and in bytes."""
    whole, split = parse([data]), parse(every_byte(data))
    assert whole.facts == split.facts
    return len(whole.requests), whole.error, whole.status


INVALID = [param.values[0] for param in load("invalid")]


@pytest.mark.parametrize("method", [b"BREW", b"get", b"VERSION-CONTROL"])
@pytest.mark.parametrize("data", [x for x in INVALID if first_words(x)[0] in (b"GET", b"POST")])
def test_unknown_methods_are_judged_as_others(data: bytes, method: bytes) -> None:
    known = first_words(data)[0]
    assert judgement(method + data[len(known) :]) == judgement(data)


@pytest.mark.parametrize("minor", [b"2", b"9"])
@pytest.mark.parametrize("data", [x for x in INVALID if first_words(x)[2] == b"HTTP/1.1"])
def test_higher_versions_are_judged_as_1_1(data: bytes, minor: bytes) -> None:
    line, end, rest = data.partition(b"\r\n")
    assert judgement(line[:-1] + minor + end + rest) == judgement(data)


def test_there_are_vectors() -> None:
    assert len(load("valid")) >= 70
    assert len(load("invalid")) >= 130
