"""What ProtocolSpec tells of itself, and refuses."""

from __future__ import annotations

import pydoc
import re
from dataclasses import fields
from typing import Any

import pytest

from protoserve import ConfigError, ProtocolSpec, framing


def test_help_shows_the_text_of_each_field() -> None:
    shown = pydoc.render_doc(ProtocolSpec, renderer=pydoc.plaintext)
    for field in fields(ProtocolSpec):
        assert re.search(rf"``{field.name}``: \S", shown), field.name


@pytest.mark.parametrize(
    ("function", "meant"),
    [
        (framing.lines, "lines()"),
        (framing.varint_prefixed, "varint_prefixed()"),
        (framing.delimited, "delimited(...)"),
        (framing.prefixed, "prefixed(...)"),
        (framing.fixed, "fixed(...)"),
    ],
)
def test_forgotten_brackets(function: Any, meant: str) -> None:
    message = f"protocol 'a': message_in is a function that .*; did you mean {re.escape(meant)}\\?"
    with pytest.raises(ConfigError, match=message):
        ProtocolSpec(name="a", message_in=function, message_out=print, response=object)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None, "2"])
def test_in_flight_is_a_number_of_requests(value: Any) -> None:
    with pytest.raises(ConfigError, match="in_flight"):
        ProtocolSpec(
            name="a", message_in=print, message_out=print, response=object, in_flight=value
        )


@pytest.mark.parametrize("field", ["greeting", "farewell", "error_response"])
def test_what_is_to_be_called_can_be(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be callable, or None, not bytes"):
        ProtocolSpec(
            name="a", message_in=print, message_out=print, response=object, **{field: b"220"}
        )


@pytest.mark.parametrize(
    ("field", "function", "text"),
    [
        ("message_in", lambda: None, r"message_in\(params\), which .*<lambda>\(\) does not"),
        ("message_out", lambda: b"", r"message_out\(response\), .* too many positional arguments"),
        ("response", lambda text: text, r"response\(\), .* missing a required argument: 'text'"),
        ("error_response", lambda error: b"", r"error_response\(request, error\)"),
        ("greeting", lambda: b"", r"greeting\(connection\)"),
        ("farewell", lambda reason: b"", r"farewell\(connection, reason\)"),
        ("summary", lambda request: {}, r"summary\(request, response\)"),
        ("handler_key", lambda: 1, r"handler_key\(request\)"),
        ("server", lambda process: None, r"server\(process, params\)"),
    ],
)
def test_what_is_called_takes_what_it_is_called_with(field: str, function: Any, text: str) -> None:
    fields = {"message_in": print, "message_out": print, "response": object, field: function}
    with pytest.raises(ConfigError, match=text):
        ProtocolSpec(name="a", **fields)


def test_what_has_no_signature_is_believed() -> None:
    assert ProtocolSpec(name="a", message_in=print, message_out=print, response=bytes)
