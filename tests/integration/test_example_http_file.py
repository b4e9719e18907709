"""examples/http_file.py, with real clients."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest
from example_modules import load
from loopback import PATIENCE, RawClient, eventually, get

from protoserve_http import WFHttpServer

MIB = 1024 * 1024
CHANGED = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT, the date of the standard's examples


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        yield client


@contextlib.contextmanager
def serving_files(root: Path) -> Iterator[WFHttpServer]:
    example = load("http_file")
    example.ROOT = root  # type: ignore[attr-defined]
    with WFHttpServer(example.process).start("127.0.0.1", 0) as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "site" / "a b").mkdir(parents=True)
    (root / "index.html").write_bytes(b"<p>home")
    (root / "site" / "index.html").write_bytes(b"<p>site")
    (root / "site" / "a b" / "index.html").write_bytes(b"<p>blank")
    (root / "ten.txt").write_bytes(b"0123456789")
    os.utime(root / "ten.txt", (CHANGED, CHANGED))
    (root / "empty").touch()
    (root / "a b.txt").write_bytes(b"space")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    os.symlink(tmp_path / "secret", root / "link")
    os.symlink(tmp_path, root / "up")
    os.symlink(root / "ten.txt", root / "inside")
    os.symlink(root / "circle", root / "circle")
    (root / "leak").mkdir()
    os.symlink(tmp_path / "secret", root / "leak" / "index.html")
    return root


@pytest.fixture
def files(root: Path) -> Iterator[WFHttpServer]:
    with serving_files(root) as server:
        yield server


# -- which file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/../secret", "/%2e%2e/secret", "/..%2fsecret", "/sub/../../secret", "/link",
        "/up/secret", "//../secret", "/%2e%2e/root2/secret", "/..\\secret", "/a%00b",
        "/sub", "/none", "/circle", "/" + "x" * 300, "/%ff", "/sub/", "/none/",
        "/ten.txt/", "/ten.txt//", "/ten.txt%2f", "/ten.txt/.", "/ten.txt/x", "/ten.txt/x/..",
        "/leak", "/leak/", "/circle/x", "/up/", "/a%00b/",
    ],
)  # fmt: skip
def test_files_that_are_not_given_out(files: WFHttpServer, path: str) -> None:
    with RawClient(files.address) as client:
        reply = client.ask(path)
        assert reply.status == 404
        assert b"secret" not in reply.body


def test_files(files: WFHttpServer, client: httpx.Client) -> None:
    url = files.url
    assert client.get(url).text == "<p>home"
    assert client.get(url).headers["content-type"] == "text/html"
    assert client.get(f"{url}/a%20b.txt?x=y").text == "space"
    assert client.get(f"{url}/inside").text == "0123456789"
    assert client.get(f"{url}/empty").content == b""
    reply = client.head(f"{url}/ten.txt")
    assert (reply.status_code, reply.headers["content-length"]) == (200, "10")
    reply = client.post(f"{url}/ten.txt")
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD")


def test_the_index_of_a_folder(files: WFHttpServer, client: httpx.Client) -> None:
    assert client.get(f"{files.url}/site/").text == "<p>site"
    assert client.head(f"{files.url}/site/").headers["content-length"] == "7"
    assert client.get(f"{files.url}/site/a%20b/").text == "<p>blank"
    for path in ("/sub/../site/", "/site/a%20b/..", "/site//", "/site/."):
        with RawClient(files.address) as raw:
            assert raw.ask(path).body == b"<p>site", path


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/site", "/site/"),
        ("/site?q=1&r", "/site/?q=1&r"),
        ("/site/a%20b", "/site/a%20b/"),
        # Never to another host: a browser takes \ for /.
        ("//site", "/site/"),
        ("/\\evil.example/..%2fsite", "/site/"),
        ("/%5cevil.example/%2e%2e/site", "/site/"),
    ],
)
def test_a_folder_without_its_slash(files: WFHttpServer, path: str, location: str) -> None:
    with RawClient(files.address) as client:
        reply = client.ask(path)
        assert (reply.status, reply.headers["location"]) == (301, location)


def test_the_redirect_of_a_folder_leads_to_its_index(
    files: WFHttpServer, client: httpx.Client
) -> None:
    reply = client.get(f"{files.url}/site/a%20b", follow_redirects=True)
    assert (reply.text, reply.url.path) == ("<p>blank", "/site/a b/")


def test_names_that_are_no_utf8(files: WFHttpServer, root: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9")).write_bytes(b"latin")
    except OSError:
        pytest.skip("the file system has no such names")
    (root / "café").write_bytes(b"utf-8")
    with RawClient(files.address) as client:
        assert client.ask("/caf%E9").body == b"latin"
        assert client.ask("/caf%C3%A9").body == b"utf-8"


def test_what_is_no_regular_file(files: WFHttpServer, root: Path) -> None:
    os.mkfifo(root / "pipe")  # opening it would wait for a writer
    with RawClient(files.address) as client:
        assert client.ask("/pipe").status == 404


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; for a moment this process is somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are for one user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for inner in folder.iterdir():
        inner.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/file", "/folder/file", "/folder/", "/folder"])
def test_what_may_not_be_read(
    open_folder: Path, client: httpx.Client, method: str, path: str
) -> None:
    (open_folder / "file").write_bytes(b"secret")
    (open_folder / "file").chmod(0)
    (open_folder / "folder").mkdir()
    (open_folder / "folder" / "file").write_bytes(b"secret")
    (open_folder / "folder" / "index.html").write_bytes(b"secret")
    (open_folder / "folder").chmod(0)
    with serving_files(open_folder) as server, as_nobody():
        reply = client.request(method, server.url + path)
    assert reply.status_code == 403
    assert "secret" not in reply.text


# -- what it is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("data.gz", "application/gzip"),
        ("page.html.gz", "application/gzip"),
        ("data.tar.gz", "application/gzip"),
        ("data.tgz", "application/gzip"),
        ("data.bz2", "application/x-bzip2"),
        ("data.tar.xz", "application/x-xz"),
        ("data.Z", "application/octet-stream"),
        ("unknown", "application/octet-stream"),
        ("data:text,html", "application/octet-stream"),
        ("style.css", "text/css"),
    ],
)
def test_a_file_arrives_as_it_is(
    files: WFHttpServer, root: Path, client: httpx.Client, name: str, kind: str
) -> None:
    content = gzip.compress(b"what a client might unpack")
    (root / name).write_bytes(content)
    reply = client.get(f"{files.url}/{name}")
    assert reply.content == content
    assert reply.headers["content-type"] == kind
    assert "content-encoding" not in reply.headers


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_saves_a_packed_file_as_it_is(files: WFHttpServer, root: Path) -> None:
    content = gzip.compress(b"what a client might unpack")
    (root / "data.gz").write_bytes(content)
    command = ["curl", "-sS", "--noproxy", "*", "--compressed", f"{files.url}/data.gz"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == content


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_resumes_and_asks_for_what_is_newer(
    files: WFHttpServer, root: Path, tmp_path: Path
) -> None:
    def curl(*options: str) -> str:
        command = ["curl", "-sS", "--noproxy", "*", "-w", "%{http_code}", *options]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout

    url, saved = f"{files.url}/ten.txt", tmp_path / "saved"
    saved.write_bytes(b"0123")
    assert curl("-C", "-", "-o", str(saved), url) == "206"
    assert saved.read_bytes() == b"0123456789"
    etag = tmp_path / "etag"
    assert curl("--etag-save", str(etag), "-R", "-o", str(saved), url) == "200"
    assert saved.stat().st_mtime == CHANGED
    assert curl("-z", str(saved), "-o", "/dev/null", url) == "304"
    assert curl("--etag-compare", str(etag), "-o", "/dev/null", url) == "304"
    (root / "ten.txt").write_bytes(b"9876543210")
    assert curl("--etag-compare", str(etag), "-o", "/dev/null", url) == "200"


# -- ranges (RFC 9110, 14) ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "status", "body", "where"),
    [
        ("bytes=0-3", 206, "0123", "bytes 0-3/10"),
        ("bytes=4-", 206, "456789", "bytes 4-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("bytes=-30", 206, "0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, "89", "bytes 8-9/10"),
        ("bytes=9-9", 206, "9", "bytes 9-9/10"),
        ("bytes=10-", 416, "", "bytes */10"),
        ("bytes=-0", 416, "", "bytes */10"),
        ("bytes=5-2", 200, "0123456789", None),
        ("bytes=-", 200, "0123456789", None),
        ("bytes=0-1,3-4", 200, "0123456789", None),
        ("lines=0-1", 200, "0123456789", None),
        # A unit's case does not matter, a list may have empty members, numbers have no end.
        ("Bytes=0-3", 206, "0123", "bytes 0-3/10"),
        ("bytes=0-3 ,", 206, "0123", "bytes 0-3/10"),
        ("bytes=, 0-3", 206, "0123", "bytes 0-3/10"),
        ("bytes=8-" + "9" * 30, 206, "89", "bytes 8-9/10"),
        ("bytes=-" + "9" * 30, 206, "0123456789", "bytes 0-9/10"),
        ("bytes=" + "9" * 30 + "-", 416, "", "bytes */10"),
        ("bytes=8-" + "9" * 5000, 200, "0123456789", None),
        ("bytes=0-3-4", 200, "0123456789", None),
        ("bytes=0x0-3", 200, "0123456789", None),
        ("bytes=+0-3", 200, "0123456789", None),
        ("bytes=\xb2-", 200, "0123456789", None),
        ("bytes 0-3", 200, "0123456789", None),
    ],
)
def test_ranges(
    files: WFHttpServer,
    client: httpx.Client,
    value: str,
    status: int,
    body: str,
    where: str | None,
) -> None:
    headers = {b"Range": value.encode("latin-1")}
    reply = client.get(f"{files.url}/ten.txt", headers=headers)  # type: ignore[arg-type]
    assert (reply.status_code, reply.text) == (status, body)
    assert reply.headers.get("content-range") == where


@pytest.mark.parametrize(
    ("value", "status", "where"),
    [("bytes=0-", 416, "bytes */0"), ("bytes=-0", 416, "bytes */0"), ("bytes=-5", 200, None)],
)
def test_ranges_of_nothing(
    files: WFHttpServer, client: httpx.Client, value: str, status: int, where: str | None
) -> None:
    reply = client.get(f"{files.url}/empty", headers={"Range": value})
    assert (reply.status_code, reply.headers.get("content-range")) == (status, where)


def test_several_range_fields_are_a_list(files: WFHttpServer, client: httpx.Client) -> None:
    headers = [("Range", "bytes=0-1"), ("Range", "bytes=3-4")]
    assert client.get(f"{files.url}/ten.txt", headers=headers).text == "0123456789"


@pytest.mark.parametrize("value", ["bytes=0-3", "bytes=10-"])
def test_a_range_is_for_get(files: WFHttpServer, client: httpx.Client, value: str) -> None:
    reply = client.head(f"{files.url}/ten.txt", headers={"Range": value})
    assert (reply.status_code, reply.headers["content-length"]) == (200, "10")
    assert "content-range" not in reply.headers


def test_if_range(files: WFHttpServer, client: httpx.Client) -> None:
    url = f"{files.url}/ten.txt"
    reply = client.get(url)
    etag, modified = reply.headers["etag"], reply.headers["last-modified"]
    assert modified == "Sun, 06 Nov 1994 08:49:37 GMT"
    part, whole, none = "456", "0123456789", ""
    for condition, asked, status, body in [
        (etag, "bytes=4-6", 206, part),
        (modified, "bytes=4-6", 206, part),
        ("Sunday, 06-Nov-94 08:49:37 GMT", "bytes=4-6", 206, part),
        (etag, "bytes=10-", 416, none),
        # A condition that is false, or none: there is no Range.
        ('"other"', "bytes=4-6", 200, whole),
        ('"other"', "bytes=10-", 200, whole),
        ("W/" + etag, "bytes=4-6", 200, whole),
        (etag.strip('"'), "bytes=4-6", 200, whole),
        (f'"other", {etag}', "bytes=4-6", 200, whole),
        ("*", "bytes=4-6", 200, whole),
        ("Sun, 06 Nov 1994 08:49:36 GMT", "bytes=4-6", 200, whole),
        ("Sun, 06 Nov 1994 08:49:38 GMT", "bytes=4-6", 200, whole),
        ("Sun, 06 Nov 1994 08:49:38 GMT", "bytes=10-", 200, whole),
        ("Sun, 06 Nov 99999999999999 08:49:37 GMT", "bytes=10-", 200, whole),
        ("never", "bytes=10-", 200, whole),
    ]:
        reply = client.get(url, headers={"Range": asked, "If-Range": condition})
        assert (reply.status_code, reply.text) == (status, body), condition
        assert ("content-range" in reply.headers) == (status != 200)
    assert client.get(url, headers={"If-Range": etag}).status_code == 200


# -- preconditions (RFC 9110, 13) ------------------------------------------------------------


def test_if_modified_since(files: WFHttpServer, client: httpx.Client) -> None:
    url = f"{files.url}/index.html"
    modified = client.get(url).headers["last-modified"]
    reply = client.get(url, headers={"If-Modified-Since": modified})
    assert (reply.status_code, reply.content) == (304, b"")
    for since in ("Thu, 01 Jan 1970 00:00:01 GMT", "never"):
        assert client.get(url, headers={"If-Modified-Since": since}).status_code == 200


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Not in Greenwich."""
    monkeypatch.setenv("TZ", "XYZ-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    ("date", "status"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 304),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 304),
        ("Sun Nov  6 08:49:37 1994", 304),
        ("Sun Nov 16 08:49:37 1994", 304),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 200),
        ("Sunday, 06-Nov-94 08:49:36 GMT", 200),
        ("Sun Nov  6 08:49:36 1994", 200),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 304),
        # What is no date is ignored, and so is one that no file has.
        ("Mon, 01 Jan 0001 00:00:00 GMT", 200),
        ("Mon Jan  1 00:00:00 0031", 200),
        ("Sun, 06 Nov 99999999999999 08:49:37 GMT", 200),
        ("Sun, 06 Nov 19940 08:49:37 GMT", 200),
        ("Sun, 31 Jun 2030 08:49:37 GMT", 200),
        ("Sun, 06 Nov 2030 24:49:37 GMT", 200),
        ("Sun, 06 Nov 2030 08:49:37", 200),
        ("Sun, 06 Nov 2030 08:49:37 +0000", 200),
        ("Sun, 06 Nov 2030 08:49:37 +9999999999999999", 200),
        ("06 Nov 2030 08:49:37 GMT", 200),
        ("Sun, 06 Nov 2030", 200),
        ("2030-11-06T08:49:37Z", 200),
        ("Sun, 06 Nov 2030 08:49:37 GMT, Sun, 06 Nov 2030 08:49:37 GMT", 200),
        ("1894999999", 200),
        ("", 200),
    ],
)
def test_dates(files: WFHttpServer, client: httpx.Client, date: str, status: int) -> None:
    for method in ("GET", "HEAD"):
        headers = {"If-Modified-Since": date}
        reply = client.request(method, f"{files.url}/ten.txt", headers=headers)
        assert reply.status_code == status
    headers = {"If-Unmodified-Since": date, "Range": "bytes=0-3"}
    reply = client.get(f"{files.url}/ten.txt", headers=headers)
    assert reply.status_code == (412 if ":36" in date else 206)


def test_two_dates_are_none(files: WFHttpServer, client: httpx.Client) -> None:
    headers = [("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37 GMT")] * 2
    assert client.get(f"{files.url}/ten.txt", headers=headers).status_code == 200


SAME = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"If-None-Match": "ETAG"}, 304),
        ({"If-None-Match": "W/ETAG"}, 304),
        ({"If-None-Match": '"a, b", W/"c",ETAG'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": "W/*"}, 200),
        ({"If-None-Match": ""}, 200),
        # It says more than the date, which is ignored beside it.
        ({"If-None-Match": '"other"', "If-Modified-Since": SAME}, 200),
        ({"If-None-Match": "", "If-Modified-Since": SAME}, 200),
        ({"If-None-Match": "ETAG", "If-Modified-Since": EARLIER}, 304),
        ({"If-None-Match": "ETAG", "Range": "bytes=10-"}, 304),
        ({"If-None-Match": '"other"', "Range": "bytes=0-3"}, 206),
        ({"If-Match": "ETAG"}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"other", ETAG', "Range": "bytes=0-3"}, 206),
        ({"If-Match": "W/ETAG"}, 412),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": '"other"', "Range": "bytes=0-3"}, 412),
        ({"If-Match": '"other"', "If-None-Match": "ETAG"}, 412),
        ({"If-Match": "ETAG", "If-None-Match": "ETAG"}, 304),
        ({"If-Match": "ETAG", "If-Unmodified-Since": EARLIER}, 200),
        ({"If-Unmodified-Since": SAME}, 200),
        ({"If-Unmodified-Since": EARLIER}, 412),
        ({"If-Unmodified-Since": EARLIER, "If-None-Match": "ETAG"}, 412),
        ({"If-Unmodified-Since": SAME, "If-Modified-Since": SAME}, 304),
    ],
)
def test_preconditions(
    files: WFHttpServer, client: httpx.Client, fields: dict[str, str], status: int
) -> None:
    url = f"{files.url}/ten.txt"
    etag = client.get(url).headers["etag"]
    fields = {name: value.replace("ETAG", etag) for name, value in fields.items()}
    assert client.get(url, headers=fields).status_code == status
    reply = client.head(url, headers=fields)
    assert reply.status_code == (200 if status == 206 else status)
    if status in (200, 304):
        assert reply.headers["etag"] == etag


def test_preconditions_need_a_file(files: WFHttpServer, client: httpx.Client) -> None:
    for fields in ({"If-Match": "*"}, {"If-None-Match": "*"}, {"If-Unmodified-Since": EARLIER}):
        assert client.get(f"{files.url}/none", headers=fields).status_code == 404


def test_a_changed_file_has_another_tag(
    files: WFHttpServer, root: Path, client: httpx.Client
) -> None:
    url = f"{files.url}/ten.txt"
    before = client.get(url).headers["etag"]
    os.utime(root / "ten.txt", ns=(CHANGED * 10**9, CHANGED * 10**9 + 1))
    assert client.get(url).headers["etag"] != before


@pytest.mark.parametrize("changed", [2**33, 10**15, -(10**12)])
def test_times_that_no_clock_had(
    files: WFHttpServer, root: Path, client: httpx.Client, changed: int
) -> None:
    try:
        os.utime(root / "ten.txt", (changed, changed))
    except OSError:
        pytest.skip("the file system has no such time")
    reply = client.get(f"{files.url}/ten.txt")
    assert (reply.status_code, reply.text) == (200, "0123456789")
    # RFC 9110, 8.8.2.1: not later than the reply's own date.
    assert seconds_of(reply.headers["last-modified"]) <= time.time()


def seconds_of(value: str) -> int:
    """Found by writing dates instead of reading them, which is the example's part."""
    now = int(time.time())
    for seconds in (*range(now - 60, now + 2), 0):
        if formatdate(seconds, usegmt=True) == value:
            return seconds
    raise AssertionError(value)


# -- what it costs -----------------------------------------------------------------------


def test_large_file_is_not_loaded(
    files: WFHttpServer, client: httpx.Client, tmp_path: Path
) -> None:
    with (tmp_path / "root" / "large").open("wb") as file:
        file.truncate(50 * MIB)
    statm = Path("/proc/self/statm")
    page = os.sysconf("SC_PAGE_SIZE")
    size, growth = 0, 0
    with client.stream("GET", f"{files.url}/large") as reply:
        before = int(statm.read_text().split()[1]) if statm.exists() else 0
        for piece in reply.iter_raw(MIB):
            size += len(piece)
            if statm.exists():
                growth = max(growth, (int(statm.read_text().split()[1]) - before) * page)
    assert size == 50 * MIB
    assert growth < 12 * MIB  # the client's own pieces are among it


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_files_are_closed(files: WFHttpServer, root: Path, client: httpx.Client) -> None:
    def open_files() -> list[str]:
        names = []
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                names.append(os.readlink(entry))
        return [name for name in names if name.startswith(str(root))]

    with (root / "large").open("wb") as file:
        file.truncate(50 * MIB)
    url = f"{files.url}/ten.txt"
    for fields in ({}, {"Range": "bytes=0-3"}, {"Range": "bytes=10-"}, {"If-None-Match": "*"},
                   {"If-Match": '"other"'}):  # fmt: skip
        client.get(url, headers=fields)
        client.head(url, headers=fields)
    eventually(lambda: not open_files())
    with RawClient(files.address) as raw:
        raw.send(get("/large"))
        assert raw.sock.recv(1000)
        assert open_files() == [str(root / "large")]
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: not open_files())


def test_a_file_that_shrinks_is_cut(files: WFHttpServer, root: Path) -> None:
    with (root / "large").open("wb") as file:
        file.truncate(50 * MIB)
    with RawClient(files.address) as raw:
        raw.send(get("/large"))
        assert raw.sock.recv(1000)
        os.truncate(root / "large", MIB)
        with pytest.raises(ConnectionResetError):  # an end would look like the whole
            raw.rest()
