"""What one would write by hand: an asyncio protocol on uvloop around hiredis. ``APP PORT``.

It knows the few commands that are measured, and none of limits, timeouts or errors.
"""

import asyncio
import sys
from collections.abc import Callable

import hiredis
import uvloop

store: dict[bytes, bytes] = {}


def set_(args: list[bytes]) -> bytes:
    store[args[1]] = args[2]
    return b"+OK\r\n"


def get(args: list[bytes]) -> bytes:
    value = store.get(args[1])
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


COMMANDS: dict[bytes, Callable[[list[bytes]], bytes]] = {
    b"SET": set_,
    b"GET": get,
    b"CONFIG": lambda args: b"*0\r\n",
    b"PING": lambda args: b"+PONG\r\n",
}


class Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.reader = hiredis.Reader()

    def data_received(self, data: bytes) -> None:
        reader = self.reader
        reader.feed(data)
        replies = []
        while (args := reader.gets()) is not False:
            command = COMMANDS.get(args[0].upper())
            replies.append(command(args) if command else b"-ERR unknown command\r\n")
        self.transport.write(b"".join(replies))


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[2]))
    await server.serve_forever()


uvloop.run(main())
