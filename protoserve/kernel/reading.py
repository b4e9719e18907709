"""Reading ahead: what arrives while a request is served.

Functions over a :class:`~protoserve.kernel.entry.CommConnEntry`, called with its lock.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from protoserve.events import CloseReason
from protoserve.kernel.ending import TURN_READS, body_failed, drop_announced, miss, refuse
from protoserve.kernel.exchanges import COMING
from protoserve.kernel.intake import Fault
from protoserve.kernel.life import SHUT

if TYPE_CHECKING:
    from protoserve.kernel.entry import CommConnEntry


def read_ahead(entry: CommConnEntry) -> None:
    """Read while a request is served: its body, pipelined requests, and the peer's
    leaving."""
    intake = entry.intake
    params = entry.protocol.params
    arriving = intake.arriving
    if arriving is None or arriving.over:
        if (
            params.request_size_limit is not None
            and intake.bytes_in - intake.mark > params.request_size_limit
        ):
            return  # enough waits in memory
    elif arriving.session is None:
        return  # how much it may have is yet to be known
    output = entry.output
    for _ in range(TURN_READS):
        if not intake.fill(params.max_pipelined):
            if miss(entry):  # reading pauses, and would not find out
                return
            break
        if not intake.readable or intake.eof or output.size >= output.limit:
            break
        if arriving is not None and not (arriving.over or arriving.wants_more()):
            break
        entry.receive()
        if entry.life.rung >= SHUT:
            return
    else:
        intake.fill(params.max_pipelined)
        if intake.readable:
            entry.resume_later()
    if intake.arriving is not None:
        look_at_body(entry)


def look_at_body(entry: CommConnEntry) -> None:
    """Bytes have been read: has the rest of the body become impossible?"""
    intake = entry.intake
    arriving = intake.arriving
    if arriving is None:
        return
    if arriving.over:
        # What follows belongs to other requests.
        intake.arriving = None
        intake.mark = intake.bytes_in
        entry.deadline.body_ended()
        return
    error: BaseException
    if intake.queue and type(intake.queue[-1]) is Fault:
        error = intake.queue.pop().error
    elif intake.eof:
        error = ConnectionResetError(errno.ECONNRESET, "the peer left in the middle of it")
    else:
        return
    exchanges = entry.exchanges
    session = exchanges.session
    if exchanges.collecting is None and session is not COMING:
        body_failed(entry, error)
        return
    drop_announced(entry, error)
    if isinstance(error, ConnectionResetError):
        intake.drop()
        entry.life.end(CloseReason.PEER_LEFT)  # after the replies before it
    else:
        refuse(entry, error)
