"""protoserve: servers of any request/response protocol.

You write how your protocol's bytes become a request and how a response becomes bytes;
you get a production server. See ``README.md`` for a tour.
"""

from protoserve.errors import (
    BindError,
    ConfigError,
    PluginError,
    ProtocolError,
    ProtoserveError,
    UsageError,
)
from protoserve.hookspecs import hookimpl
from protoserve.kernel.connection import CommConnection
from protoserve.kernel.scheduler import CommScheduler, get_scheduler
from protoserve.kernel.session import CommService, CommSession, TaskState
from protoserve.kernel.subtask import SubTask
from protoserve.params import SERVER_PARAMS_DEFAULT, ServerParams
from protoserve.plugins import InstalledPlugin, installed_plugins, load_protocol
from protoserve.protocol import (
    NEED_DATA,
    Buffer,
    Feedback,
    MessageOut,
    MessageParser,
    NeedData,
    ProtocolSpec,
)
from protoserve.server import WFServer, WFServerBase
from protoserve.tasks.network import Processor, WFNetworkTask, WFServerTask
from protoserve.tasks.series import SeriesWork

__all__ = [
    "NEED_DATA",
    "SERVER_PARAMS_DEFAULT",
    "BindError",
    "Buffer",
    "CommConnection",
    "CommScheduler",
    "CommService",
    "CommSession",
    "ConfigError",
    "Feedback",
    "InstalledPlugin",
    "MessageOut",
    "MessageParser",
    "NeedData",
    "PluginError",
    "Processor",
    "ProtocolError",
    "ProtocolSpec",
    "ProtoserveError",
    "SeriesWork",
    "ServerParams",
    "SubTask",
    "TaskState",
    "UsageError",
    "WFNetworkTask",
    "WFServer",
    "WFServerBase",
    "WFServerTask",
    "get_scheduler",
    "hookimpl",
    "installed_plugins",
    "load_protocol",
]
