"""
The pods of one node, as the API server tells them: list once, then watch, for ever.

Of the watch protocol (https://kubernetes.io/docs/reference/using-api/api-concepts/): events carry a
resourceVersion, a watch goes on from the last one seen, bookmarks move it while nothing happens, and 410 Gone
(as a status or as an ERROR event) says that it is too old: then everything is listed anew. While the API
server is away, what is known stands.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from headroom_exporter.discovery.api import Api, Gone, lines, read, unreachable
from headroom_exporter.discovery.health import Health
from headroom_exporter.discovery.pods import NOT_OURS, PodReading, identity, read_pod
from headroom_exporter.errors import Malformed, SourceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from headroom_exporter.config import KubernetesConfig
    from headroom_exporter.discovery.api import Place

log = logging.getLogger(__name__)

# A list is served from the API server's cache, which takes no notice of ``limit``.
PAGE_PODS = 50
# The kubelet's default is 110 pods and the most anyone runs is some hundred; finished ones pile up.
MAX_PODS = 5000
MAX_PAGES = 1000
# A watch that failed so often in a row is not resumed but begun anew.
RELIST_FAILURES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    How patient and how greedy. Seconds and bytes.

    Attributes:
        request: Deadline of a list's page, and for a watch to begin.
        watch: How long the server is asked to keep a watch; half as long again at most, by chance.
        idle: A watch that says nothing for this long is given up: bookmarks come every minute.
        least_pause: Between a watch that ended well and the next.
        most_pause: After repeated failure.
        body: Of a list; the etcd behind it takes 1.5 MiB for each pod, and real ones are 5 to 20 KB.
        line: Of an event.
    """

    request: float = 30.0
    watch: float = 240.0
    idle: float = 150.0
    least_pause: float = 1.0
    most_pause: float = 30.0
    body: int = 16 * 2**20
    line: int = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Monotonic and Unix seconds, and how to sleep; injected so that tests need no real time."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class PodWatch:
    """
    Pods of one node, in one namespace or in all.

    Args:
        place: The node, and the API server.
        namespace: None for all.
        rules: What makes a pod an engine.
        session: HTTP client of the whole exporter.
        changed: Called when what is known changed, and when the first answer came or failed.
    """

    def __init__(
        self,
        place: Place,
        namespace: str | None,
        rules: KubernetesConfig,
        session: aiohttp.ClientSession,
        changed: Callable[[], None],
        *,
        clocks: Clocks | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._rules = rules
        self._api = Api(place.cluster, session)
        self._changed = changed
        self._clocks = clocks or Clocks()
        self._limits = limits or Limits()
        path = f"/namespaces/{namespace}/pods" if namespace else "/pods"
        self._url = URL(f"{place.cluster.url}/api/v1{path}")
        self._query = {"fieldSelector": f"spec.nodeName={place.node}"}
        if rules.label_selector:
            self._query["labelSelector"] = rules.label_selector
        # Where the watch goes on; None: list first.
        self._version: str | None = None
        # How new a list has to be: from the API server's cache, but not older than what we saw ("0": of
        # any age; "": the newest there is, which the server has to ask its database for).
        self._least_version = "0"
        self._failures = 0
        self.health = Health("kubernetes", str(self._url), self._clocks.wall)
        self.listed = False
        # What is known: (namespace, name) to uid and reading.
        self.pods: dict[tuple[str, str], tuple[str, PodReading]] = {}

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            await self._clocks.sleep(await self.step())

    async def step(self) -> float:
        """
        List if that is needed, then watch until the watch ends; whatever goes wrong is counted and logged.

        Returns:
            Seconds to wait before the next step.
        """
        began, was_settled = self._clocks.monotonic(), self.health.settled
        try:
            if self._version is None:
                await self._list()
            assert self._version is not None  # noqa: S101 - for the type checker
            await self._watch(self._version)
        except Gone as error:
            # Routine after a pause, so no change of state; the pause grows in case it is not.
            self._version, self._least_version = None, ""
            self._failures += 1
            self.health.count(error.kind)
        except SourceError as error:
            self._fail(error)
        except Exception as exc:
            log.exception("bug in discovery", extra={"source": "kubernetes"})
            self._version = None
            self._fail(SourceError(f"bug: {exc!r}", kind="bug"))
        if not was_settled and self.health.settled:
            self._changed()
        return self._pause(self._clocks.monotonic() - began)

    def _fail(self, error: SourceError) -> None:
        self._failures += 1
        if self._version is None:
            # The list itself failed. Where the page is too large, only an uncached one comes in parts.
            self._least_version = "" if error.kind == "too_large" else "0"
        elif isinstance(error, Malformed) or self._failures >= RELIST_FAILURES:
            # Something may have been missed, or the server does not like our version.
            self._version = None
        self.health.bad(error)

    def _pause(self, elapsed: float) -> float:
        least = self._limits.least_pause
        if not self._failures:
            return max(0.0, least - elapsed)
        back_off = min(self._limits.most_pause, least * 2.0 ** min(self._failures - 1, 10))
        # Every node of the cluster lost the same API server: they must not come back together.
        return back_off * random.uniform(0.5, 1.5)  # noqa: S311

    # --- list ---

    async def _list(self) -> None:
        """
        Learn everything anew, page by page; what is known is replaced at once, when all is there.

        Raises:
            Gone: The list grew too old between two pages.
            SourceError: As ``Api.get``; Unreachable on the way, Malformed for what is no list.
        """
        found: dict[tuple[str, str], tuple[str, PodReading]] = {}
        query = {**self._query, "limit": str(PAGE_PODS)}
        if self._least_version:
            query["resourceVersion"] = self._least_version
        for _ in range(MAX_PAGES):
            page = await self._page(query)
            metadata = page.get("metadata")
            items = page.get("items") or []
            version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
            if not isinstance(items, list) or not isinstance(version, str) or not version:
                raise Malformed("the answer is no list of pods", kind="malformed")
            for item in items:
                self._note(found, item)
            token = metadata.get("continue") if isinstance(metadata, dict) else None
            if not isinstance(token, str) or not token:
                break
            query = {**self._query, "limit": str(PAGE_PODS), "continue": token}
        else:
            raise Malformed("the list of pods does not end", kind="malformed")
        self._version, self._least_version, self.pods = version, version, found
        self.listed = True
        self.health.good()
        self._changed()

    async def _page(self, query: Mapping[str, str]) -> dict[str, Any]:
        chunks, size = [], 0
        try:
            async with (
                asyncio.timeout(self._limits.request),
                await self._api.get(self._url, query) as answer,
            ):
                async for chunk in answer.content.iter_any():
                    size += len(chunk)
                    if size > self._limits.body:
                        limit = self._limits.body
                        raise Malformed(f"the list is larger than {limit} bytes", kind="too_large")
                    chunks.append(chunk)
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise unreachable(exc) from exc
        return read(b"".join(chunks))

    # --- watch ---

    async def _watch(self, version: str) -> None:
        """
        Follow what happens from a version on, until the server ends the watch or the connection breaks.

        Raises:
            Gone: The version is too old.
            SourceError: As ``Api.get``; Unreachable: it did not begin; Malformed: an event that cannot be
                understood.
        """
        seconds = self._limits.watch * random.uniform(1.0, 1.5)  # noqa: S311
        query = {
            **self._query,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(seconds)),
            "resourceVersion": version,
        }
        began = False
        try:
            async with (
                asyncio.timeout(self._limits.request) as deadline,
                await self._api.get(self._url, query) as answer,
            ):
                self.health.good()
                began = True
                await self._follow(answer.content, deadline)
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            if not began:
                raise unreachable(exc) from exc
            # Cut in the middle, with a word or without: what happened meanwhile comes with the next one.
            self._failures += 1
            self.health.count("idle" if isinstance(exc, TimeoutError) else "dropped")
        else:
            self._failures = 0

    async def _follow(self, content: aiohttp.StreamReader, deadline: asyncio.Timeout) -> None:
        """Take events in until the server ends the answer; each moves the deadline."""
        clock = asyncio.get_running_loop().time
        deadline.reschedule(clock() + self._limits.idle)
        async with aclosing(lines(content, self._limits.line)) as events:
            async for line in events:
                self._take(read(line))
                self._failures = 0
                deadline.reschedule(clock() + self._limits.idle)

    def _take(self, event: Mapping[str, Any]) -> None:
        """One event of a watch."""
        kind, pod = event.get("type"), event.get("object")
        if not isinstance(pod, dict):
            raise Malformed("a watch event without an object", kind="malformed")
        if kind == "ERROR":
            if pod.get("code") == 410:
                raise Gone("the version is too old")
            said = f"the watch ended with an error, code {str(pod.get('code'))[:10]}"
            raise Malformed(said, kind="error_event")
        metadata = pod.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        if not isinstance(version, str) or not version:
            raise Malformed("a watch event without a resourceVersion", kind="malformed")
        if kind in ("ADDED", "MODIFIED"):
            changed = self._note(self.pods, pod)
        elif kind == "DELETED":
            who = identity(pod)
            changed = who is not None and self.pods.pop((who.namespace, who.name), None) is not None
        elif kind == "BOOKMARK":
            changed = False
        else:
            raise Malformed(f"a watch event of type {str(kind)[:20]!r}", kind="malformed")
        self._version = self._least_version = version
        self.health.good()
        if changed:
            self._changed()

    # --- pods ---

    def _note(self, pods: dict[tuple[str, str], tuple[str, PodReading]], pod: Any) -> bool:
        """Take a pod in. Returns whether it tells anything new."""
        who = identity(pod) if isinstance(pod, dict) else None
        if who is None:
            self.health.count("malformed")
            return False
        key = (who.namespace, who.name)
        before = self.pods.get(key)
        try:
            reading = read_pod(pod, who, self._rules)
        except Exception:
            # One odd pod must not cost the others.
            log.exception("bug while reading a pod", extra={"namespace": key[0], "pod": key[1]})
            self.health.count("bug")
            reading = NOT_OURS
        if len(pods) >= MAX_PODS and key not in pods:
            self.health.count("too_many")
            return False
        pods[key] = (who.uid, reading)
        if before is None or before[1].complaints != reading.complaints:
            for complaint in reading.complaints:
                self.health.count(complaint.kind)
                log.warning("pod is not as it should be", extra={"reason": complaint.text})
        return before != pods[key]
