"""The wire of a replay: which lines of a page go when a family is hidden."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.requests import Request
from headroom_exporter.simulate.wire import Wire, family_names
from simulation import TINY_CPU

BASE = URL("http://simulated.invalid:8000")


def served(ranks: int = 2) -> Frontend:
    frontend = Frontend(TINY_CPU, ranks=ranks)
    for number in range(4):
        frontend.submit(Request(arrival=0.01 * number, prompt_tokens=50, output_tokens=50))
    frontend.advance(1.0)
    return frontend


def ask(wire: Wire, path: str) -> str:
    async def read() -> str:
        async with wire.get(BASE.join(URL(path, encoded=True))) as answer:
            assert answer.status == 200
            return b"".join([part async for part in answer.iter_chunked(65536)]).decode()

    return asyncio.run(read())


def families(page: str) -> dict[str, list]:
    return {each.name: each.samples for each in text_string_to_metric_families(page)}


@pytest.mark.parametrize("name", sorted(family_names()))
def test_a_hidden_family_and_nothing_else_is_missing(name):
    frontend = served()
    whole = families(ask(Wire(frontend, 0.0), "/metrics"))
    rest = families(ask(Wire(frontend, 0.0, hidden=frozenset({name})), "/metrics"))
    base = name.removesuffix("_total") if name not in whole else name
    assert base in whole
    assert whole.keys() - rest.keys() == {base, f"{base}_created"} & whole.keys()
    assert all(samples == whole[each] for each, samples in rest.items())


def test_a_filtered_answer_lacks_it_too():
    usage, running = "vllm:kv_cache_usage_perc", "vllm:num_requests_running"
    wire = Wire(served(), 0.0, hidden=frozenset({usage}))
    assert set(families(ask(wire, f"/metrics/?name[]={usage}&name[]={running}"))) == {running}
    assert ask(wire, f"/metrics/?name[]={usage}") == ""


def test_facts_stay():
    frontend = served()
    wire = Wire(frontend, 0.0, hidden=family_names())
    assert ask(wire, "/metrics") == ""
    for path in ("/version", "/v1/models"):
        assert ask(wire, path) == ask(Wire(frontend, 0.0), path) != ""


def test_it_is_there_until_it_is_hidden():
    frontend = served()
    wire = Wire(frontend, 0.0, hidden=frozenset({"vllm:num_requests_running"}), hidden_from=2.0)
    frontend.advance(1.999)
    assert "vllm:num_requests_running" in families(ask(wire, "/metrics"))
    frontend.advance(2.0)
    assert "vllm:num_requests_running" not in families(ask(wire, "/metrics"))
