"""The example store on protoserve with its defaults: ``APP PORT``."""

import sys

from examples.redis_kv import commands
from protoserve_redis import WFRedisServer

with WFRedisServer(commands).start("127.0.0.1", int(sys.argv[2])) as server:
    server.wait_for_signal()
