"""Two servers in one process: they share the scheduler, its threads and its poller.

Run it with ``python examples/two_servers.py``; Ctrl-C stops both.
"""

import signal

from protoserve_http import WFHttpServer, WFHttpTask


def site(task: WFHttpTask) -> None:
    task.resp.write(f"the site, {task.req.path}\n")


def admin(task: WFHttpTask) -> None:
    task.resp.write("everything is fine\n")


def main() -> None:
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # for sigwait; threads inherit it
    first = WFHttpServer(site).start("127.0.0.1", 0)
    with first, WFHttpServer(admin).start("127.0.0.1", 0) as second:
        print(f"the site is on {first.url}, the admin's page on {second.url}", flush=True)
        signal.sigwait(signals)
        # Shut all down, then wait for all: they drain at the same time.
        first.shutdown()
        second.shutdown()
        first.wait_finish()
        second.wait_finish()


if __name__ == "__main__":
    main()
