"""waitress with one of the WSGI applications and 20 threads: ``APP PORT``."""

import logging
import sys

import waitress

from benchmarks.peers import wsgi

# It logs every request that has to wait for a thread.
logging.getLogger("waitress.queue").setLevel(logging.ERROR)
waitress.serve(
    getattr(wsgi, sys.argv[1]),
    host="127.0.0.1",
    port=int(sys.argv[2]),
    threads=20,
    connection_limit=1000,
    backlog=2048,
)
