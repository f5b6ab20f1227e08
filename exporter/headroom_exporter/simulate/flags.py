"""The flags of ``headroom-exporter simulate``; light, because every verb's parser is built each time."""

from __future__ import annotations

from argparse import ArgumentTypeError
from math import inf
from typing import TYPE_CHECKING

from headroom_exporter.simulate.dialects import DIALECTS

if TYPE_CHECKING:
    from argparse import ArgumentParser, _ActionsContainer

EPILOG = """\
traces:
  a CSV file, plain or gzip, with the columns arrival_s, prompt_tokens, output_tokens and perhaps
  cached_tokens, abort_after_s, finish_reason, id; or made-up traffic with a seed:
    synthetic:poisson?rate=4&duration=3600&seed=1
    synthetic:bursty?rate=4&dispersion=20     synthetic:ramp?rate=1&rate_end=8
    synthetic:spike?rate=4&factor=3&at=600    synthetic:diurnal?rate=2&duration=86400
    synthetic:drift?rate=2&prompt_growth=3    lengths: prompt_p50 prompt_p95 output_p50 output_p95
examples:
  headroom-exporter simulate --profile h100-llama-3.1-8b --trace day.csv.gz --from 32400 --speed 20
      yesterday from nine o'clock on, twenty times faster, on 127.0.0.1:8000
  headroom-exporter simulate --trace day.csv --scale 1.7 --event restart@600 --ranks 2
      tomorrow's traffic on two ranks, and a restart after ten minutes
  headroom-exporter demo --url http://127.0.0.1:8000
      watch it, from another terminal

/metrics, /metrics/?name[]=, /health, /version and /v1/models answer as vLLM 0.32 does; POST /sleep and
/wake_up too. With --dialect the same truth is told as another engine would tell it. Ctrl-C ends it.
docs/simulator.md says what is simulated and how well it agrees.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every flag of the verb."""
    _add_what(parser)
    add_traffic(parser)
    add_engine(parser)
    _add_serving(parser)


def _add_what(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        metavar="NAME",
        default="rtx4090-llama-3.1-8b",
        help="model and card, or a .json file of your own (default %(default)s)",
    )
    parser.add_argument("--profiles", action="store_true", help="list the profiles and exit")
    parser.add_argument("--trace", metavar="FILE", help="traffic: a CSV file, or synthetic:KIND")


def add_traffic(parser: _ActionsContainer) -> None:
    """Add the flags that choose and scale the traffic."""
    parser.add_argument(
        "--from", dest="start", metavar="T", type=_seconds, default=0.0, help="begin at this second"
    )
    parser.add_argument(
        "--to", dest="end", metavar="T", type=_seconds, default=inf, help="end before this second"
    )
    parser.add_argument(
        "--scale",
        metavar="K",
        type=_positive,
        default=1.0,
        help="multiply the rate of requests (default 1)",
    )
    parser.add_argument(
        "--keep-every",
        metavar="K",
        type=_count,
        default=1,
        help="keep every Kth request: what one of K equal replicas gets",
    )
    parser.add_argument(
        "--prefix-hits",
        metavar="SHARE",
        type=_share,
        help="share of every prompt that the prefix cache holds, 0 to 1",
    )
    parser.add_argument(
        "--arrival-column", metavar="NAME", default="arrival_s", help="default arrival_s"
    )
    parser.add_argument(
        "--cached-column", metavar="NAME", help="prompt tokens in the prefix cache, by request"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of --scale (default 0)")


def add_engine(parser: _ActionsContainer) -> None:
    """Add the flags of the engine and of what befalls it."""
    for name, what in (
        ("max-num-seqs", "slots of a rank"),
        ("max-num-batched-tokens", "tokens of one step"),
        ("max-model-len", "longest prompt and output"),
        ("num-gpu-blocks", "KV blocks of a rank"),
    ):
        parser.add_argument(
            f"--{name}", metavar="N", type=_count, help=f"{what}, not the profile's"
        )
    for name, what in (
        ("max-num-queued-reqs", "unfinished requests"),
        ("max-num-queued-tokens", "tokens of prompts not yet computed"),
    ):
        parser.add_argument(
            f"--{name}", metavar="N", type=_from_zero, help=f"reject beyond so many {what}"
        )
    parser.add_argument(
        "--dialect",
        choices=tuple(DIALECTS),
        default="vllm",
        help="the engine in whose words and rhythm the same traffic is told (default vllm)",
    )
    parser.add_argument(
        "--ranks", metavar="N", type=_count, default=1, help="data-parallel ranks (default 1)"
    )
    parser.add_argument(
        "--api-servers",
        metavar="N",
        type=_count,
        default=1,
        help="API server processes; above 1 the page is the multiprocess one (default 1)",
    )
    parser.add_argument(
        "--event",
        metavar="WHAT@T",
        action="append",
        default=[],
        help="restart@T, sleep@T, sleep:LEVEL@T, wake@T or slow:FACTOR@T (every step takes FACTOR times as "
        "long) seconds after --from; may be repeated",
    )
    parser.add_argument(
        "--start-seconds",
        metavar="S",
        type=_seconds,
        default=40.0,
        help="how long a restart refuses connections (default 40)",
    )


def _add_serving(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--speed",
        metavar="N",
        type=_positive,
        default=1.0,
        help="simulated seconds per second (default 1)",
    )
    parser.add_argument(
        "--at-end",
        choices=["serve", "stop", "loop"],
        default="serve",
        help="when the traffic is over: serve an idle engine, stop, or begin again (default serve)",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        default="127.0.0.1:8000",
        help="host:port to serve on (default 127.0.0.1:8000)",
    )


# --- values --------------------------------------------------------------------------------------


def _number(text: str, least: float, most: float, words: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number <= most or number == inf:
        raise ArgumentTypeError(f"{text!r}: must be {words}")
    return number


def _seconds(text: str) -> float:
    return _number(text, 0.0, inf, "a number of seconds, at least 0")


def _positive(text: str) -> float:
    return _number(text, 1e-9, inf, "a number above 0")


def _share(text: str) -> float:
    return _number(text, 0.0, 1.0, "a number from 0 to 1")


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ArgumentTypeError(f"{text!r}: must be a whole number, at least {least}")
    return int(text)


def _count(text: str) -> int:
    return _whole(text, 1)


def _from_zero(text: str) -> int:
    return _whole(text, 0)
