"""How long the exporter's /metrics takes, as a scraper on the same machine sees it."""

from __future__ import annotations

import gzip
import http.client
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.process import cpu_seconds
from bench.report import percentile

CONTENT_TYPES = {
    "text": "text/plain;version=0.0.4",
    "OpenMetrics": "application/openmetrics-text;version=1.0.0",
}
# A pause, so that scrapes and polls do not march in step.
PAUSE_SECONDS = 0.037


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds a scrape takes, bytes on the wire, CPU seconds it costs the exporter, and the page."""

    p50: float
    p95: float
    size: int
    cpu: float
    text: str


def every_kind(address: str, pid: int, *, times: int, polling: float) -> dict[str, Latency]:
    """Text and OpenMetrics, plain and packed; arguments as ``scrape_often``."""
    return {
        f"{kind}{', gzip' if packed else ''}": scrape_often(
            address, pid, accept=accept, packed=packed, times=times, polling=polling
        )
        for kind, accept in CONTENT_TYPES.items()
        for packed in (False, True)
    }


def scrape_often(
    address: str, pid: int, *, accept: str, packed: bool, times: int, polling: float
) -> Latency:
    """
    Scrape again and again over one connection, as Prometheus does.

    Args:
        address: The exporter's: scheme, host and port.
        pid: Its process id.
        accept: Content type asked for.
        packed: Ask for gzip.
        times: How often.
        polling: Share of a core it takes unscraped.
    """
    headers = {"Accept": accept, "Accept-Encoding": "gzip" if packed else "identity"}
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    seconds: list[float] = []
    body, cpu, began = b"", cpu_seconds(pid), time.monotonic()
    try:
        for _ in range(times):
            asked = time.perf_counter()
            connection.request("GET", "/metrics", headers=headers)
            body = connection.getresponse().read()
            seconds.append(time.perf_counter() - asked)
            time.sleep(PAUSE_SECONDS)
    finally:
        connection.close()
    used = cpu_seconds(pid) - cpu - polling * (time.monotonic() - began)
    return Latency(
        p50=percentile(seconds, 0.5),
        p95=percentile(seconds, 0.95),
        size=len(body),
        cpu=used / times,
        text=(gzip.decompress(body) if packed else body).decode(),
    )


def series(text: str) -> int:
    """Samples of a page."""
    return sum(1 for line in text.splitlines() if line and not line.startswith("#"))
