"""
The command line: parse arguments, return an exit code, nothing else.

Whatever costs time or memory is imported inside the verb that needs it, so that ``--help`` and
``--version`` answer at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headroom_exporter import __version__, backtest_flags
from headroom_exporter.errors import ConfigError, HeadroomError
from headroom_exporter.simulate import flags

if TYPE_CHECKING:
    from collections.abc import Sequence

OK, FAILED, BAD_INPUT = 0, 1, 2

_DESCRIPTION = """\
How many more sequences does this LLM server take, and what stops the next one?
Polls vLLM and its GPUs, compares them with the plan they were sized for, serves /metrics.
"""

_EPILOG = """\
examples:
  headroom-exporter run
      beside a vLLM on localhost:8000, with all visible GPUs and no plan, on port 9890
  headroom-exporter run --config /etc/headroom/config.yaml --log.format json
  headroom-exporter check config.yaml
      is this file right? If so, print what would hold, defaults included
  headroom-exporter demo --duration 60
      no GPU, no engine: watch a simulated one outgrow its plan and recover

  headroom-exporter status
      what the exporter on this machine says now, without a Prometheus
  headroom-exporter backtest --trace day.csv.gz --plan config.yaml --out day.html
      would the alerts have fired on yesterday's traffic, and when?

exit codes:
  0  done, or stopped by SIGINT or SIGTERM
  1  could not do it: the port is taken, for example
  2  wrong arguments or wrong configuration; standard error says where and what is allowed
"""

_CHECK_EPILOG = """\
standard output gets the effective configuration, defaults included: YAML that run reads as well.
standard error gets "FILE: ok", or one line for each mistake:

  config.yaml: plans[0].headroom.floor_ratio: 1.7: must be a number from 0 to below 1
"""

_RUN_EPILOG = """\
signals:
  SIGHUP             read the configuration again; a wrong one is reported and the old one stays
  SIGINT, SIGTERM    stop, exit code 0
"""

_STATUS_EPILOG = """\
examples:
  headroom-exporter status
  headroom-exporter status http://10.1.2.3:9890 --watch
  headroom-exporter status --json | jq '.ranks[] | [.engine, .rank, .state, .headroom.sequences]'

exit code 1 where nothing answers, or something else does. docs/status-api.md describes the JSON.
"""

_DEMO_EPILOG = """\
The simulated vLLM batches and pages as the real one does, and answers under its metric names.
Ctrl-C stops everything that was started.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one verb.

    Args:
        argv: Arguments after the program's name; those of the process when not given.

    Returns:
        0 done, 1 an expected failure, 2 wrong configuration. A bug is a traceback.

    Raises:
        SystemExit: with 0 after --help and --version, with 2 on wrong usage.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.verb(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except (HeadroomError, OSError) as error:
        print(f"headroom-exporter: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        # Ctrl-C before the verb has taken over the signal.
        return OK
    return code


def _run(arguments: argparse.Namespace) -> int:
    from headroom_exporter.app import run  # noqa: PLC0415
    from headroom_exporter.logs import setup  # noqa: PLC0415

    setup(arguments.log_level, arguments.log_format)
    return run(
        arguments.config,
        arguments.listen or [":9890"],
        arguments.web_config,
        arguments.tolerant,
    )


def _check(arguments: argparse.Namespace) -> int:
    from headroom_exporter.config.file import load, to_yaml  # noqa: PLC0415

    effective = to_yaml(load(arguments.file))
    print(effective, end="", flush=True)
    print(f"{arguments.file}: ok", file=sys.stderr)
    return OK


def _demo(arguments: argparse.Namespace) -> int:
    from headroom_exporter.demo import main as demo  # noqa: PLC0415

    return demo(arguments.url, arguments.listen, arguments.duration)


def _status(arguments: argparse.Namespace) -> int:
    from headroom_exporter.status.terminal import run as status  # noqa: PLC0415

    every = arguments.every if arguments.watch else None
    return status(arguments.url, watch=every, as_json=arguments.json)


def _simulate(arguments: argparse.Namespace) -> int:
    from headroom_exporter.simulate.command import run as simulate  # noqa: PLC0415

    return simulate(arguments)


def _backtest(arguments: argparse.Namespace) -> int:
    from headroom_exporter.backtest.command import run as backtest  # noqa: PLC0415

    return backtest(arguments)


def _parser() -> argparse.ArgumentParser:
    # Help is added last: a reader looks for the verbs first.
    parser = argparse.ArgumentParser(
        prog="headroom-exporter",
        usage="%(prog)s VERB [FLAGS]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, prog=parser.prog)
    common = parser.add_argument_group("flags")
    common.add_argument("-h", "--help", action="help", help="show this; after a verb, its flags")
    common.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}", help="show the version"
    )
    _add_run(_verb(verbs, "run", "poll and serve /metrics until told to stop", _RUN_EPILOG))
    _add_status(_verb(verbs, "status", "print what a running exporter says", _STATUS_EPILOG))
    _add_check(_verb(verbs, "check", "validate a configuration file and print it", _CHECK_EPILOG))
    _add_demo(_verb(verbs, "demo", "see it move, with no GPU and no engine", _DEMO_EPILOG))
    simulate = _verb(verbs, "simulate", "serve a simulated vLLM that replays traffic", flags.EPILOG)
    flags.add_arguments(simulate)
    simulate.set_defaults(verb=_simulate)
    does = "play traffic in virtual time and say which alerts would have fired"
    backtest = _verb(verbs, "backtest", does, backtest_flags.EPILOG)
    backtest_flags.add_arguments(backtest)
    backtest.set_defaults(verb=_backtest)
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, does: str, epilog: str
) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=epilog,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=32
        ),
        allow_abbrev=False,
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_run)
    parser.add_argument(
        "--config",
        "--config.file",
        dest="config",
        metavar="FILE",
        type=Path,
        help="YAML: engines, plans, rhythms (none: a vLLM on localhost:8000, all visible GPUs)",
    )
    parser.add_argument(
        "--config.tolerate-invalid",
        dest="tolerant",
        action="store_true",
        help="run on the defaults while FILE cannot be used, instead of ending with 2: for sidecars, whose "
        "pod is not ready without them",
    )
    parser.add_argument(
        "--web.listen-address",
        dest="listen",
        metavar="ADDRESS",
        action="append",
        help="host:port to serve on, [::1]:9890 for IPv6; may be repeated (default :9890)",
    )
    parser.add_argument(
        "--web.config.file",
        dest="web_config",
        metavar="FILE",
        type=Path,
        help="TLS and users, in the exporter-toolkit's format (none: plain HTTP)",
    )
    parser.add_argument(
        "--log.level",
        dest="log_level",
        metavar="LEVEL",
        choices=["debug", "info", "warn", "error"],
        # Prometheus says warn, Python says warning.
        type=lambda level: "warn" if level == "warning" else level,
        default="info",
        help="debug, info, warning or error (default info)",
    )
    parser.add_argument(
        "--log.format",
        dest="log_format",
        metavar="FORMAT",
        choices=["logfmt", "json"],
        default="logfmt",
        help="logfmt or json (default logfmt)",
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_check)
    parser.add_argument("file", metavar="FILE", type=Path, help="the configuration, YAML")


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_status)
    parser.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        default="http://127.0.0.1:9890",
        help="the exporter's address (default http://127.0.0.1:9890)",
    )
    parser.add_argument("--watch", action="store_true", help="print again and again until Ctrl-C")
    parser.add_argument(
        "--every",
        metavar="SECONDS",
        type=_seconds,
        default=2.0,
        help="how often --watch prints (default 2)",
    )
    parser.add_argument("--json", action="store_true", help="the document itself, for scripts")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_demo)
    parser.add_argument(
        "--url", help="watch the vLLM at this address (none: localhost:8000, else a simulated one)"
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        default="127.0.0.1:9890",
        help="host:port to serve /metrics on (default 127.0.0.1:9890)",
    )
    parser.add_argument(
        "--duration", metavar="SECONDS", type=_seconds, help="stop after this long (none: never)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number of seconds above 0")
    return seconds
