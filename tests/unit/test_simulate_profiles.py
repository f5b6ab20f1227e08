"""Profiles: the table that ships, files of one's own, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.profiles import find, profiles

CONSTANTS = Path(__file__).parents[1] / "fixtures" / "throughput" / "constants.json"
OWN = {
    "name": "mine",
    "model_name": "m",
    "source": "a guess",
    "step_fixed": 0.01,
    "step_per_sequence": 0.0001,
    "step_per_prefill_token": 0.0001,
    "num_gpu_blocks": 1000,
    "block_tokens": 16,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "max_model_len": 4096,
}
BARE = {key: value for key, value in OWN.items() if key != "num_gpu_blocks"}


@pytest.fixture
def write(tmp_path):
    def make(content: object) -> str:
        path = tmp_path / "p.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return make


def test_every_profile_is_found_by_its_name_and_says_where_it_comes_from():
    assert len({profile.name for profile in profiles()}) == len(profiles()) == 11
    for profile in profiles():
        assert find(profile.name) == profile
        assert profile.source
        assert profile.quality
        assert profile.basis in ("fitted", "scaled")


def test_both_models_are_there_on_each_card():
    cards = {"L4", "RTX 4090", "A100-80", "H100", "H200"}
    for model in ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"):
        assert {p.gpu for p in profiles() if p.model_name == model} == cards


def test_the_constants_are_those_that_the_published_tables_were_compared_with():
    compared = json.loads(CONSTANTS.read_text())["profiles"]
    for entry in compared:
        profile = find(entry["name"])
        assert {key: getattr(profile, key) for key in entry} == entry


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"profile abacus: must be one of tiny-cpu, l4-llama"):
        find("abacus")


def test_a_file_of_ones_own_is_read(write):
    profile = find(write(OWN))
    assert (profile.name, profile.pool_tokens) == ("mine", 999 * 16)
    assert profile.prefix_caching


def test_a_pool_may_be_given_by_card_and_model(write):
    shape = {"layers": 32, "kv_heads": 8, "head_dim": 128}
    pool = {"memory_bytes": 25_250_627_584, "weight_bytes": 16.0944e9, "shape": shape}
    # Measured on an RTX 4090 with vLLM 0.19: 2,588 blocks.
    assert find(write({**BARE, "pool": pool})).num_gpu_blocks == pytest.approx(2588, abs=1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ("[1]", "must hold an object"),
        ({"profiles": []}, "holds 0 profiles: must hold one"),
        ({"profiles": [1]}, r"profiles\[0\]: must be an object"),
        ({**OWN, "speed": 1}, r"profiles\[0\]\.speed: must be one of name, model_name"),
        ({**OWN, "step_fixed": "fast"}, r"\.step_fixed: 'fast': must be a number"),
        ({**OWN, "max_num_seqs": 1.5}, r"\.max_num_seqs: 1.5: must be a whole number"),
        ({**OWN, "max_num_seqs": True}, r"\.max_num_seqs: True: must be a whole number"),
        ({**OWN, "prefix_caching": 1}, r"\.prefix_caching: 1: must be true or false"),
        ({"name": "x"}, "model_name, source, step_fixed"),
        ({**OWN, "max_model_len": 10**6}, "must fit in the pool"),
        ({**OWN, "pool": {"shape": {}}}, "must have num_gpu_blocks or pool, not both"),
        ({**BARE, "pool": {"shape": {"layers": 9}}}, r"\.pool: .*must have either kv_heads"),
        ({**BARE, "pool": {"bytes": 1}}, r"\.pool: must be an object of memory_bytes"),
        ({**BARE, "pool": {"shape": {"layers": 1, "latent": 9}}}, r"\.pool: .*memory_bytes"),
        ({**BARE, "pool": {"shape": 5}}, r"\.pool: "),
        (BARE, "num_gpu_blocks: must be there"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_where(write, content, reason):
    path = write(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        find(path)
    assert path in str(caught.value) or "profile mine" in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        find(str(tmp_path / "none.json"))
