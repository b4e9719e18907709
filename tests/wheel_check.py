"""Is what is installed here compiled, and does it serve? For wheels, in a bare environment."""

import http.client

import protoserve
from protoserve_http import WFHttpServer, WFHttpTask


def process(task: WFHttpTask) -> None:
    task.resp.write(f"{task.req.method} {task.req.path}")


def main() -> None:
    if protoserve.BUILD != "compiled":
        raise SystemExit(f"this is the {protoserve.BUILD} build")
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        client = http.client.HTTPConnection(*server.address, timeout=10)
        for path in ("/a", "/b"):
            client.request("GET", path)
            said = client.getresponse().read().decode()
            if said != f"GET {path}":
                raise SystemExit(f"it said {said!r}")
        client.close()
    print(f"protoserve {protoserve.BUILD} serves")


if __name__ == "__main__":
    main()
