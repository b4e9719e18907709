"""Which fields of a protocol's parameters are options of the command line.

A protocol whose ``ProtocolSpec.params`` is of a subclass of ``ServerParams`` has an option for
each field that this adds.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from protoserve.errors import ConfigError
from protoserve.params import ServerParams

RESERVED: Final = frozenset(
    {
        "access_log",
        "application",
        "bind",
        "command",
        "help",
        "log_level",
        "logging",
        "parser",
        "plugin",
        "plugins",
        "protocol",
    }
)
"""What ``protoserve run`` itself means by an option or a word; no parameter is called so."""

_KINDS: Final = (bool, float, int, str)  # one of several: the first that is among them


@dataclass(frozen=True, slots=True)
class Option:
    """The option of one field."""

    name: str
    """The field's."""
    kind: type
    """``bool``, ``float`` (seconds), ``int`` or ``str``."""
    optional: bool
    """Whether ``None``, no limit, may be given."""
    default: object
    help: str
    choices: tuple[str, ...] = ()
    """The only values that may be given; empty for any."""

    @property
    def flag(self) -> str:
        """As it is written on the command line."""
        return f"--{self.name.replace('_', '-')}"


def own_options(params: ServerParams) -> list[Option]:
    """The options for the fields that the class of ``params`` adds to ``ServerParams``; their
    defaults are the values of ``params``, their help is ``metadata["help"]`` of the field.

    A field is an option when its type is ``bool``, ``int``, ``float``, ``str`` or a ``Literal``
    of texts, each perhaps ``| None``. Others are set from Python only, as are those whose name
    begins with an underscore and those that are no argument of the class.

    Raises :class:`~protoserve.errors.ConfigError` where the class is no data class with these
    fields, and for names that are taken.
    """
    kind = type(params)
    known = {field.name for field in fields(ServerParams)}
    present = {field.name for field in fields(params)}
    hints = _hints(kind)
    for name, hint in hints.items():
        if name not in present and not name.startswith("_") and not _of_class(hint):
            raise ConfigError(
                f"{kind.__name__}.{name} is no field: put @dataclass(frozen=True, slots=True, "
                f"kw_only=True) above class {kind.__name__}, or mark it ClassVar"
            )
    found: dict[str, Option] = {}
    for field in fields(params):
        if field.name in known or field.name.startswith("_") or not field.init:
            continue
        option = _option(
            field.name,
            hints[field.name],
            getattr(params, field.name),
            str(field.metadata.get("help", "")),
        )
        if option is not None:
            found[option.flag] = option
            if field.name in RESERVED:
                raise ConfigError(
                    f"{kind.__name__}.{field.name}: {option.flag} is protoserve's own; "
                    "give the field another name"
                )
    for option in found.values():
        negative = f"--no-{option.flag[2:]}"
        if option.kind is bool and negative in found:
            raise ConfigError(
                f"{kind.__name__}.{found[negative].name}: {negative} is what "
                f"{kind.__name__}.{option.name} is switched off with; give the field another name"
            )
    return list(found.values())


def base_options(helps: dict[str, str]) -> list[Option]:
    """Those of ``ServerParams``, with these words of help."""
    hints = get_type_hints(ServerParams)
    options = [
        _option(field.name, hints[field.name], field.default, helps[field.name])
        for field in fields(ServerParams)
    ]
    return [option for option in options if option is not None]


def _hints(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except Exception as error:
        raise ConfigError(
            f"the annotations of {kind.__name__} cannot be read "
            f"({type(error).__name__}: {error}); import what they name at run time, too"
        ) from error


def _of_class(hint: Any) -> bool:
    return "ClassVar" in str(get_origin(hint) or hint)


def _option(name: str, hint: Any, default: object, text: str) -> Option | None:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    optional = type(None) in kinds
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
        values = get_args(kinds[0])
        if not all(isinstance(value, str) for value in values):
            return None
        return Option(name, str, optional, default, text, values)
    if not kinds or any(kind not in _KINDS for kind in kinds):
        return None
    return Option(name, next(k for k in _KINDS if k in kinds), optional, default, text)
