"""protoserve: servers of any request/response protocol.

You write how your protocol's bytes become a request and how a response becomes bytes;
you get a production server. See ``README.md`` for a tour.
"""

from protoserve.build import BUILD
from protoserve.errors import (
    BindError,
    ConfigError,
    PluginError,
    ProtocolError,
    ProtoserveError,
    UsageError,
)
from protoserve.events import CloseReason
from protoserve.hookspecs import hookimpl
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.connection import CommConnection
from protoserve.kernel.incoming import IncomingStream
from protoserve.kernel.life import CallbackHandle
from protoserve.kernel.native import NativeParser
from protoserve.kernel.scheduler import CommScheduler, get_scheduler
from protoserve.kernel.service import CommService
from protoserve.kernel.session import CommSession, TaskState
from protoserve.kernel.subtask import SubTask
from protoserve.kernel.transport import Transport
from protoserve.params import SERVER_PARAMS_DEFAULT, ServerParams
from protoserve.plugins import InstalledPlugin, installed_plugins, load_protocol
from protoserve.protocol import (
    HOLD,
    NEED_DATA,
    Arriving,
    Buffer,
    Feedback,
    Hold,
    MessageOut,
    MessageParser,
    NeedData,
    Piece,
    ProtocolSpec,
)
from protoserve.server import WFServer, WFServerBase
from protoserve.tasks.conditional import ConditionalTask, conditional, signal_by_name
from protoserve.tasks.coroutine import CoroutineTask, coroutine
from protoserve.tasks.counter import (
    CounterTask,
    MailboxTask,
    count_by_name,
    counter,
    mailbox,
    send_by_name,
)
from protoserve.tasks.dynamic import DynamicTask, RepeaterTask, dynamic, repeater
from protoserve.tasks.go import GoTask, go
from protoserve.tasks.graph import GraphNode, GraphTask, graph
from protoserve.tasks.network import WFNetworkTask, WFServerTask
from protoserve.tasks.parallel import ParallelWork, parallel
from protoserve.tasks.pool import ResourcePool, ResourceTask
from protoserve.tasks.result import EmptyTask, ResultTask, empty
from protoserve.tasks.selector import SelectorTask, selector
from protoserve.tasks.series import SeriesWork, series_of
from protoserve.tasks.server_series import Processor
from protoserve.tasks.timer import TimerTask, cancel_by_name, timer
from protoserve.tasks.wait_group import WaitGroup

__all__ = [
    "BUILD",
    "HOLD",
    "NEED_DATA",
    "SERVER_PARAMS_DEFAULT",
    "Arriving",
    "BindError",
    "Buffer",
    "CallbackHandle",
    "CloseReason",
    "CommConnection",
    "CommScheduler",
    "CommService",
    "CommSession",
    "Communicator",
    "ConditionalTask",
    "ConfigError",
    "CoroutineTask",
    "CounterTask",
    "DynamicTask",
    "EmptyTask",
    "Feedback",
    "GoTask",
    "GraphNode",
    "GraphTask",
    "Hold",
    "IncomingStream",
    "InstalledPlugin",
    "MailboxTask",
    "MessageOut",
    "MessageParser",
    "NativeParser",
    "NeedData",
    "ParallelWork",
    "Piece",
    "PluginError",
    "Processor",
    "ProtocolError",
    "ProtocolSpec",
    "ProtoserveError",
    "RepeaterTask",
    "ResourcePool",
    "ResourceTask",
    "ResultTask",
    "SelectorTask",
    "SeriesWork",
    "ServerParams",
    "SubTask",
    "TaskState",
    "TimerTask",
    "Transport",
    "UsageError",
    "WFNetworkTask",
    "WFServer",
    "WFServerBase",
    "WFServerTask",
    "WaitGroup",
    "cancel_by_name",
    "conditional",
    "coroutine",
    "count_by_name",
    "counter",
    "dynamic",
    "empty",
    "get_scheduler",
    "go",
    "graph",
    "hookimpl",
    "installed_plugins",
    "load_protocol",
    "mailbox",
    "parallel",
    "repeater",
    "selector",
    "send_by_name",
    "series_of",
    "signal_by_name",
    "timer",
]
