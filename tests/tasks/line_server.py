"""A toy protocol as a plugin would make it: a line in, a line out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from line_service import LineParser

from protoserve import ProtocolSpec, ServerParams, WFServer, WFServerTask


class Answer:
    """The response: lines that are sent joined."""

    def __init__(self, text: str = "") -> None:
        self.text: Any = text


def encode(answer: Answer) -> bytes:
    """Raises for a text that is none, as a serialiser does."""
    return answer.text.encode() + b"\n"  # type: ignore[no-any-return]


def error_response(request: Any, error: BaseException) -> Answer:
    return Answer("ERR internal error")


Task = WFServerTask[str, Answer]
Server = WFServer[str, Answer]


def line_spec(**changes: Any) -> ProtocolSpec[str, Answer]:
    fields: dict[str, Any] = {
        "name": "line",
        "message_in": lambda params: LineParser(),
        "message_out": encode,
        "response": Answer,
        "error_response": error_response,
    }
    return ProtocolSpec(**{**fields, **changes})


class LineServer(Server):
    """A server that is never started: the engine in memory serves it.

    ``alive`` counts what it would wait for; 1 is the listener's.
    """

    def __init__(self, process: Callable[[Task], object], spec: Any = None, **params: Any) -> None:
        super().__init__(spec or line_spec(), process, ServerParams(**params))
        self.retain()

    @property
    def alive(self) -> int:
        return self._references


def echo(task: Task) -> None:
    task.resp.text = task.req
