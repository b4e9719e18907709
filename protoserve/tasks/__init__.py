"""What a user puts in a series, and the tasks of requests.

The public names are those of ``protoserve``. The functions are here as well, because some
modules share their names: ``from protoserve.tasks import timer`` gives the function.
"""

from protoserve.tasks.conditional import conditional, signal_by_name
from protoserve.tasks.coroutine import coroutine
from protoserve.tasks.counter import count_by_name, counter, mailbox, send_by_name
from protoserve.tasks.dynamic import dynamic, repeater
from protoserve.tasks.go import go
from protoserve.tasks.graph import graph
from protoserve.tasks.parallel import parallel
from protoserve.tasks.result import empty
from protoserve.tasks.selector import selector
from protoserve.tasks.series import series_of
from protoserve.tasks.timer import cancel_by_name, timer

__all__ = [
    "cancel_by_name",
    "conditional",
    "coroutine",
    "count_by_name",
    "counter",
    "dynamic",
    "empty",
    "go",
    "graph",
    "mailbox",
    "parallel",
    "repeater",
    "selector",
    "send_by_name",
    "series_of",
    "signal_by_name",
    "timer",
]
