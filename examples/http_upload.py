"""Uploads of any size: stores what is PUT as it comes, and replies with its SHA-256.

Run it with ``python examples/http_upload.py [port [folder]]``, then for example
``curl -T file http://127.0.0.1:8888/``. Who is refused is told so before sending anything,
where the client waits for ``100 Continue``, as curl does.
"""

import hashlib
import re
import sys
from pathlib import Path

from protoserve import CommConnection
from protoserve_http import HTTP_SPEC, HttpServerTask, WFHttpServer, WFHttpTask

LARGEST = 4 * 1024**3
NAME = re.compile(r"/([\w-][\w.-]{0,99})", re.ASCII)

folder = Path()


class UploadServer(WFHttpServer):
    def new_session(self, seq: int, conn: CommConnection) -> HttpServerTask:
        if conn.arriving is not None and conn.arriving.request.method == "PUT":
            conn.arriving.size_limit = LARGEST  # a larger Content-Length is a 413 at once
            conn.arriving.receive_timeout = None  # it may take hours, but never be silent
        return super().new_session(seq, conn)


def process(task: WFHttpTask) -> None:
    resp, name, stream = task.resp, NAME.fullmatch(task.req.path), task.req.stream
    if task.req.method != "PUT":
        resp.status = 405
        resp.headers["Allow"] = "PUT"
    elif name is None or (folder / name[1]).exists():
        resp.status = 403 if name is None else 409
    else:
        part, digest = folder / f".{name[1]}.{id(task)}", hashlib.sha256()
        try:
            with part.open("xb") as file:
                for piece in stream or ():  # waits for the client, and the client for the disk
                    digest.update(piece)
                    file.write(piece)
            part.rename(folder / name[1])
        finally:
            part.unlink(missing_ok=True)  # the client left, was too slow, sent too much
        resp.status = 201
        resp.write(digest.hexdigest() + "\n")


if __name__ == "__main__":
    port, folder = int((sys.argv[1:] or [8888])[0]), Path(*sys.argv[2:3])
    params = HTTP_SPEC.params.replace(stream_bodies=True)
    with UploadServer(process, params).start(port) as server:
        print(f"listening on {server.url}", flush=True)
        server.wait_for_signal()
