"""The command ``protoserve``: run a server, list the plugins, begin a protocol, check one.

Exit codes: 0 for a clean end, 1 when the output cannot be written or a check failed, 2 for a
request that makes no sense (options, protocol, application), 3 when the server could not start.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import importlib
import inspect
import json
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from protoserve.access_log import access_logger, log_access
from protoserve.application import SharedHooks
from protoserve.build import BUILD
from protoserve.errors import BindError, ConfigError, PluginError
from protoserve.options import Option, base_options, own_options
from protoserve.params import SERVER_PARAMS_DEFAULT, ServerParams
from protoserve.plugins import (
    PluginHooks,
    describe,
    installed_plugins,
    kind_of,
    load_hooks,
    load_protocol,
    own_version,
)
from protoserve.protocol import ProtocolSpec
from protoserve.scaffold import FRAMINGS, new_distribution, own_source
from protoserve.server import WFServer
from protoserve.signals import wait_for_signal

CLEAN: Final = 0
UNWRITABLE: Final = 1
CHECK_FAILED: Final = 1
USAGE: Final = 2
NOT_STARTED: Final = 3
# The shell's convention for programs that a signal ended.
_INTERRUPTED: Final = 128 + signal.SIGINT
_NO_READER: Final = 128 + signal.SIGPIPE

# Only this machine, until somebody decides otherwise; the port of the article's demo.
DEFAULT_BIND: Final = "127.0.0.1:8888"

_BIND_FORMS: Final = "HOST:PORT, [IPV6]:PORT, PORT (every IPv4 interface) or unix:/path"

_EVERY: Final = {"0.0.0.0": "every IPv4 interface", "::": "every IPv6 interface"}

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger("protoserve")

_PARAMETERS: Final = {
    "max_connections": "connections open at once",
    "peer_response_timeout": "longest silence within one step of a request or reply",
    "receive_timeout": "deadline of one whole request",
    "receive_rate": "bytes of a request for which its deadline grows by a second",
    "keep_alive_timeout": "how long an idle connection stays; 0 closes after each reply",
    "send_timeout": "deadline of one whole reply",
    "ssl_accept_timeout": "deadline of the TLS handshake; this version serves no TLS",
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
    ours = _Logging()  # before a module of others is imported
    try:
        args = _parser(_params_of(sys.argv[1:] if argv is None else argv)).parse_args(argv)
        with ours.at(args.log_level) as args.logging:
            code: int = args.command(args)
        return code
    except _CommandError as error:
        with contextlib.suppress(OSError):
            print(f"protoserve: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):
            for note in getattr(error, "__notes__", ()):  # at which plugin
                print(f"protoserve: {note}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # `protoserve plugins | head -1`
        return _NO_READER
    finally:
        with contextlib.suppress(OSError, ValueError):
            _say()


def _say(text: str = "") -> None:
    """Write to standard output, at once. What it raises it raises once: from then on,
    whatever is written there is dropped."""
    try:
        print(text, end="", flush=True)
    except OSError:
        # What is still buffered has nowhere to go; Python would complain at its exit.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise


# -- the command line ------------------------------------------------------------------


# What other servers' commands call it, or what comes to mind.
_OTHER_NAMES: Final = {
    **dict.fromkeys(
        ("--port", "-p", "--host", "-b", "--listen", "--address", "--addr"), "--bind HOST:PORT"
    ),
    **dict.fromkeys(("--uds", "--socket", "--unix"), "--bind unix:/path"),
    **dict.fromkeys(
        ("--keepalive", "--keep-alive", "--timeout-keep-alive"), "--keep-alive-timeout"
    ),
    **dict.fromkeys(
        ("--graceful-timeout", "--timeout-graceful-shutdown", "--stop-timeout"),
        "--shutdown-timeout",
    ),
    **dict.fromkeys(("--limit-concurrency", "--connections"), "--max-connections"),
    **dict.fromkeys(("--max-body-size", "--max-request-body-size"), "--request-size-limit"),
    **dict.fromkeys(("--threads", "--max-threads"), "--handler-threads"),
    **dict.fromkeys(("--access-logfile", "--accesslog"), "--access-log"),
    **dict.fromkeys(("--loglevel", "--log", "-l"), "--log-level"),
}


class _Parser(argparse.ArgumentParser):
    """With a word about options that do not exist, and with positional arguments anywhere."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = self.parse_known_args(args, namespace)
        if unknown := [word for word in rest if word.startswith("-") and word != "-"]:
            found = [parsed.parser.alternative(word, rest) for word in unknown]
            meant = " and ".join(dict.fromkeys(filter(None, found)))
            hint = f"; did you mean {meant}?" if meant else ""
            parsed.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        if rest and getattr(parsed, "application", "") is None:
            # argparse takes an optional one only beside the one before it.
            parsed.application = rest.pop(0)
        if rest:
            parsed.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed

    def alternative(self, option: str, words: Sequence[str]) -> str:
        """What may have been meant by an option that does not exist; empty for nothing."""
        name, _, value = option.partition("=")
        if not name.startswith("--") and not value:
            name, value = option[:2], option[2:]  # -p80
        meant = _OTHER_NAMES.get(name)
        if meant is None or meant.split()[0] not in self._option_string_actions:
            known = difflib.get_close_matches(name, self._option_string_actions, 1, 0.7)
            return known[0] if known else ""
        following = words[words.index(option) + 1 : words.index(option) + 2]
        value = value or "".join(following)
        if name in ("--port", "-p") and value.isdecimal():
            meant = f"--bind 127.0.0.1:{value}"
        return meant


_PLACE: Final = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*\Z")
"""``module:object``; no address with a port, nor an IPv6 one."""


def _params_of(words: Sequence[str]) -> ServerParams:
    """The parameters of the protocol that is to be run, where they may matter: an option is not
    one of everybody's, or help is asked for. Only then its plugin is imported so early."""
    if not words or words[0] != "run":
        return SERVER_PARAMS_DEFAULT
    known = _parser().parse_args(["run", ""]).parser._option_string_actions
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    if all(option in known for option in options) and not {"-h", "--help"} & {*options}:
        return SERVER_PARAMS_DEFAULT
    for word in words[1:]:
        if word.startswith("-") or (":" in word and not _PLACE.match(word)):
            continue
        with _stdout_is_ours():
            if ":" in word:
                with contextlib.suppress(_CommandError):
                    return _load_spec(word).params
                continue
            try:
                return load_protocol(word).params
            except PluginError as error:
                # Nobody knows its options; any other word may be the value of one.
                if any(p.name == word and p.status == "failed" for p in installed_plugins()):
                    raise _CommandError(USAGE, str(error)) from error
    return SERVER_PARAMS_DEFAULT


def _parser(params: ServerParams = SERVER_PARAMS_DEFAULT) -> argparse.ArgumentParser:
    """``params``: those of the protocol, which may have fields of its own: options, too."""
    parser = _Parser(
        prog="protoserve",
        description="Servers of any request/response protocol.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"protoserve {own_version()} ({BUILD})"
    )
    common = _Parser(add_help=False)
    common.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="what is logged to stderr (default: warning); debug has the tracebacks of "
        "plugins and applications that cannot be imported",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands, common, params)
    plugins = commands.add_parser(
        "plugins",
        parents=[common],
        allow_abbrev=False,
        help="list the installed plugins",
        description="List the installed plugins, usable or not, and what to do about those that "
        "are not.",
    )
    plugins.add_argument("--json", action="store_true", help="print JSON instead of a table")
    plugins.set_defaults(command=_plugins, parser=plugins)
    _add_check(commands, common)
    _add_new(commands, common)
    return parser


def _add_run(commands: Any, common: _Parser, params: ServerParams) -> None:
    run = commands.add_parser(
        "run",
        parents=[common],
        allow_abbrev=False,
        usage="protoserve run [options] PROTOCOL [MODULE:CALLABLE]",
        help="serve an application",
        description="Serve MODULE:CALLABLE, which is called with the task of each request; "
        "without one, the protocol's demo where it has one. PROTOCOL is one that is installed, "
        "or MODULE:SPEC, a ProtocolSpec that needs no distribution. "
        "The current directory is on the import path. SIGINT and SIGTERM stop gracefully; "
        "a second one cuts that short.",
        epilog="exit codes: 0 clean end, 2 wrong use, 3 could not start",
    )
    run.add_argument(
        "protocol",
        metavar="PROTOCOL",
        help="a name that `protoserve plugins` lists, or MODULE:SPEC, "
        "for example my_protocol:SPEC",
    )
    run.add_argument(
        "application",
        nargs="?",
        metavar="MODULE:CALLABLE",
        help="for example my_site:process, of my_site.py in the current directory",
    )
    run.add_argument(
        "--bind",
        type=_bind,
        action="append",
        metavar="ADDRESS",
        help=f"{_BIND_FORMS}; port 0 picks a free one; may be given several times "
        f"(default: {DEFAULT_BIND})",
    )
    run.add_argument(
        "--access-log", action="store_true", help="log one line to stderr for each request"
    )
    run.add_argument(
        "--plugin",
        action="append",
        default=[],
        dest="plugins",
        metavar="NAME",
        help="let this plugin take part, too: watch the servers, do something when they start "
        "and stop; may be given several times",
    )
    group = run.add_argument_group(
        "parameters",
        "Where a protocol has a default of its own, that holds instead of the one shown. "
        "Sizes may end in KiB, MiB or GiB.",
    )
    for option in base_options(_PARAMETERS):
        _add_parameter(group, option)
    own = own_options(params)
    if own:
        group = run.add_argument_group("parameters of this protocol")
    for option in own:
        _add_parameter(group, option)
    run.set_defaults(command=_run, parser=run)


def _add_check(commands: Any, common: _Parser) -> None:
    check = commands.add_parser(
        "check",
        parents=[common],
        allow_abbrev=False,
        help="check whether a protocol keeps its contract",
        description="Drive the parser of a protocol without sockets, with its samples cut, "
        "joined, spoiled and made endless, and say what of the contract does not hold. Samples "
        "are requests as they come over the wire, each one whole message: those given, else "
        "ProtocolSpec.samples.",
        epilog="exit codes: 0 all holds, 1 something does not, 2 wrong use",
    )
    check.add_argument(
        "protocol",
        metavar="NAME",
        help="a name that `protoserve plugins` lists, or MODULE:SPEC, for example my_proto:SPEC",
    )
    check.add_argument(
        "--sample",
        action="append",
        metavar="TEXT",
        help=r"a sample; \r, \n, \t, \0, \\ and \xHH are bytes; may be given several times",
    )
    check.add_argument(
        "--samples",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="files with a sample each",
    )
    check.add_argument(
        "--examples",
        type=_count,
        metavar="N",
        help="random inputs; 0 for none (default: 200)",
    )
    check.set_defaults(command=_check, parser=check)


def _add_new(commands: Any, common: _Parser) -> None:
    framings = "; ".join(f"{name}: {framing.summary}" for name, framing in FRAMINGS.items())
    new = commands.add_parser(
        "new",
        parents=[common],
        allow_abbrev=False,
        help="begin a protocol of your own",
        description="Write a complete distribution for a protocol NAME into a new folder: "
        "the protocol, the plugin, a demo, tests, settings of tools and CI.",
    )
    new.add_argument(
        "name",
        metavar="NAME",
        help="the protocol's name: lower-case letters, digits, - and _, for example shout",
    )
    new.add_argument(
        "--framing",
        choices=FRAMINGS,
        default="lines",
        help=f"what a message is at first ({framings}; default: lines)",
    )
    new.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help="the folder, which is made unless it is there and empty (default: NAME)",
    )
    new.set_defaults(command=_new, parser=new)


def _add_parameter(group: Any, option: Option) -> None:
    """The option of a parameter. Only what was given overrides the protocol's default."""
    meaning = option.help.replace("%", "%%")  # argparse fills in what is behind one
    if option.kind is bool:
        group.add_argument(
            option.flag,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=f"{meaning} (default: {'yes' if option.default is True else 'no'})",
        )
        return
    read: Callable[[str], object]
    if option.choices:
        read, metavar = functools.partial(_choice, option.choices), "|".join(option.choices)
    elif option.kind is float:
        read, metavar = _seconds, "SECONDS"
    elif option.kind is str:
        read, metavar = str, "TEXT"
    elif "size" in option.name:
        read, metavar = _size, "SIZE"
    else:
        read, metavar = _count, "N"
    group.add_argument(
        option.flag,
        type=functools.partial(_optional, read) if option.optional else read,
        default=argparse.SUPPRESS,
        dest=option.name,
        metavar=metavar,
        help=f"{meaning}{'; none for no limit' if option.optional else ''} "
        f"(default: {_shown(option.default, metavar).replace('%', '%%')})",
    )


def _shown(value: Any, metavar: str) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    return f"{value / 1024**2:g}MiB" if metavar == "SIZE" else f"{value:g}"


def _bind(text: str) -> tuple[Any, ...]:
    """The arguments of ``WFServerBase.start``."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        bare = path.lstrip("/")
        if not bare:
            raise argparse.ArgumentTypeError(f"{text!r}: the path is missing")
        if path.startswith("///"):
            return (f"unix:/{bare}",)  # a URL, whose host is empty
        if path.startswith("//"):
            raise argparse.ArgumentTypeError(
                f"{text!r}: the path goes right behind the colon: unix:/{bare}, or unix:{bare} "
                "in the current directory"
            )
        return (text,)
    if advice := _address_advice(text):
        raise argparse.ArgumentTypeError(f"{text!r}: {advice}")
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


def _address_advice(text: str) -> str:
    """What is to be done about an address in another notation; empty for none that is known."""
    kind, colon, rest = text.partition(":")
    kind = kind.lower()
    if not colon:
        if "/" in text:
            return f"a Unix socket's path goes behind unix:, as in unix:{text}"
        if text.isdecimal():
            return ""
        return f"the port is missing; expected HOST:PORT, for example {text or 'localhost'}:8888"
    if kind.endswith("+unix"):
        path = f"/{rest.lstrip('/')}" if rest.startswith("//") else rest
        return f"leave the scheme out: unix:{path}"
    if kind == "udp":
        return f"UDP is not served, only streams: {_BIND_FORMS}"
    if kind == "fd":
        return (
            "a socket that is open already is served from Python, with serve(descriptor); "
            f"here it is {_BIND_FORMS}"
        )
    if kind == "tcp" or rest.startswith("//"):
        place = rest.removeprefix("//").rstrip("/")
        return f"leave the scheme out: {place}" if place else f"expected {_BIND_FORMS}"
    return ""


def _optional(read: Callable[[str], Any], text: str) -> Any:
    return None if text.lower() == "none" else read(text)


def _choice(choices: Sequence[str], text: str) -> str:
    if text not in choices:
        raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(choices)}")
    return text


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
    spec = _load_protocol(args.protocol, args.application)
    changes = _changes(args, spec.params)
    application = args.application
    if application is None:
        application = spec.demo
        if application is None:
            raise _CommandError(
                USAGE,
                f"MODULE:CALLABLE is missing, and {spec.name} has no demo; "
                f"for example: protoserve run {args.protocol} my_app:process",
            )
        with contextlib.suppress(OSError):
            print(
                f"protoserve: without an application it serves the demo, {application}",
                file=sys.stderr,
            )
    hooks = _load_hooks(None if ":" in args.protocol else spec.name, args.plugins)
    process = _load_application(application)
    args.logging.leave_to_application()
    with contextlib.ExitStack() as running:
        servers: list[WFServer[Any, Any]] = []
        shared: SharedHooks | None = None
        places = args.bind or [_bind(DEFAULT_BIND)]
        try:
            params = spec.params.replace(**changes)
            make = spec.server
            if args.access_log:
                access_logger.setLevel(logging.INFO)
            for where in places:
                server = WFServer(spec, process, params) if make is None else make(process, params)
                if args.access_log:
                    server.subscribe(log_access)
                if len(places) > 1 and any(server.hooks):
                    # One application starts once, and stops when the last has ended.
                    shared = shared or SharedHooks(*server.hooks)
                    server.set_hooks(shared.on_start, shared.on_stop)
                hooks.observe(server)
                server.start(*where)
                # Once it has stopped, whatever comes in between.
                running.callback(hooks.stopped, server)
                servers.append(running.enter_context(server))
                hooks.started(server)
        except ConfigError as error:
            # A server's word for its handler; in a module something else may be called so.
            message = re.sub(r"\Aprocess(?= )", lambda _: repr(application), str(error))
            raise _CommandError(USAGE, message) from error
        except BindError as error:
            raise _CommandError(NOT_STARTED, error.strerror or str(error)) from error
        except Exception as error:  # out of descriptors or threads, for example
            logger.debug("the server could not start", exc_info=True)
            raise _CommandError(NOT_STARTED, f"could not start: {describe(error)}") from error
        wait_for_signal(servers, _STOP_SIGNALS, functools.partial(_announce, servers))
    return CLEAN


def _load_protocol(name: str, application: str | None) -> ProtocolSpec[Any, Any, Any]:
    if ":" in name:
        if application is not None and ":" not in application:
            raise _CommandError(
                USAGE,
                f"{name!r} is no protocol; did you mean: protoserve run {application} {name}",
            )
        return _load_spec(name, application)
    with _stdout_is_ours():
        try:
            return load_protocol(name)
        except PluginError as error:
            plugins = installed_plugins()
            hint = ""
            if name not in {plugin.name for plugin in plugins}:
                hint = _other_protocol(name, [p for plugin in plugins for p in plugin.protocols])
            raise _CommandError(USAGE, f"{error}{hint}") from error


def _load_spec(text: str, application: str | None = None) -> ProtocolSpec[Any, Any]:
    """The ``ProtocolSpec`` that ``module:object`` names. ``application`` stands beside it."""
    found, place = _find(text, "MODULE:SPEC, for example my_protocol:SPEC", _specs)
    if isinstance(found, ProtocolSpec):
        return found
    what = "a class" if inspect.isclass(found) else f"of type {type(found).__name__}"
    meant = _other_spec(text, found, application)
    raise _CommandError(USAGE, f"{place!r} is {what}; expected a ProtocolSpec{meant}")


def _other_spec(text: str, found: Any, application: str | None) -> str:
    """What may have been meant by an object that is no ``ProtocolSpec``."""
    if application is not None:
        with contextlib.suppress(_CommandError):
            if isinstance(_find(application, "", _specs)[0], ProtocolSpec):
                return f"; did you mean: protoserve run {application} {text}"
    if _takes_a_task(found):
        return f"; did you mean: protoserve run http {text}" if application is None else ""
    if callable(found):
        module, _, name = text.partition(":")
        return (
            f"; where it makes one, write SPEC = {name}(...) in {module}, and give {module}:SPEC"
        )
    return ""


def _takes_a_task(found: Any) -> bool:
    """Whether it is called with one argument, and not with none."""
    if not callable(found):
        return False
    try:
        required = [
            parameter
            for parameter in inspect.signature(found).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):  # it does not say
        return False
    return len(required) == 1 and required[0].kind is not required[0].KEYWORD_ONLY


def _load_hooks(protocol: str | None, names: Sequence[str]) -> PluginHooks:
    with _stdout_is_ours():
        try:
            return load_hooks(protocol, names)
        except PluginError as error:
            raise _CommandError(USAGE, f"--plugin: {error}") from error


def _other_protocol(name: str, installed: Sequence[str]) -> str:
    """Which protocol may have been meant by one that is not installed."""
    for protocol in installed:
        if load_protocol(protocol).url_scheme_tls == name:
            return f"; did you mean {protocol}? This version serves no TLS"
    close = difflib.get_close_matches(name.lower(), installed, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _changes(args: argparse.Namespace, params: ServerParams) -> dict[str, Any]:
    """The parameters that were given. What is wrong with one is said in the words of the
    command line."""
    given = {f.name: getattr(args, f.name) for f in fields(params) if f.name in args}
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        try:
            params.replace(**{name: value})
        except ConfigError as error:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            message = str(error).replace(f"{name}={value!r}", f"{option} {shown}")
            raise _CommandError(USAGE, message.replace("None", "none")) from error
        if name == "ssl_accept_timeout":
            raise _CommandError(
                USAGE, f"{option}: this version serves no TLS, whose handshake it would limit"
            )
    return given


def _announce(servers: Sequence[WFServer[Any, Any]]) -> None:
    """Say where the servers listen. They serve on when nobody can be told."""
    places = [_place(server) for server in servers]
    try:
        _say("".join(f"listening on {place}\n" for place in places))
    except (OSError, ValueError) as error:  # no reader, a full device; closed
        logger.warning("listening on %s; cannot say so: %s", ", ".join(places), error)


def _place(server: WFServer[Any, Any]) -> str:
    """Where it listens: unlike ``url``, not only where a client on this machine finds it."""
    address = server.address
    host, port = address[:2] if isinstance(address, tuple) else ("", 0)
    if host not in _EVERY:
        return server.url
    shown = f"[{host}]" if ":" in host else host
    return f"{server.url_scheme}://{shown}:{port} ({_EVERY[host]})"


@contextlib.contextmanager
def _stdout_is_ours() -> Iterator[None]:
    """Keeps what plugins print when they are imported out of the command's output."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _load_application(text: str) -> Callable[[Any], object]:
    found, place = _find(text, "MODULE:CALLABLE, for example my_site:process", _callables)
    if not callable(found):
        raise _CommandError(
            USAGE,
            f"{place!r} is of type {type(found).__name__} and cannot be called; "
            "expected a function that takes the task of a request",
        )
    process: Callable[[Any], object] = found
    return process


def _find(text: str, expected: str, listed: Callable[[Any], str]) -> tuple[Any, str]:
    """What ``module:object`` names, and how it is called in messages. ``listed``: what else there
    is, of a module or object."""
    name, _, attribute = text.partition(":")
    if not name or not attribute:
        raise _CommandError(USAGE, f"{text!r}: expected {expected}")
    if name.endswith(".py") or os.sep in name:
        dotted = name.removesuffix(".py").strip("./").replace(os.sep, ".")
        raise _CommandError(
            USAGE, f"{name!r} is a file name; give the module's name: {dotted}:{attribute}"
        )
    if "(" in attribute:
        raise _CommandError(
            USAGE,
            f"{text!r}: nothing is called here; give what it returns a name in {name}, "
            f"as in made = {attribute}, and say {name}:made",
        )
    _add_current_directory()
    found: Any = _import(name)
    place = name
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise _CommandError(
                USAGE, f"{kind_of(found)} {place!r} has no {part!r}; it has: {listed(found)}"
            ) from None
        except Exception as error:
            raise _CommandError(USAGE, f"{place}.{part} raised {describe(error)}") from error
        place = f"{place}:{part}" if place == name else f"{place}.{part}"
    return found, place


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


def _specs(owner: Any) -> str:
    """The public ``ProtocolSpec`` objects of a module or object."""
    names = [name for name in dir(owner) if not name.startswith("_")]
    found = [
        name
        for name in names
        if isinstance(inspect.getattr_static(owner, name, None), ProtocolSpec)
    ]
    return ", ".join(found) or "no ProtocolSpec"


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
        _print(json.dumps([asdict(plugin) for plugin in plugins], indent=2))
        return CLEAN
    rows = [("PLUGIN", "DISTRIBUTION", "VERSION", "PROTOCOLS", "STATUS", "REASON")]
    rows += [
        (p.name, p.distribution, p.version, ", ".join(p.protocols) or "-", p.status, p.reason)
        for p in plugins
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [f"{p.name} of {p.distribution} {p.version}: {p.remedy}" for p in plugins if p.remedy]
    # A plugin's words may not be in the terminal's character set. Python has no standard output
    # where it was started without.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    _print("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding))
    return CLEAN


def _print(text: str) -> None:
    try:
        _say(f"{text}\n")
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # a full device, closed
        raise _CommandError(UNWRITABLE, f"cannot write to standard output: {error}") from error


# -- check -----------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    # It brings the tests' tools, which nothing else here needs.
    from protoserve.checking import check_lines, read_samples

    with _stdout_is_ours():
        spec = _load_protocol(args.protocol, None)
    try:
        samples = read_samples(args.sample or (), args.samples or ())
    except OSError as error:
        raise _CommandError(
            USAGE, f"cannot read {str(error.filename)!r}: {error.strerror}"
        ) from error
    except ConfigError as error:
        raise _CommandError(USAGE, str(error)) from error
    code = CLEAN
    try:
        with contextlib.closing(check_lines(spec, samples, args.examples)) as lines:
            for holds, text in lines:
                if not holds:
                    code = CHECK_FAILED
                _print(text)
    except ConfigError as error:
        message = str(error).replace("over the wire,", "over the wire (--sample, --samples),")
        raise _CommandError(USAGE, message) from error
    except ModuleNotFoundError as error:
        # In the words of the command line.
        message = str(error).replace("examples=0", "--examples 0")
        raise _CommandError(USAGE, message) from error
    return code


# -- new -------------------------------------------------------------------------------


def _new(args: argparse.Namespace) -> int:
    folder: Path = args.into or Path(args.name)
    with _stdout_is_ours():
        try:
            files = new_distribution(args.name, FRAMINGS[args.framing], folder)
        except ConfigError as error:
            raise _CommandError(USAGE, str(error)) from error
        except OSError as error:
            raise _CommandError(
                UNWRITABLE, f"cannot write {str(error.filename or folder)!r}: {error.strerror}"
            ) from error
    (protocol,) = (path for path in files if path.name == "protocol.py")
    source = own_source()
    # Not from an index, where pip would look for what the distribution needs.
    first = f"  pip install {shlex.quote(source)}\n" if source else ""
    _print(
        f"made {folder}; the protocol is in {protocol}. Next, in an environment of its own:\n"
        f"  cd {shlex.quote(str(folder))}\n"
        f"{first}"
        "  pip install -e '.[dev]'\n"
        "  pytest\n"
        f"  protoserve run {args.name}"
    )
    return CLEAN


# -- logging ---------------------------------------------------------------------------


class _Logging:
    """Sends what protoserve logs to stderr, unless the application sees to that itself.

    ``level`` is what was asked for, if anything; then it holds whoever writes. Otherwise that
    of the root logger does, WARNING unless the application sets it.
    """

    def __init__(self) -> None:
        self._level: str | None = None
        self._handler = logging.StreamHandler()
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._before = [(log, log.level, log.disabled) for log in (logger, access_logger)]
        self._propagated = logger.propagate
        self._others = self._other_handlers()

    def at(self, level: str | None) -> _Logging:
        self._level = level
        return self

    def __enter__(self) -> _Logging:
        logger.addHandler(self._handler)
        self._set_level()
        logger.propagate = False
        return self

    def leave_to_application(self) -> None:
        """The application was imported: where it has set up logging, that is what holds."""
        self._set_level()
        # `dictConfig` and `fileConfig` silence by default what they do not name: what is asked
        # of this command is to be seen all the same.
        for log in (logger, access_logger):
            log.disabled = False
        if self._other_handlers() == self._others:
            return
        logger.removeHandler(self._handler)
        logger.propagate = True

    def _set_level(self) -> None:
        if self._level is not None:
            logger.setLevel(self._level.upper())

    def __exit__(self, *_: object) -> None:
        logger.removeHandler(self._handler)
        logger.propagate = self._propagated
        for log, level, disabled in self._before:
            log.setLevel(level)
            log.disabled = disabled

    def _other_handlers(self) -> list[logging.Handler]:
        """The handlers of others that would get what protoserve logs."""
        handlers = [*logging.getLogger().handlers, *logger.handlers]
        return [handler for handler in handlers if handler is not self._handler]
