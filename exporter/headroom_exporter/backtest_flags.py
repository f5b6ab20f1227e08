"""
The flags of ``headroom-exporter backtest``.

Not in the package ``backtest``: every verb's parser is built each time, and the sidecar must not pay for
importing what evaluates rules.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headroom_exporter.simulate import flags

if TYPE_CHECKING:
    from argparse import ArgumentParser

EPILOG = """\
The traffic is played in virtual time on a simulated engine that this exporter polls; a real Prometheus (the
Debian package prometheus) evaluates the rules over what it would have scraped. What users felt comes from
the simulated requests themselves: a breach is when more than 5 % of those that arrived within five minutes
miss the planned TTFT or TPOT, or more than 1 % are turned away.

examples:
  headroom-exporter backtest --trace day.csv.gz --profile h100-llama-3.1-8b --plan config.yaml --out day.html
      would yesterday have paged, and when?
  headroom-exporter backtest --trace day.csv.gz --scale 1.7 --plan config.yaml
      and tomorrow, with 1.7 times the traffic?
  headroom-exporter backtest --trace 'synthetic:ramp?rate=1&rate_end=6' --plan config.yaml --rules my/rules
      how do my own rules fare?

headroom-exporter simulate --help says what a trace can be, headroom-exporter simulate --profiles which
profiles there are.
docs/backtesting.md says how to read the answer, and what it is worth.

exit codes:
  0  played and judged, whatever the verdict
  1  could not: Prometheus is not installed, or a rule cannot be evaluated over a recording
  2  wrong arguments, trace, profile, plan or rules
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every flag of the verb."""
    parser.add_argument(
        "--trace", metavar="FILE", required=True, help="traffic: a CSV file, or synthetic:KIND"
    )
    parser.add_argument(
        "--plan",
        metavar="FILE",
        type=Path,
        required=True,
        help="what users were promised: a configuration, or a file with only its plans",
    )
    parser.add_argument(
        "--profile",
        metavar="NAME",
        default="rtx4090-llama-3.1-8b",
        help="model and card, or a .json file of your own (default %(default)s)",
    )
    parser.add_argument(
        "--rules",
        metavar="DIR",
        type=Path,
        help="directory with recording/*.yaml and alerts/*.yaml, or a rule file (default: the shipped ones)",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the page with the picture")
    parser.add_argument(
        "--json", metavar="FILE", help="write everything as JSON; - for standard output, alone"
    )
    flags.add_traffic(parser.add_argument_group("traffic"))
    flags.add_engine(parser.add_argument_group("engine"))
