"""
Where an engine's page is, and whose it is: asked once per start, and again when the page is gone.

Looking must do no harm: TensorRT-LLM's /metrics is a list that reading takes away from its other readers, so
it is read only where nothing else answers, and never twice.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from headroom_exporter.engines import BY_NAME, ENGINES, PATHS, strangers
from headroom_exporter.engines.base import is_blank
from headroom_exporter.errors import Malformed, NotThere, SourceError
from headroom_exporter.fetch import MAX_BODY_BYTES

if TYPE_CHECKING:
    from headroom_exporter.config import EngineConfig
    from headroom_exporter.fetch import Fetched, Fetcher
    from headroom_exporter.track import EngineTrack


class Finder:
    """
    Finds the page of one engine.

    Args:
        config: Its kind, if it is known.
        fetcher: Asks it.
        track: Told whose page it is.
    """

    def __init__(self, config: EngineConfig, fetcher: Fetcher, track: EngineTrack) -> None:
        self._fetcher = fetcher
        self._track = track
        self._forced = BY_NAME.get(config.kind)
        # Paths whose answer must not be read again.
        self._avoided: set[str] = set()

    def refused(self) -> None:
        """Nothing listens any more: who comes next is another process, with pages of its own."""
        self._avoided.clear()

    def must_not_read(self, path: str, body: bytes) -> bool:
        """Whether a path answered with the list that each reader takes away; it is not asked again."""
        if body.lstrip()[:1] != b"[":
            return False
        self._avoided.add(path)
        return True

    async def find(self) -> tuple[str, Fetched]:
        """
        Find the engine's page; where there is none, find out why.

        Returns:
            Its path, and what it answered.

        Raises:
            Unreachable, Malformed: as ``_find``, in better words where it can be told who refused.
        """
        try:
            return await self._find()
        except Malformed as refused:
            page, answer = strangers.page_to_ask(refused), None
            if page is not None:
                with contextlib.suppress(SourceError):
                    answer = await self._fetcher.json(page)
            explained = strangers.explain(refused, answer)
            if explained is refused:
                raise
            raise explained from refused

    async def _find(self) -> tuple[str, Fetched]:
        """
        Find the engine's page among the paths where one may be.

        Raises:
            Unreachable: Nobody answers.
            Malformed: What was wrong with /metrics, or with the only path there is to try.
        """
        paths = PATHS if self._forced is None else self._forced.paths
        wrong: dict[str, Malformed] = {}
        for path in paths:
            if path in self._avoided:
                continue
            body = b""
            try:
                found = await self._fetcher.get(self._fetcher.url(path), MAX_BODY_BYTES)
                body = found[0]
                await self._recognise(path, body)
            except NotThere as error:
                wrong[path] = error
            except Malformed as error:
                queue = error.kind == "json" and self.must_not_read(path, body)
                if not queue and (self._forced or not _may_be_elsewhere(error, path, body)):
                    raise
                wrong[path] = error
            else:
                self._track.facts_wanted = True
                return path, found
        if not self._avoided.isdisjoint(paths):
            raise taken_away()
        if self._forced is not None:
            tried = " and ".join(paths)
            first = wrong[paths[0]]
            raise NotThere(
                f"{first} at {tried}. {self._forced.silent}".rstrip(), status=first.status
            )
        raise wrong.get("/metrics") or next(iter(wrong.values()))

    async def _recognise(self, path: str, body: bytes) -> None:
        """
        Find out whose page it is; one without any sample may be an engine's that nobody has used yet.

        Raises:
            Malformed: as ``EngineTrack.recognise``.
            Unreachable: The page that would tell did not answer in time.
        """
        try:
            self._track.recognise(path, body)
        except Malformed as error:
            if error.kind != "no_samples" or self._forced or not is_blank(body):
                raise
            for engine in ENGINES:
                if engine.known_by is None or path not in engine.paths:
                    continue
                with contextlib.suppress(Malformed):
                    if engine.known_by.series(await self._fetcher.json(engine.known_by.path)):
                        self._track.is_of(engine)
                        return
            raise


def _may_be_elsewhere(error: Malformed, path: str, body: bytes) -> bool:
    """
    Whether the engine's page may be at another path, given what one path answered.

    Newer Tritons answer any path of their metrics port with an empty page, but /metrics.
    """
    empty = error.kind == "no_samples" and is_blank(body)
    return error.kind == "json" or (empty and path != "/metrics")


def taken_away() -> Malformed:
    """What to say of TensorRT-LLM's list of iteration statistics."""
    return Malformed(
        "/metrics is a list that reading takes away from other readers (TensorRT-LLM), so it is not read "
        "again; start the server with return_perf_metrics: true for /prometheus/metrics",
        kind="json",
    )
