"""bjoern with one of the WSGI applications: ``APP PORT``."""

import sys

import bjoern

from benchmarks.peers import wsgi

bjoern.run(getattr(wsgi, sys.argv[1]), "127.0.0.1", int(sys.argv[2]))
