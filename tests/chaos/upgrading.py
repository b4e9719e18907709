"""HTTP that goes on as talk: with what was sent behind the request, and a greeting."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dialogues import Dialogue, Exchange, HttpDialogue, new_token
from servers import HttpManner
from talking import TalkDialogue, talk_spec, talker
from work import LARGE, STREAMS, Work

from protoserve_http import HTTP_SPEC, WFHttpServer

_WITH_BODY = (*STREAMS, *LARGE)


# -- the server --------------------------------------------------------------------------


class UpgradeManner(HttpManner):
    """Instead of an answer the other protocol, where that is asked for."""

    def __init__(self, work: Work, params: dict[str, Any], *, coroutines: bool) -> None:
        self._spec = talk_spec(work)
        self._params = self._spec.params.replace(**params)
        self._talker = talker(work, coroutines=coroutines)

    def give(self, task: Any, data: bytes) -> None:
        if task.req.upgrade is None:
            super().give(task, data)
            return
        task.resp.headers["X-Token"] = data.decode()
        task.upgrade(self._spec, self._talker, self._params)


def upgrade_server(work: Work, params: dict[str, Any], *, coroutines: bool) -> WFHttpServer:
    """Whose handlers are functions or coroutines, in both protocols."""
    manner = UpgradeManner(work, params, coroutines=coroutines)

    def function(task: Any) -> None:
        _, kind, token = task.req.path.split("/")
        work.handle(task, kind, token.encode() + task.req.body, manner)

    async def coroutine(task: Any) -> None:
        _, kind, token = task.req.path.split("/")
        await work.handle_in_loop(task, kind, token.encode() + task.req.body, manner)

    return WFHttpServer(coroutine if coroutines else function, HTTP_SPEC.params.replace(**params))


# -- its clients -------------------------------------------------------------------------


@dataclass(frozen=True)
class Upgrade(Exchange):
    """The request after which talk is spoken, unless its handler raises."""

    def __str__(self) -> str:
        return f"upgrade:{self.kind}"


@dataclass(frozen=True)
class Talked(Exchange):
    """A request in the other protocol."""

    def __str__(self) -> str:
        return f"talk:{self.kind}"


class UpgradeDialogue(Dialogue):
    """Speaks the one, and then the other."""

    def __init__(self, sock: socket.socket, abandoned: Callable[[], bool]) -> None:
        super().__init__(sock, abandoned)
        self._http = HttpDialogue(sock, abandoned)
        self._talk = TalkDialogue(sock, abandoned)
        # What has come is there for all three.
        self._http._held = self._talk._held = self._held
        self._now: Dialogue = self._http
        self._asked = False

    @property
    def speaker(self) -> Dialogue:
        return self._now

    def exchange(self, rng: random.Random, kinds: tuple[str, ...]) -> Exchange:
        if self._asked:
            plain = self._talk.exchange(rng, kinds)
            return Talked(plain.kind, plain.token, plain.request)
        few = tuple(kind for kind in kinds if kind not in _WITH_BODY)
        if not few or rng.random() < 0.5:
            return self._http.exchange(rng, kinds)
        kind, token = rng.choice(few), new_token()
        self._asked = kind != "raise"
        head = f"GET /{kind}/{token.decode()} HTTP/1.1\r\nHost: a\r\n"
        fields = "Connection: upgrade\r\nUpgrade: talk\r\n\r\n"
        return Upgrade(kind, token, (head + fields).encode())

    def _next(self, asked: Sequence[Exchange]) -> Exchange:
        exchange = asked[0]
        if isinstance(exchange, Upgrade) and exchange.kind != "raise":
            if self._http.switch(exchange):
                self._now = self._talk
                self._talk.greeting()
            return exchange
        return self._now.answer(asked)

    def _unasked(self) -> None:
        self._now._unasked()
