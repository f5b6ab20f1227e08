"""A real vLLM is saturated, a person is paged and told what binds, and told again when it is over."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from pager.stack import FACTOR, PagerPath, Watched
from pager.webhook import Notification, as_read
from vllm.client import Phase, run_load
from vllm.server import VllmServer

if TYPE_CHECKING:
    from pathlib import Path

    from vllm.conftest import Record

pytestmark = pytest.mark.vllm

WAIT_SECONDS = 240.0
SLOTS, CALM, OVERLOAD = 8, 2, 40
PLAN = {"concurrency": 6, "slo": {"ttft_p95_seconds": 0.5, "tpot_p95_seconds": 0.2}}


@pytest.mark.timeout(900)
def test_a_saturated_vllm_pages_names_its_slots_and_resolves(
    interpreter: Path, model: Path, tmp_path: Path, figure: Record
) -> None:
    with (
        VllmServer(interpreter, model, tmp_path, max_num_seqs=SLOTS, num_gpu_blocks=200) as server,
        run_load(server.url, [Phase(seconds=3600, clients=CALM)], log_path=tmp_path / "calm.jsonl"),
        PagerPath(tmp_path, [Watched(name="real", url=server.url)], PLAN) as path,
    ):
        wait_for_calm(path)
        assert path.webhook.notifications == []
        began = time.monotonic()
        with run_load(
            server.url,
            [Phase(seconds=3600, clients=OVERLOAD)],
            log_path=tmp_path / "overload.jsonl",
            seed=2,
        ):
            page = path.webhook.wait(is_page, WAIT_SECONDS)
            took = time.monotonic() - began
        figure(f"from overload to page, durations divided by {FACTOR}", took, "s")
        resolved = path.webhook.wait(
            lambda each: (
                each.body["groupKey"] == page.body["groupKey"] and each.body["status"] == "resolved"
            ),
            WAIT_SECONDS,
        )
        assert {rule["health"] for rule in path.prometheus.rules()} <= {"ok", "unknown"}
    print(as_read(page), as_read(resolved), sep="\n")

    (alert,) = page.alerts("firing")
    summary = alert["annotations"]["summary"]
    figure("the page", summary, expected="names the slots")
    assert (alert["labels"]["engine"], alert["labels"]["model_name"]) == ("real", "tiny")
    assert re.search(r"\bslots\b", summary), summary
    assert resolved.names("firing") == set()


def is_page(notification: Notification) -> bool:
    return notification.receiver == "pager" and notification.body["status"] == "firing"


def wait_for_calm(path: PagerPath) -> None:
    """Headroom has been measured for ten seconds, and there was some all the time."""
    give_up = time.monotonic() + WAIT_SECONDS
    calm = "min_over_time(headroom_ratio[10s]) > 0 and count_over_time(headroom_ratio[10s]) > 15"
    while path.prometheus.query(calm).keys() != {"real"}:
        assert time.monotonic() < give_up, path.exporter.log_text[-4000:]
        time.sleep(0.2)
