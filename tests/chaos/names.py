"""Every kind of server, by name: the next one is a row here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from calling import CallDialogue, call_server
from dialogues import Dialogue, HttpDialogue, LineDialogue, RedisDialogue
from servers import http_server, line_server, redis_server
from talking import TalkDialogue, talk_server
from upgrading import UpgradeDialogue, upgrade_server
from uploading import UploadDialogue, upload_server
from work import Work

from protoserve import WFServerBase


class Speech(NamedTuple):
    """A server, and what its clients say and must be told."""

    serve: Callable[[Work, dict[str, Any]], WFServerBase]
    dialogue: type[Dialogue]


SPEECHES = {
    "http": Speech(partial(http_server, coroutines=False), HttpDialogue),
    "async": Speech(partial(http_server, coroutines=True), HttpDialogue),
    "loop": Speech(partial(http_server, coroutines=True), HttpDialogue),
    "lines": Speech(line_server, LineDialogue),
    "redis": Speech(redis_server, RedisDialogue),
    "talk": Speech(partial(talk_server, coroutines=False), TalkDialogue),
    "talk-async": Speech(partial(talk_server, coroutines=True), TalkDialogue),
    "calls": Speech(partial(call_server, coroutines=False), CallDialogue),
    "calls-async": Speech(partial(call_server, coroutines=True), CallDialogue),
    "upload": Speech(partial(upload_server, coroutines=False), UploadDialogue),
    "upload-async": Speech(partial(upload_server, coroutines=True), UploadDialogue),
    "upgrade": Speech(partial(upgrade_server, coroutines=False), UpgradeDialogue),
    "upgrade-async": Speech(partial(upgrade_server, coroutines=True), UpgradeDialogue),
}
"""``async`` has coroutines in a loop of the engine's, ``loop`` in one of the user's; ``talk``
has a greeting, a farewell, and requests after which the rest is read as the reply says;
``calls`` has several requests of a connection in flight; ``upload`` handles requests while
their bodies arrive; ``upgrade`` goes on from HTTP as ``talk``."""

NAMES = tuple(SPEECHES)
