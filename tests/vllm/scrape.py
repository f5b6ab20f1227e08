"""Pages of the exporter and of vLLM as the tests read them: by prometheus_client's own parser."""

from __future__ import annotations

import threading
import time
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Mapping


def get(url: str, timeout: float = 10.0) -> str:
    """The body of a 200; anything else raises OSError (urllib's errors are such)."""
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        body: bytes = answer.read()
    return body.decode("utf-8")


@dataclass(frozen=True)
class Page:
    """One page; ``at`` is monotonic seconds."""

    text: str
    at: float

    @cached_property
    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """(Sample name, labels) to value."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    def find(self, name: str, **labels: str) -> list[tuple[Mapping[str, str], float]]:
        """Every sample of this name that carries these labels, and perhaps more."""
        wanted = set(labels.items())
        return [
            (dict(found), value)
            for (sample, found), value in self.samples.items()
            if sample == name and wanted <= found
        ]

    def value(self, name: str, **labels: str) -> float | None:
        """
        The one sample of this name with these labels; None where there is none.

        Raises:
            LookupError: there are several.
        """
        found = self.find(name, **labels)
        if len(found) > 1:
            raise LookupError(f"{len(found)} samples {name}{labels}")
        return found[0][1] if found else None

    def need(self, name: str, **labels: str) -> float:
        """
        The one sample of this name with these labels.

        Raises:
            LookupError: there is none, or there are several.
        """
        value = self.value(name, **labels)
        if value is None:
            present = sorted({sample for sample, _ in self.samples if sample.startswith(name[:20])})
            raise LookupError(f"no sample {name}{labels}; alike: {present}")
        return value

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of this name with these labels; 0 where there is none."""
        return sum(value for _, value in self.find(name, **labels))

    def ones(self, name: str, label: str, **labels: str) -> set[str]:
        """Values of ``label`` where a gauge of 0 and 1 is 1."""
        return {found[label] for found, value in self.find(name, **labels) if value == 1}


def scrape(address: str) -> Page:
    """Fetch /metrics of ``address`` (scheme, host and port)."""
    return Page(get(f"{address}/metrics"), time.monotonic())


def time_mean(before: Page, after: Page, histogram: str, **labels: str) -> float:
    """Time-weighted mean level of a histogram in milliseconds between two pages, over all ranks."""
    milliseconds = grown(before, after, f"{histogram}_count", **labels)
    return grown(before, after, f"{histogram}_sum", **labels) / milliseconds


def grown(before: Page, after: Page, name: str, **labels: str) -> float:
    """How much a counter grew, summed over its series."""
    return after.total(name, **labels) - before.total(name, **labels)


class Watch:
    """Scrapes in the background, every ``interval`` seconds, while its block runs; keeps all pages."""

    def __init__(self, address: str, interval: float = 0.5) -> None:
        self.pages: list[Page] = []
        self._address = address
        self._interval = interval
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what stopped the scraping, if anything did."""
        if self._failure is not None:
            raise self._failure

    def between(self, t0: float, t1: float) -> list[Page]:
        """Pages scraped from t0 to t1, monotonic seconds."""
        return [page for page in self.pages if t0 <= page.at <= t1]

    def _run(self) -> None:
        while not self._end.wait(self._interval):
            try:
                self.pages.append(scrape(self._address))
            except OSError as failure:
                self._failure = failure
                return
