"""Numbers that users give to tasks."""

from __future__ import annotations

from protoserve.errors import ConfigError


def check_number(what: str, number: object, least: int = 0, otherwise: str = "") -> None:
    """Raise :class:`~protoserve.errors.ConfigError`, which shows ``what``, unless ``number`` is
    a whole number from ``least`` on. ``otherwise`` is what else would have been right."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ConfigError(f"{what}: expected a whole number from {least} on{otherwise}")
