"""The echo page, made the same way for every Python peer."""

from collections.abc import Iterable
from html import escape


def render(line: str, fields: Iterable[str]) -> str:
    """The page for a request line and header fields of the form ``name: value``."""
    body = escape("\n".join((line, *fields)), quote=False).replace("\n", "</p>\n<p>")
    return f"<!DOCTYPE html>\n<title>Echo</title>\n<p>{body}</p>\n"
