"""tools/throughput/paging.py: memory held with blocks over memory reserved without."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st


def load(name):
    tools = str(Path(__file__).resolve().parents[2] / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    return import_module(name)


paging = load("throughput.paging")
EXACT = paging.Policy(name="exact", reserve=lambda p, o: p + o)


@given(prompt=st.integers(1, 200), output=st.integers(1, 200))
def test_held_is_the_mean_of_blocks_over_the_steps(prompt, output):
    steps = [-(-(prompt + i) // 16) * 16 for i in range(output)]
    assert paging.held(prompt, output) == pytest.approx(sum(steps) / output)


@given(length=st.integers(500, 5000))
def test_equal_prompt_and_output_need_three_quarters_of_the_exact_length(length):
    mix = paging.Mix(name="", lengths=[(length, length)])
    # Blocks add (16 - 1) / 2 tokens to the 1.5 x length that are held on average.
    assert paging.ratio(mix, EXACT) == pytest.approx(0.75 + 7.5 / (2 * length), abs=0.001)


@given(prompt=st.integers(200, 3000), output=st.integers(200, 3000))
def test_share_follows_from_prompt_and_output_alone(prompt, output):
    mix = paging.Mix(name="", lengths=[(prompt, output)])
    expected = (prompt + output / 2) / (prompt + output)
    assert paging.ratio(mix, EXACT) == pytest.approx(expected, abs=0.03)


def test_mix_weighs_requests_by_how_long_they_hold_memory():
    short, long = (100, 16), (100, 1600)
    both = paging.ratio(paging.Mix(name="", lengths=[short, long]), EXACT)
    alone = paging.ratio(paging.Mix(name="", lengths=[long]), EXACT)
    assert both == pytest.approx(alone, abs=0.01)


def test_policy_that_cannot_hold_a_request_gives_nothing():
    window = paging.Policy(name="window", reserve=lambda _p, _o: 100)
    assert paging.ratio(paging.Mix(name="", lengths=[(90, 11)]), window) is None
    assert paging.ratio(paging.Mix(name="", lengths=[(90, 10)]), window) is not None


def test_public_traces_lie_above_three_quarters_of_the_exact_length():
    shares = {mix.name: paging.ratio(mix, EXACT) for mix in paging.mixes()}
    assert shares["ShareGPT, 300 requests of the 4090 run"] == pytest.approx(0.788, abs=0.002)
    assert shares["Azure 2023 conversation"] == pytest.approx(0.884, abs=0.002)
    assert shares["Azure 2023 code"] == pytest.approx(0.968, abs=0.002)


def test_policies_that_need_no_foresight_never_reach_three_quarters_on_traces():
    for mix in paging.mixes()[3:]:
        shares = [paging.ratio(mix, policy) for policy in paging.policies()[1:]]
        assert max(share for share in shares if share is not None) < 0.72


def test_padding_a_batch_wastes_more_the_more_it_mixes():
    same = paging.Mix(name="", lengths=[(256, 256)] * 64)
    mixed = paging.Mix(name="", lengths=[(256, 256)] * 63 + [(4096, 1024)])
    assert paging.padded_batch(same, 8, 1) == pytest.approx(paging.ratio(same, EXACT))
    assert paging.padded_batch(mixed, 64, 1) < 0.1
