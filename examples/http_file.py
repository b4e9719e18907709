"""Static files: ``Range``, ``If-Modified-Since``, ``HEAD``; large files are never loaded whole.

Run it with ``ROOT=public protoserve run http examples.http_file:process``.
"""

import mimetypes
import os
import re
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote

from protoserve_http import WFHttpTask

ROOT = Path(os.environ.get("ROOT", "."))
PIECE = 64 * 1024


def find(path: str) -> Path | None:
    """The file that a path means; ``None`` for none, and for one outside the root."""
    name = unquote(path).lstrip("/") or "index.html"
    if "\0" in name:
        return None
    root = ROOT.resolve()
    try:
        found = (root / name).resolve()  # follows links, so that those do not lead out either
        return found if found.is_relative_to(root) and found.is_file() else None
    except (OSError, RuntimeError):  # a name that is too long, links in a circle
        return None


def unmodified(since: str, modified: float) -> bool:
    try:
        return int(modified) <= parsedate_to_datetime(since).timestamp()
    except (TypeError, ValueError):
        return False  # RFC 9110, 13.1.3: a date that is none is ignored


def byte_range(value: str, size: int) -> tuple[int, int] | None:
    """The one range that is asked for, ``None`` for a field to ignore (RFC 9110, 14.2).

    Raises ``ValueError`` for one that cannot be satisfied.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", value.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last n bytes
        start, end = max(0, size - int(match[2])), size
    else:
        start = int(match[1])
        end = min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size or start >= end:
        raise ValueError(value)
    return start, end


def pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (piece := file.read(min(PIECE, end - start))):
            start += len(piece)
            yield piece


def process(task: WFHttpTask) -> None:
    req, resp = task.req, task.resp
    if req.method not in ("GET", "HEAD"):
        resp.status = 405
        resp.headers["Allow"] = "GET, HEAD"
        return
    path = find(req.path)
    if path is None:
        resp.status = 404
        resp.write("no such file\n")
        return
    stat = path.stat()
    resp.headers["Last-Modified"] = formatdate(stat.st_mtime, usegmt=True)
    resp.headers["Accept-Ranges"] = "bytes"
    if unmodified(req.headers.get("If-Modified-Since", ""), stat.st_mtime):
        resp.status = 304
        return
    start, end = 0, stat.st_size
    try:
        asked = byte_range(req.headers.get("Range", ""), stat.st_size)
    except ValueError:
        resp.status = 416
        resp.headers["Content-Range"] = f"bytes */{stat.st_size}"
        return
    if asked is not None and "If-Range" not in req.headers:
        start, end = asked
        resp.status = 206
        resp.headers["Content-Range"] = f"bytes {start}-{end - 1}/{stat.st_size}"
    kind, encoding = mimetypes.guess_type(path.name)
    resp.headers["Content-Type"] = kind or "application/octet-stream"
    if encoding is not None:
        resp.headers["Content-Encoding"] = encoding
    resp.headers["Content-Length"] = str(end - start)
    if req.method == "GET":
        resp.body = pieces(path, start, end)
