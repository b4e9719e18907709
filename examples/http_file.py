"""Static files: ``Range``, conditional requests, ``HEAD``; large files are never loaded whole.

Run it with ``ROOT=public protoserve run http examples.http_file:process``.
"""

import errno
import mimetypes
import os
import posixpath
import re
import time
from collections.abc import Iterator
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

from protoserve_http import HttpRequest, WFHttpTask

ROOT = Path(os.environ.get("ROOT", "."))
PIECE = 64 * 1024

# What a path may be wrong about; any other error is the server's own trouble: a 500.
MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}

# A packed file is sent as it is: with Content-Encoding, clients would unpack it.
PACKED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}

# RFC 9110, 5.6.7: the format in use and the two obsolete ones. They are all GMT. (Of a year
# with zeros in front, parsedate would make one of our time.)
HTTP_DATE = re.compile(
    r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [1-9][0-9]{3} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
    r"|[A-Z][a-z]{5,8}, [0-9]{2}-[A-Z][a-z]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [1-9][0-9]{3}"
)
ENTITY_TAG = re.compile(r'(W/)?("[!#-~\x80-\xff]*")')  # RFC 9110, 8.8.3


def find(name: str) -> Path:
    """What a name means below the root. Raises ``OSError`` when that is outside of it."""
    root = ROOT.resolve()
    found = (root / name.lstrip("/")).resolve()  # follows links: those do not lead out either
    if not found.is_relative_to(root):
        raise FileNotFoundError(errno.ENOENT, "outside the root", name)
    return found


def field(req: HttpRequest, name: str) -> str | None:
    """A header field's value, ``None`` for none; several are one list (RFC 9110, 5.3)."""
    return ", ".join(req.headers.getall(name)) if name in req.headers else None


def seconds(date: str | None) -> int | None:
    """A date of HTTP as Unix time; ``None`` for what is none, which is to be ignored."""
    if date is None or not HTTP_DATE.fullmatch(date):
        return None
    try:
        return int(parsedate_to_datetime(date).replace(tzinfo=UTC).timestamp())
    except (TypeError, ValueError, OverflowError):  # the 31st of June
        return None


def listed(etag: str, tags: str, *, weak: bool) -> bool:
    """Whether a list of entity tags has ours; ``weak``: also marked as weak (8.8.3.2)."""
    return tags == "*" or any(
        tag == etag and (weak or not mark) for mark, tag in ENTITY_TAG.findall(tags)
    )


def judge(req: HttpRequest, etag: str, modified: int) -> int:
    """The status that the preconditions lead to, in their order of RFC 9110, 13.2.2."""
    if (tags := field(req, "If-Match")) is not None:
        if not listed(etag, tags, weak=False):
            return 412
    elif (date := seconds(field(req, "If-Unmodified-Since"))) is not None and modified > date:
        return 412
    if (tags := field(req, "If-None-Match")) is not None:
        if listed(etag, tags, weak=True):
            return 304
    elif (date := seconds(field(req, "If-Modified-Since"))) is not None and modified <= date:
        return 304
    return 200


def byte_range(value: str, size: int) -> tuple[int, int] | None:
    """Start and end of the one range that is asked for; ``None`` for a field to ignore, as
    one with several ranges may be (RFC 9110, 14.2).

    Raises ``ValueError`` for one that cannot be satisfied.
    """
    match = re.fullmatch(r"bytes=[ \t,]*([0-9]{0,4000})-([0-9]{0,4000})[ \t,]*", value, re.I)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last n bytes
        if int(match[2]) and not size:
            return None  # all of nothing, for which Content-Range has no words
        start, end = max(0, size - int(match[2])), size
    else:
        start = int(match[1])
        end = min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size:
        raise ValueError(value)
    return start, end


def content_type(path: Path) -> str:
    kind, packed = mimetypes.guess_type(str(path))
    if packed is not None:
        kind = PACKED.get(packed)
    return kind or "application/octet-stream"


def pieces(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (piece := file.read(min(PIECE, end - start))):
        start += len(piece)
        yield piece


def refuse(task: WFHttpTask, status: int, text: str) -> None:
    task.resp.status = status
    task.resp.headers["Content-Type"] = "text/plain; charset=utf-8"
    task.resp.write(text + "\n")


def process(task: WFHttpTask) -> None:
    req, resp = task.req, task.resp
    if req.method not in ("GET", "HEAD"):
        resp.headers["Allow"] = "GET, HEAD"
        return refuse(task, 405, "files can only be read")
    asked = os.fsdecode(unquote_to_bytes(req.path))
    name = posixpath.normpath("/" + asked.lstrip("/"))
    slash = asked.endswith(("/", "/.", "/.."))
    try:
        path = find(name)
        mode = path.stat().st_mode
        if is_folder := S_ISDIR(mode):
            path = find(name + "/index.html")
            mode = path.stat().st_mode
        if not S_ISREG(mode) or (slash and not is_folder):
            return refuse(task, 404, "no such file")
        if is_folder and not slash:  # else the links of its page would lead astray
            resp.status = 301
            query = "?" + req.query if req.query else ""
            resp.headers["Location"] = quote(os.fsencode(name)) + "/" + query
            return None
        file = path.open("rb")
    except PermissionError:
        return refuse(task, 403, "this is not for everybody")
    except (RuntimeError, ValueError):  # links in a circle, a NUL
        return refuse(task, 404, "no such file")
    except OSError as error:
        if error.errno not in MISSING:
            raise
        return refuse(task, 404, "no such file")
    task.set_callback(lambda _: file.close())  # when the reply is sent, or cannot be
    return send(task, file, content_type(path))


def send(task: WFHttpTask, file: BinaryIO, kind: str) -> None:
    """As much of the file as the request asks for."""
    req, resp = task.req, task.resp
    stat = os.fstat(file.fileno())
    size = stat.st_size
    # Never a date to come (RFC 9110, 8.8.2.1).
    modified = min(max(stat.st_mtime_ns // 10**9, 0), int(time.time()))
    etag = f'"{stat.st_mtime_ns:x}-{size:x}"'
    resp.headers["Last-Modified"] = formatdate(modified, usegmt=True)
    resp.headers["ETag"] = etag
    resp.headers["Accept-Ranges"] = "bytes"
    resp.status = judge(req, etag, modified)
    if resp.status == 412:
        return refuse(task, 412, "the file is another one by now")
    if resp.status == 304:
        return None
    start, end = 0, size
    value, condition = field(req, "Range"), field(req, "If-Range")
    if (
        req.method == "GET"  # of all methods, a range is for this one (14.2)
        and value is not None
        and (condition is None or condition == etag or seconds(condition) == modified)
    ):
        try:
            part = byte_range(value, size)
        except ValueError:
            resp.status = 416
            resp.headers["Content-Range"] = f"bytes */{size}"
            return None
        if part is not None:
            start, end = part
            resp.status = 206
            resp.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    resp.headers["Content-Type"] = kind
    resp.headers["Content-Length"] = str(end - start)
    if req.method == "GET":
        resp.body = pieces(file, start, end)
    return None
