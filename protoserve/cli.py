"""The command ``protoserve``: run a server, list the plugins.

Exit codes: 0 for a clean end, 2 for a request that makes no sense (options, protocol,
application), 3 when the server could not start.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import importlib
import inspect
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from importlib import metadata
from types import ModuleType
from typing import Any, Final, get_args, get_type_hints

from protoserve.errors import BindError, ConfigError, PluginError
from protoserve.events import Event, RequestFinished
from protoserve.params import ServerParams
from protoserve.plugins import describe, installed_plugins, load_protocol
from protoserve.server import WFServer

CLEAN: Final = 0
USAGE: Final = 2
NOT_STARTED: Final = 3
# The shell's convention for programs that a signal ended.
_INTERRUPTED: Final = 128 + signal.SIGINT
_NO_READER: Final = 128 + signal.SIGPIPE

# Only this machine, until somebody decides otherwise; the port of the article's demo.
DEFAULT_BIND: Final = "127.0.0.1:8888"

_BIND_FORMS: Final = "HOST:PORT, [IPV6]:PORT, PORT (every IPv4 interface) or unix:/path"

logger = logging.getLogger("protoserve")
_access_logger = logging.getLogger("protoserve.access")

_PARAMETERS: Final = {
    "max_connections": "connections open at once",
    "peer_response_timeout": "longest silence within one step of a request or reply",
    "receive_timeout": "deadline of one whole request",
    "receive_rate": "bytes of a request for which its deadline grows by a second",
    "keep_alive_timeout": "how long an idle connection stays; 0 closes after each reply",
    "send_timeout": "deadline of one whole reply",
    "ssl_accept_timeout": "deadline of the TLS handshake",
    "shutdown_timeout": "how long running work may go on at the stop",
    "request_size_limit": "bytes of one request",
    "max_pipelined": "requests that may wait on one connection",
    "handler_threads": "handlers that may block at the same time",
    "unsent_limit": "unsent bytes at which a connection is no longer read",
    "compute_threads": "functions of go that may run at the same time",
    "backlog": "connections that wait to be accepted",
}


class _CommandError(Exception):
    """Ends the command with one line on stderr and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv``, by default the program's; returns the exit code.

    Raises ``SystemExit`` where argparse does: for ``--help``, ``--version`` and options
    that cannot be parsed. Main thread only, because of signals.
    """
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    with _logging(args.log_level):
        try:
            return command(args)
        except _CommandError as error:
            print(f"protoserve: {error}", file=sys.stderr)
            return error.code
        except KeyboardInterrupt:
            return _INTERRUPTED
        except BrokenPipeError:  # `protoserve plugins | head -1`
            # What is still buffered has nowhere to go; Python would complain at its exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _NO_READER


# -- the command line ------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="protoserve",
        description="Servers of any request/response protocol.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"protoserve {_version()}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="what is logged to stderr (default: warning); debug has the tracebacks of "
        "plugins and applications that cannot be imported",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands, common)
    plugins = commands.add_parser(
        "plugins",
        parents=[common],
        allow_abbrev=False,
        help="list the installed plugins",
        description="List the installed plugins, usable or not.",
    )
    plugins.add_argument("--json", action="store_true", help="print JSON instead of a table")
    plugins.set_defaults(command=_plugins)
    return parser


def _add_run(commands: Any, common: argparse.ArgumentParser) -> None:
    run = commands.add_parser(
        "run",
        parents=[common],
        allow_abbrev=False,
        usage="protoserve run [options] PROTOCOL MODULE:CALLABLE",
        help="serve an application",
        description="Serve MODULE:CALLABLE, which is called with the task of each request. "
        "The current directory is on the import path. SIGINT and SIGTERM stop gracefully; "
        "a second one cuts that short.",
        epilog="exit codes: 0 clean end, 2 wrong use, 3 could not start",
    )
    run.add_argument("protocol", metavar="PROTOCOL", help="a name that `protoserve plugins` lists")
    run.add_argument(
        "application", metavar="MODULE:CALLABLE", help="for example examples.http_echo:process"
    )
    run.add_argument(
        "--bind",
        type=_bind,
        default=_bind(DEFAULT_BIND),
        metavar="ADDRESS",
        help=f"{_BIND_FORMS}; port 0 picks a free one (default: {DEFAULT_BIND})",
    )
    run.add_argument(
        "--access-log", action="store_true", help="log one line to stderr for each request"
    )
    group = run.add_argument_group(
        "parameters",
        "Where a protocol has a default of its own, that holds instead of the one shown. "
        "Sizes may end in KiB, MiB or GiB.",
    )
    hints = get_type_hints(ServerParams)
    for field in fields(ServerParams):
        kinds = get_args(hints[field.name]) or (hints[field.name],)
        optional = type(None) in kinds
        if float in kinds:
            read, metavar = _seconds, "SECONDS"
        elif "size" in field.name:
            read, metavar = _size, "SIZE"
        else:
            read, metavar = _count, "N"
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=functools.partial(_optional, read) if optional else read,
            # Only what was given overrides the protocol's default.
            default=argparse.SUPPRESS,
            metavar=metavar,
            help=f"{_PARAMETERS[field.name]}{'; none for no limit' if optional else ''} "
            f"(default: {_shown(field.default, metavar)})",
        )
    run.set_defaults(command=_run)


def _version() -> str:
    try:
        return metadata.version("protoserve")
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "(not installed)"


def _shown(value: Any, metavar: str) -> str:
    if value is None:
        return "none"
    return f"{value / 1024**2:g}MiB" if metavar == "SIZE" else f"{value:g}"


def _bind(text: str) -> tuple[Any, ...]:
    """The arguments of ``WFServerBase.start``."""
    if text.startswith("unix:"):
        if text == "unix:":
            raise argparse.ArgumentTypeError(f"{text!r}: the path is missing")
        return (text,)
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected {_BIND_FORMS}, with a port from 0 to 65535"
        )
    if host.startswith("[") and host.endswith("]") and len(host) > 2:
        return (host[1:-1], int(port))
    if ":" in host or "[" in host or "]" in host:
        raise argparse.ArgumentTypeError(
            f"{text!r}: an IPv6 address goes in brackets, for example [::1]:8888"
        )
    return (host, int(port)) if host else (int(port),)


def _optional(read: Callable[[str], Any], text: str) -> Any:
    return None if text.lower() == "none" else read(text)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds") from None


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number") from None


_SIZE: Final = re.compile(r"(\d+)\s*(?:([kmg])(?:ib)?)?\Z", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def _size(text: str) -> int:
    match = _SIZE.match(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected bytes as a whole number, or with KiB, MiB or GiB, "
            "for example 16MiB"
        )
    number, unit = match.groups()
    return int(number) * _UNITS[(unit or "").lower()]


# -- run -------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    with _stdout_is_ours():
        try:
            spec = load_protocol(args.protocol)
        except PluginError as error:
            raise _CommandError(USAGE, str(error)) from error
    process = _load_application(args.application)
    given = {f.name: getattr(args, f.name) for f in fields(ServerParams) if f.name in args}
    try:
        params = spec.params.replace(**given)
        make = spec.server
        server = WFServer(spec, process, params) if make is None else make(process, params)
        if args.access_log:
            _access_logger.setLevel(logging.INFO)
            server.subscribe(_log_access)
        server.start(*args.bind)
    except ConfigError as error:
        raise _CommandError(USAGE, str(error)) from error
    except BindError as error:
        raise _CommandError(NOT_STARTED, error.strerror or str(error)) from error
    except Exception as error:  # out of descriptors or threads, for example
        logger.debug("the server could not start", exc_info=True)
        raise _CommandError(NOT_STARTED, f"could not start: {describe(error)}") from error
    with server:
        server.wait_for_signal(ready=lambda: print(f"listening on {server.url}", flush=True))
    return CLEAN


@contextlib.contextmanager
def _stdout_is_ours() -> Iterator[None]:
    """Keeps what plugins print when they are imported out of the command's output."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _load_application(text: str) -> Callable[[Any], object]:
    name, _, attribute = text.partition(":")
    if not name or not attribute:
        raise _CommandError(
            USAGE, f"{text!r}: expected MODULE:CALLABLE, for example examples.http_echo:process"
        )
    if name.endswith(".py") or os.sep in name:
        dotted = name.removesuffix(".py").strip("./").replace(os.sep, ".")
        raise _CommandError(
            USAGE, f"{name!r} is a file name; give the module's name: {dotted}:{attribute}"
        )
    _add_current_directory()
    found: Any = _import(name)
    place = name
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            what = "module" if isinstance(found, ModuleType) else type(found).__name__
            raise _CommandError(
                USAGE, f"{what} {place!r} has no {part!r}; it has: {_callables(found)}"
            ) from None
        except Exception as error:
            raise _CommandError(USAGE, f"{place}.{part} raised {describe(error)}") from error
        place = f"{place}:{part}" if place == name else f"{place}.{part}"
    if not callable(found):
        raise _CommandError(
            USAGE,
            f"{place!r} is of type {type(found).__name__} and cannot be called; "
            "expected a function that takes the task of a request",
        )
    process: Callable[[Any], object] = found
    return process


def _add_current_directory() -> None:
    # As `python -m` does, which does not with -P or PYTHONSAFEPATH.
    if sys.flags.safe_path:
        return
    with contextlib.suppress(FileNotFoundError):  # the directory was removed
        here = os.getcwd()
        if sys.path[:1] != [here]:
            sys.path.insert(0, here)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(f"{missing}.")):
            raise _CommandError(
                USAGE, f"no module {missing!r}; looked in: {_looked_in(missing)}"
            ) from error
        logger.debug("importing %s raised", name, exc_info=True)
        raise _CommandError(USAGE, f"importing {name!r} raised {describe(error)}") from error


def _looked_in(missing: str) -> str:
    parent = sys.modules.get(missing.rpartition(".")[0])
    if parent is not None and not hasattr(parent, "__path__"):
        return f"{parent.__name__}, which is a module, not a package"
    return ", ".join(sys.path if parent is None else parent.__path__)


def _callables(owner: Any) -> str:
    """The public callables of a module or object; of a module rather its own than what it
    imports."""
    names = [name for name in dir(owner) if not name.startswith("_")]
    # Static: a property may do anything, and fail.
    found = {name: inspect.getattr_static(owner, name, None) for name in names}
    names = [name for name in names if callable(found[name])]
    if isinstance(owner, ModuleType):
        home = owner.__name__
        own = [name for name in names if getattr(found[name], "__module__", None) == home]
        names = own or names
    return ", ".join(names) or "nothing that can be called"


# -- plugins ---------------------------------------------------------------------------


def _plugins(args: argparse.Namespace) -> int:
    with _stdout_is_ours():
        plugins = installed_plugins()
    if args.json:
        print(json.dumps([asdict(plugin) for plugin in plugins], indent=2), flush=True)
        return CLEAN
    rows = [("PLUGIN", "DISTRIBUTION", "VERSION", "PROTOCOLS", "STATUS", "REASON")]
    rows += [
        (p.name, p.distribution, p.version, ", ".join(p.protocols) or "-", p.status, p.reason)
        for p in plugins
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    # A plugin's words may not be in the terminal's character set.
    encoding = sys.stdout.encoding or "utf-8"
    text = "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)
    print(text, flush=True)
    return CLEAN


# -- logging ---------------------------------------------------------------------------


@contextlib.contextmanager
def _logging(level: str) -> Iterator[None]:
    """Sends what protoserve logs to stderr, whatever the application does with logging."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level, logger.propagate, _access_logger.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        _access_logger.setLevel(before[2])


def _log_access(event: Event) -> None:
    if isinstance(event, RequestFinished):
        _access_logger.info(
            "%s request %d: %s in %.1f ms",
            _peer(event.peername),
            event.seq,
            event.state + (f" ({errno.errorcode.get(event.error, '')})" if event.error else ""),
            event.duration * 1000,
        )


def _peer(peername: Any) -> str:
    if not isinstance(peername, tuple):
        return "unix"  # clients of Unix sockets have no name
    host, port = peername[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
