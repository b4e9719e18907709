"""RequestError: what a client did wrong, as the status and the line of the farewell."""

from __future__ import annotations


class RequestError(Exception):
    """Ends the parsing of a connection; ``status`` is that of the farewell."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
