"""What a client says. Text is UTF-8; bytes that are not, are kept as lone surrogates, so that
it is the statement that fails, and not the connection."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Startup:
    """The first message of a session. ``minor``: the protocol's, 0 of 3.0."""

    minor: int
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Comes alone, on a connection of its own: end what that session is doing."""

    process: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class Query:
    """Statements, and the parameters of none."""

    text: str


@dataclass(frozen=True, slots=True)
class Parse:
    """Keep this statement; ``types`` are OIDs, 0 for "find out"."""

    name: str
    text: str
    types: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bind:
    """Keep this statement with these parameters. Formats: 0 for text, 1 for binary; none for
    all text, one for all, or one for each."""

    portal: str
    statement: str
    formats: tuple[int, ...]
    values: tuple[bytes | None, ...]
    result_formats: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Describe:
    """What are the columns of a statement (``S``) or portal (``P``)?"""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Execute:
    """Run a portal, up to ``limit`` rows; 0 for all."""

    portal: str
    limit: int


@dataclass(frozen=True, slots=True)
class Close:
    """Forget a statement (``S``) or portal (``P``)."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Sync:
    """The end of what belongs together: answered by ReadyForQuery."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Send what there is. Replies are not held back here, so there is nothing to do."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """The client leaves."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A message of the protocol that this server has no answer to, by its name."""

    name: str


Request: TypeAlias = (
    Startup
    | Cancel
    | Query
    | Parse
    | Bind
    | Describe
    | Execute
    | Close
    | Sync
    | Flush
    | Terminate
    | Unsupported
)
