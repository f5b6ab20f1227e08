"""KV bytes by the model's shape, against published sizes, and the pool that is left for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.profiles import find
from headroom_exporter.simulate.shapes import Shape, pool_blocks

LLAMA_8B = Shape(layers=32, kv_heads=8, head_dim=128)
LLAMA_70B = Shape(layers=80, kv_heads=8, head_dim=128)
LLAMA_2_7B = Shape(layers=32, kv_heads=32, head_dim=128)  # multi-head
QWEN3_32B = Shape(layers=64, kv_heads=8, head_dim=128)
DEEPSEEK_V3 = Shape(layers=61, latent=512 + 64)
# Gemma-2-9B: every other layer looks back 4,096 tokens.
GEMMA_2_9B = Shape(layers=21, kv_heads=8, head_dim=256, window_layers=21, window=4096)


@pytest.mark.parametrize(
    ("shape", "tensor_parallel", "expected"),
    [
        (LLAMA_8B, 1, 131_072),
        (LLAMA_70B, 1, 327_680),
        (LLAMA_70B, 4, 81_920),
        (LLAMA_2_7B, 1, 524_288),
        (QWEN3_32B, 1, 262_144),
        (DEEPSEEK_V3, 1, 70_272),
        (DEEPSEEK_V3, 8, 70_272),  # every GPU holds all of a latent
        (LLAMA_8B, 16, 16_384),  # fewer heads than GPUs: each holds one
        (LLAMA_8B, 3, 49_152),  # the fullest of three holds three of eight
    ],
)
def test_bytes_per_token_are_the_published_ones(shape, tensor_parallel, expected):
    assert shape.bytes_per_token(tensor_parallel) == expected


def test_fp8_halves_the_cache():
    assert LLAMA_8B.bytes_per_token(element_bytes=1) == 65_536


def test_layers_with_a_window_stop_growing_at_its_size():
    per_layer = 2 * 8 * 256 * 2
    assert GEMMA_2_9B.bytes_of_sequence(1000) == 1000 * 42 * per_layer
    assert GEMMA_2_9B.bytes_of_sequence(4096) == 4096 * 42 * per_layer
    assert GEMMA_2_9B.bytes_of_sequence(8192) == (8192 * 21 + 4096 * 21) * per_layer


@given(tokens=st.integers(0, 200_000), parallel=st.integers(1, 16))
def test_without_a_window_a_sequence_is_its_tokens(tokens, parallel):
    for shape in (LLAMA_8B, DEEPSEEK_V3):
        assert shape.bytes_of_sequence(tokens, parallel) == tokens * shape.bytes_per_token(parallel)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 32},
        {"layers": 32, "kv_heads": 8},
        {"layers": 32, "kv_heads": 8, "head_dim": 128, "latent": 576},
        {"layers": 0, "kv_heads": 8, "head_dim": 128},
        {"layers": 32, "kv_heads": 8, "head_dim": 128, "window_layers": 4},
        {"layers": 32, "kv_heads": 8, "head_dim": 128, "window": 4096},
        {"layers": -1, "latent": 576},
    ],
)
def test_a_shape_that_no_model_has_is_refused(wrong):
    with pytest.raises(ConfigError, match="shape: layers"):
        Shape(**wrong)


# --- pools ---------------------------------------------------------------------------------------

H100_BYTES = 84.9e9


def test_the_pool_of_the_recorded_run_is_met():
    # RTX 4090, Llama-3.1-8B, vLLM 0.19.0 at 0.9: num_gpu_blocks 2588.
    blocks = pool_blocks(LLAMA_8B, memory_bytes=25_250_627_584, weight_bytes=14.9888 * 2**30)
    assert blocks == pytest.approx(2588, abs=1)


def test_the_pool_of_four_cards_is_about_the_measured_one():
    # Four H100 with Llama-3.3-70B: 486,800 tokens measured.
    blocks = pool_blocks(
        LLAMA_70B,
        memory_bytes=H100_BYTES,
        weight_bytes=141.1e9,
        tensor_parallel=4,
        max_num_batched_tokens=8192,
    )
    assert blocks * 16 == pytest.approx(486_800, rel=0.02)


@pytest.mark.parametrize(
    ("name", "shape", "memory", "weights"),
    [
        ("l4-llama-3.1-8b", LLAMA_8B, 23.66e9, 14.9888 * 2**30),
        ("a100-80-llama-3.1-8b", LLAMA_8B, 84.9e9, 14.9888 * 2**30),
        ("h100-llama-3.1-8b", LLAMA_8B, 84.9e9, 14.9888 * 2**30),
        ("h200-llama-3.1-8b", LLAMA_8B, 150.1e9, 14.9888 * 2**30),
        ("l4x8-llama-3.1-70b", LLAMA_70B, 23.66e9, 141.1e9),
        ("rtx4090x8-llama-3.1-70b", LLAMA_70B, 25_250_627_584, 141.1e9),
        ("a100-80x4-llama-3.1-70b", LLAMA_70B, 84.9e9, 141.1e9),
        ("h100x4-llama-3.1-70b", LLAMA_70B, 84.9e9, 141.1e9),
        ("h200x2-llama-3.1-70b", LLAMA_70B, 150.1e9, 141.1e9),
    ],
)
def test_the_profiles_pools_follow_from_card_and_shape(name, shape, memory, weights):
    profile = find(name)
    blocks = pool_blocks(
        shape,
        memory_bytes=memory,
        weight_bytes=weights,
        tensor_parallel=profile.gpus,
        max_num_batched_tokens=profile.max_num_batched_tokens,
    )
    assert blocks == pytest.approx(profile.num_gpu_blocks, abs=1)


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="leave no room for a cache"):
        pool_blocks(LLAMA_70B, memory_bytes=H100_BYTES, weight_bytes=141.1e9)
