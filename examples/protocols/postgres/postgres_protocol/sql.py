"""As much of SQL as is needed to tell statements apart: SQLite does the rest."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# Whatever has an end that is missing goes to the end of the text: SQLite says what is wrong.
_TOKEN: Final = re.compile(
    r"""
    (?P<blank>\s++ | --[^\n]*+ | /\*.*?(?:\*/|\Z))
  | '[^']*+'? | "[^"]*+"? | `[^`]*+`? | \[[^\]]*+\]?
  | \$(?P<number>[0-9]++)
  | (?P<word>[^\W\d]\w*+)
  | (?P<end>;)
  | .
    """,
    re.VERBOSE | re.DOTALL,
)
_TWO_WORDS: Final = {"CREATE", "DROP", "ALTER"}
_BETWEEN: Final = {"TEMP", "TEMPORARY", "UNIQUE", "VIRTUAL"}
_CHANGES: Final = ("INSERT", "UPDATE", "DELETE", "REPLACE")
_BEGINNINGS: Final = {"BEGIN", "START"}
_ENDS: Final = {"COMMIT": "COMMIT", "END": "COMMIT", "ROLLBACK": "ROLLBACK", "ABORT": "ROLLBACK"}
_NAMES_A_SAVEPOINT: Final = {"SAVEPOINT", "RELEASE"}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. ``words``: those outside of quotes, in capitals; ``parameters``: the highest
    number of ``$1`` and so on."""

    text: str
    words: tuple[str, ...]
    parameters: int

    @property
    def verb(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def transaction(self) -> str:
        """``BEGIN``, ``COMMIT``, ``ROLLBACK``, ``SAVEPOINT``, ``RELEASE`` or ``ROLLBACK TO``
        of those that lead transactions; empty for others."""
        if self.verb in _BEGINNINGS:
            return "BEGIN"
        if self.verb in _NAMES_A_SAVEPOINT:
            return self.verb
        if self.verb == "ROLLBACK" and "TO" in self.words:
            return "ROLLBACK TO"
        return _ENDS.get(self.verb, "")

    @property
    def change(self) -> str:
        """Which of those that change rows it is; empty for others."""
        if self.verb == "WITH":
            # REPLACE is a function, too.
            return next((word for word in self.words if word in _CHANGES[:3]), "")
        return self.verb if self.verb in _CHANGES else ""

    @property
    def has_rows(self) -> bool:
        """Whether it is answered by rows."""
        if self.change:
            return "RETURNING" in self.words
        return self.verb in ("SELECT", "VALUES", "WITH", "EXPLAIN")

    def tag(self, rows: int) -> str:
        """What CommandComplete says of it, with so many rows."""
        if self.change:
            verb = "INSERT" if self.change == "REPLACE" else self.change
            return f"INSERT 0 {rows}" if verb == "INSERT" else f"{verb} {rows}"
        if self.has_rows:
            return f"SELECT {rows}"
        if self.verb in _TWO_WORDS:
            what = next((word for word in self.words[1:] if word not in _BETWEEN), "")
            return f"{self.verb} {what}".rstrip()
        return self.verb


def split(text: str) -> Iterator[Statement]:
    """The statements of a text; what is between them, or only comment, is none. The body of
    a trigger is taken apart too: there are no triggers here."""
    start = 0
    words: list[str] = []
    parameters = 0
    empty = True
    for token in _TOKEN.finditer(text):
        if token["end"] is not None:
            if not empty:
                yield Statement(text[start : token.start()], tuple(words), parameters)
            start, words, parameters, empty = token.end(), [], 0, True
        elif token["blank"] is None:
            empty = False
            if token["word"] is not None:
                words.append(token["word"].upper())
            elif token["number"] is not None:
                parameters = max(parameters, int(token["number"][:6]))
    if not empty:
        yield Statement(text[start:], tuple(words), parameters)
