"""fakeredis' TCP server: ``APP PORT``."""

import sys

from fakeredis import TcpFakeServer

TcpFakeServer(("127.0.0.1", int(sys.argv[2]))).serve_forever()
