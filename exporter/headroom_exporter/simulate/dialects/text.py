"""Exposition text for the dialects that are asked too seldom to be compiled as vLLM's page is."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.utils import floatToGoString

from headroom_exporter.simulate.dialects.speaker import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from headroom_exporter.simulate.counters import Tally

Labels = dict[str, str]


def go_number(value: float) -> str:
    """As Go's and Python's client libraries write it."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def six_digits(value: float) -> str:
    """As a C++ stream writes a double by default."""
    return f"{value:.6g}"


class Text:
    """
    A page that is being written.

    Args:
        number: How a value is spelled.
    """

    def __init__(self, number: Callable[[float], str] = go_number) -> None:
        self._lines: list[str] = []
        self._number = number

    def family(self, name: str, kind: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """A gauge or counter; without samples only its head, as client libraries do."""
        self._lines.append(f"# TYPE {name} {kind}")
        self._lines += [f"{name}{_inside(labels)} {self._number(v)}" for labels, v in samples]

    def histogram(self, name: str, labels: Labels, tally: Tally) -> None:
        """Sum, buckets, count: the order of the multiprocess collector."""
        bounds = [go_number(bound) for bound in (*tally.bounds, float("inf"))]
        self._lines.append(f"# TYPE {name} histogram")
        self._lines.append(f"{name}_sum{_inside(labels)} {self._number(tally.sum)}")
        for bound, count in zip(bounds, accumulate(tally.counts), strict=True):
            inside = _inside(labels | {"le": bound})
            self._lines.append(f"{name}_bucket{inside} {self._number(count)}")
        self._lines.append(f"{name}_count{_inside(labels)} {self._number(tally.count)}")

    def answer(self) -> Answer:
        """The page."""
        body = "\n".join(self._lines) + "\n" if self._lines else ""
        return Answer(content_type="text/plain; version=0.0.4; charset=utf-8", body=body.encode())


def json_answer(content: Mapping[str, object] | list[object]) -> Answer:
    """A page of JSON."""
    return Answer(content_type="application/json", body=json.dumps(content).encode())


def _inside(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
