"""What a server says, as bytes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

TEXT: Final = 25
"""The OID of the type ``text``, which every column has here: SQLite's have no type."""


def message(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def text(value: str) -> bytes:
    """With its end. What UTF-8 cannot say is a question mark, and NUL ends it before."""
    return value.partition("\0")[0].encode(errors="replace") + b"\0"


def encode_error(
    sqlstate: str, words: str, *, severity: str = "ERROR", kind: bytes = b"E"
) -> bytes:
    """An ErrorResponse, or as kind ``N`` a NoticeResponse."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": words}
    return message(kind, *(name.encode() + text(value) for name, value in fields.items()), b"\0")


@dataclass(slots=True)
class Reply:
    """The messages of one reply, in order; each method adds one."""

    data: bytearray = field(default_factory=bytearray)

    def add(self, kind: bytes, *content: bytes) -> None:
        self.data += message(kind, *content)

    def take(self) -> bytes:
        """All so far, which is then the caller's to send."""
        data = bytes(self.data)
        self.data.clear()
        return data

    def authentication_ok(self) -> None:
        self.add(b"R", bytes(4))

    def parameters(self, parameters: Mapping[str, str]) -> None:
        for name, value in parameters.items():
            self.add(b"S", text(name), text(value))

    def negotiate_version(self, minor: int, options: Sequence[str]) -> None:
        """Of the protocol the server speaks no newer one, and has none of these options. The
        documentation says the minor version; what PostgreSQL says, and clients read, is both."""
        self.add(
            b"v",
            (3 << 16 | minor).to_bytes(4, "big"),
            len(options).to_bytes(4, "big"),
            *(text(option) for option in options),
        )

    def key(self, process: int, secret: bytes) -> None:
        """What a ``Cancel`` will have to say."""
        self.add(b"K", process.to_bytes(4, "big"), secret)

    def ready(self, status: str) -> None:
        """``I``: idle, ``T``: in a transaction, ``E``: in one that has failed."""
        self.add(b"Z", status.encode())

    def columns(self, names: Sequence[str], formats: Sequence[int] = ()) -> None:
        """RowDescription. Text is the same in both formats."""
        described = []
        for number, name in enumerate(names):
            asked = formats[number if len(formats) > 1 else 0] if formats else 0
            described += [
                text(name),
                bytes(6),  # of no table
                TEXT.to_bytes(4, "big"),
                (-1).to_bytes(2, "big", signed=True),  # of any length
                (-1).to_bytes(4, "big", signed=True),
                asked.to_bytes(2, "big"),
            ]
        self.add(b"T", len(names).to_bytes(2, "big"), *described)

    def row(self, values: Sequence[bytes | None]) -> None:
        content = [len(values).to_bytes(2, "big")]
        for value in values:
            if value is None:
                content.append(b"\xff\xff\xff\xff")
            else:
                content += [len(value).to_bytes(4, "big"), value]
        self.add(b"D", *content)

    def parameter_types(self, types: Iterable[int]) -> None:
        oids = [oid.to_bytes(4, "big") for oid in types]
        self.add(b"t", len(oids).to_bytes(2, "big"), *oids)

    def complete(self, tag: str) -> None:
        self.add(b"C", text(tag))

    def empty_query(self) -> None:
        self.add(b"I")

    def parse_complete(self) -> None:
        self.add(b"1")

    def bind_complete(self) -> None:
        self.add(b"2")

    def close_complete(self) -> None:
        self.add(b"3")

    def no_data(self) -> None:
        self.add(b"n")

    def suspended(self) -> None:
        self.add(b"s")

    def error(self, sqlstate: str, words: str, severity: str = "ERROR") -> None:
        self.data += encode_error(sqlstate, words, severity=severity)

    def warning(self, sqlstate: str, words: str) -> None:
        self.data += encode_error(sqlstate, words, severity="WARNING", kind=b"N")
