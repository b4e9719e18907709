"""fastpysgi with one of the WSGI applications: ``APP PORT``."""

import sys

import fastpysgi

from benchmarks.peers import wsgi

fastpysgi.server.tcp_nodelay = 1
fastpysgi.run(getattr(wsgi, sys.argv[1]), "127.0.0.1", int(sys.argv[2]))
