"""What a page of many short lines may cost: no multiple of its size."""

from __future__ import annotations

import tracemalloc

import pytest

from headroom_exporter.config import EngineConfig, PollConfig
from headroom_exporter.engines import base
from headroom_exporter.errors import Malformed
from headroom_exporter.track import EngineTrack

SIZE = 2**20


def peak(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("line", [b"\n", b"ab\n", b"# \n"])
def test_a_page_of_short_lines_takes_no_multiple_of_its_size(line: bytes):
    body = line * (SIZE // len(line))
    assert peak(lambda: base.parse_page(body, frozenset({"wanted"}))) < 4 * SIZE
    assert peak(lambda: base.is_blank(body)) < SIZE


def test_nor_does_saying_why_it_is_unknown():
    track = EngineTrack(
        EngineConfig(name="a", url="http://127.0.0.1:1"), PollConfig(), lambda *_: None
    )
    body = b"ab\n" * (SIZE // 3)

    def say() -> None:
        with pytest.raises(Malformed):
            track.recognise("/metrics", body)

    assert peak(say) < 5 * SIZE
