"""
Step constants and pool sizes of the simulator's profiles, built from the published tables.

Where a card and model were measured the constants are fitted; where they were not, they are scaled
from the nearest measurement by memory bandwidth and arithmetic rate, and ``basis`` says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from headroom_exporter.simulate.profiles import Profile
from throughput import fit, tables

PATH = tables.FOLDER / "constants.json"
BLOCK_TOKENS = 16
# vLLM's default share of the card's memory.
MEMORY_SHARE = 0.9
# Memory bandwidth that a decoding step reaches on HBM beside its launches: A10G and RTX 4090, whose
# steps are long against the launches, show 0.90 and 0.94.
REACHED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """
    A GPU.

    Attributes:
        bandwidth: Bytes per second (data sheet).
        memory: Bytes as CUDA reports them.
        batched_tokens: vLLM's default max_num_batched_tokens of its server on this card.
        num_seqs: vLLM's default max_num_seqs.
        all_reduce: Bytes per second and GPU of an all-reduce between such cards.
    """

    name: str
    bandwidth: float
    memory: float
    batched_tokens: int
    num_seqs: int
    all_reduce: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model in bfloat16: bytes of weights, bytes per KV token, layers and hidden size."""

    name: str
    short: str
    weights: float
    kv_bytes: int
    layers: int
    hidden: int


# Defaults: vLLM 0.32, engine/arg_utils.py get_batch_defaults. All-reduce: two thirds of the data
# sheet's NVLink rate in one direction; PCIe 4.0 without peer access, shared by eight cards.
L4 = Card(
    name="L4",
    bandwidth=300e9,
    memory=23.66e9,
    batched_tokens=2048,
    num_seqs=256,
    all_reduce=8e9,
)
RTX4090 = Card(
    name="RTX 4090",
    bandwidth=1008e9,
    memory=25_250_627_584,
    batched_tokens=2048,
    num_seqs=256,
    all_reduce=10e9,
)
A100 = Card(
    name="A100-80",
    bandwidth=2039e9,
    memory=84.9e9,
    batched_tokens=2048,
    num_seqs=256,
    all_reduce=200e9,
)
H100 = Card(
    name="H100",
    bandwidth=3350e9,
    memory=84.9e9,
    batched_tokens=8192,
    num_seqs=1024,
    all_reduce=300e9,
)
H200 = Card(
    name="H200",
    bandwidth=4800e9,
    memory=150.1e9,
    batched_tokens=8192,
    num_seqs=1024,
    all_reduce=300e9,
)
# Weights: 14.9888 GiB as vLLM's log has them; 70.55e9 parameters.
LLAMA_8B = Model(
    name="meta-llama/Llama-3.1-8B",
    short="llama-3.1-8b",
    weights=14.9888 * 2**30,
    kv_bytes=131_072,
    layers=32,
    hidden=4096,
)
LLAMA_70B = Model(
    name="meta-llama/Llama-3.1-70B",
    short="llama-3.1-70b",
    weights=141.1e9,
    kv_bytes=327_680,
    layers=80,
    hidden=8192,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """
    Step constants in seconds, as Profile has them.

    Attributes:
        basis: ``fitted`` to measurements of this card and model, or ``scaled`` from another.
        source: Where they come from.
        quality: How well they fit.
    """

    fixed: float
    per_sequence: float
    per_kv_token: float
    per_prefill_token: float
    beside_prefill: float = 1.0
    basis: str
    source: str
    quality: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One profile as constants.json has it: the fields of Profile and what is known about them."""

    name: str
    model_name: str
    source: str
    step_fixed: float
    step_per_sequence: float
    step_per_kv_token: float
    step_per_prefill_token: float
    decode_beside_prefill: float
    num_gpu_blocks: int
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    gpu: str
    gpus: int
    dtype: str
    basis: str
    quality: str

    def profile(self) -> Profile:
        """Return the profile to simulate."""
        return Profile(
            name=self.name,
            model_name=self.model_name,
            source=self.source,
            step_fixed=self.step_fixed,
            step_per_sequence=self.step_per_sequence,
            step_per_kv_token=self.step_per_kv_token,
            step_per_prefill_token=self.step_per_prefill_token,
            decode_beside_prefill=self.decode_beside_prefill,
            num_gpu_blocks=self.num_gpu_blocks,
            block_tokens=self.block_tokens,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
        )


def pool_blocks(card: Card, model: Model, gpus: int, weights_share: float = 1.0) -> int:
    """
    KV blocks that vLLM finds room for.

    What is neither weights nor cache is taken as 1.0 GB and 100 kB per token of a step: with that the
    recorded RTX 4090 comes out within 0.2% (2,588 blocks measured).
    """
    overhead = 1.0e9 + 1e5 * card.batched_tokens
    free = card.memory * MEMORY_SHARE - model.weights * weights_share / gpus - overhead
    return int(free / (model.kv_bytes / gpus * BLOCK_TOKENS))


def _h100_8b() -> StepCost:
    """Cache and prompt cost from TensorRT-LLM's 42 rows, fixed and per-sequence from vLLM's."""
    loop = fit.non_negative(fit.closed_rows(tables.closed("h100_8b_trtllm.csv")))
    per_kv_token, per_prefill_token = loop.values[2], loop.values[3]
    steps = fit.step_rows(tables.live_steps("h100", 1), per_kv_token)
    steps += fit.step_rows(tables.cached_decode_steps(), per_kv_token)
    vllm = fit.non_negative(steps)
    return StepCost(
        fixed=vllm.values[0],
        per_sequence=vllm.values[1],
        per_kv_token=per_kv_token,
        per_prefill_token=per_prefill_token,
        basis="fitted",
        source=(
            "vLLM 0.6 steps (LambdaLabsML/vllm-benchmark) and vLLM 0.11 with prefix caching "
            "(kubernetes-sigs/inference-perf, KubeCon NA 2025); cache and prompt cost from "
            "TensorRT-LLM 1.0rc3 (ai-dynamo/aiconfigurator)"
        ),
        quality=(
            f"vLLM steps: median {vllm.median_error:.1%}, worst {vllm.worst_error:.1%}; "
            f"TensorRT-LLM rows: {loop.median_error:.1%}, {loop.worst_error:.1%}"
        ),
    )


def _a100_8b() -> StepCost:
    """Three sources of equal weight: operators, live steps and the 40 GB card by bandwidth."""
    per_kv_token = LLAMA_8B.kv_bytes / (A100.bandwidth * 0.75)
    operators = tables.operator_steps("a100", "Meta-Llama-3-8B", 0.6e-3, prefill=False)
    live = tables.live_steps("a100", 1)
    # 75 tokens/s on the 40 GB card of 1,555 GB/s.
    small = tables.Step(sequences=1, resident=1088, prefill=0, seconds=1 / 75 * 1555 / 2039)
    rows = (
        fit.step_rows(operators, 0.0)
        + fit.step_rows(live, per_kv_token)
        + fit.step_rows([small], per_kv_token)
    )
    found = fit.non_negative(rows)
    prompts = tables.operator_steps("a100", "Meta-Llama-3-8B", 0.6e-3, prefill=True)
    return StepCost(
        fixed=found.values[0],
        per_sequence=found.values[1],
        per_kv_token=per_kv_token,
        per_prefill_token=_per_prefill_token(prompts, found.values[0]),
        basis="fitted",
        source=(
            "operator timings (microsoft/vidur), vLLM 0.6 steps (LambdaLabsML/vllm-benchmark), one "
            "request on the 40 GB card with vLLM 0.23 (johnmusgrave.com) scaled by bandwidth; cache "
            "at 75% of bandwidth"
        ),
        quality=f"steps of 1 to 128: median {found.median_error:.1%}, worst {found.worst_error:.1%}",
    )


def _rtx4090_8b() -> StepCost:
    """
    Found on the recorded run (replay.py) around what operator timings of the card allow.

    The run itself cannot tell fixed, cache and prompt cost apart: neighbouring values trade off.
    """
    return StepCost(
        fixed=17.2e-3,
        per_sequence=0.05e-3,
        per_kv_token=0.175e-6,
        per_prefill_token=1 / 12_650,
        beside_prefill=0.6,
        basis="fitted",
        source="vLLM 0.19.0, 300 requests, overloaded (casys-kaist/LLMServingSim @5daddb21)",
        quality="11 figures of the run: mean 1.8%, worst 7.8% (TTFT p95)",
    )


def _l4_8b() -> StepCost:
    """The A10G has the same architecture's rate per byte: twice the bandwidth."""
    row = tables.closed("a10g_8b_vllm.csv")[0]
    a10g = (row.tpot * row.output - 0.13729) / (row.output - 1)
    return StepCost(
        fixed=a10g * 600e9 / L4.bandwidth,
        per_sequence=0.1e-3,
        per_kv_token=LLAMA_8B.kv_bytes / (L4.bandwidth * 0.8),
        per_prefill_token=1 / 3_400,
        basis="scaled",
        source=(
            "one request on an A10G, vLLM 0.4.3 fp16 (llmperf), by bandwidth 600 to 300 GB/s; prompts "
            "at 45% of 121 TFLOP/s; no table of an L4 with this model was found"
        ),
        quality="not measured; expect 10% at small batches, 30% on prompts",
    )


def _h200_8b(h100: StepCost) -> StepCost:
    return StepCost(
        fixed=_scaled_fixed(h100.fixed, LLAMA_8B, (H100, 1), (H200, 1)),
        per_sequence=h100.per_sequence,
        per_kv_token=h100.per_kv_token * H100.bandwidth / H200.bandwidth,
        per_prefill_token=h100.per_prefill_token,
        basis="scaled",
        source="the H100 profile by memory bandwidth 3.35 to 4.8 TB/s; launches and arithmetic kept",
        quality="not measured in bfloat16; fp8 table of SGLang 0.5.6 for comparison only",
    )


def _fitted_70b(card: Card, key: str, model: str, reached: float) -> StepCost:
    """Live steps give the level, operators up to 128 tokens the slope; four GPUs."""
    per_kv_token = LLAMA_70B.kv_bytes / 4 / (card.bandwidth * reached)
    live = tables.live_steps(key, 4)
    operators = tables.operator_steps(key, model, 0.3e-3, prefill=False)
    rows = [
        fit.Row(
            columns=(1.0, 0.0, float(step.sequences)),
            seconds=step.seconds - per_kv_token * step.resident,
            weight=1 / len(live),
        )
        for step in live
    ]
    rows += [
        fit.Row(
            columns=(0.0, 1.0, float(step.sequences)),
            seconds=step.seconds,
            weight=1 / len(operators),
        )
        for step in operators
    ]
    found = fit.non_negative(rows)
    prompts = tables.operator_steps(key, model, 0.3e-3, prefill=True)
    compute = _per_prefill_token(prompts, found.values[1])
    return StepCost(
        fixed=found.values[0],
        per_sequence=found.values[2],
        per_kv_token=per_kv_token,
        per_prefill_token=compute + all_reduce_seconds(card, LLAMA_70B, 4),
        basis="fitted",
        source=(
            f"vLLM 0.6 steps of Llama-3-70B (LambdaLabsML/vllm-benchmark); slope and prompts from "
            f"operator timings of {model} (microsoft/vidur) and the all-reduce's bytes; cache at "
            f"{reached:.0%} of bandwidth"
        ),
        quality=f"steps: median {found.median_error:.1%}, worst {found.worst_error:.1%}",
    )


def _scaled_70b(card: Card, gpus: int, h100: StepCost, prompts: float, latency: float) -> StepCost:
    """
    The H100 profile on other cards.

    Args:
        card: The card.
        gpus: How many of it.
        h100: What is scaled.
        prompts: Seconds of arithmetic per prompt token.
        latency: Seconds that all-reduces over a slower link add to a step.
    """
    link = all_reduce_seconds(card, LLAMA_70B, gpus)
    return StepCost(
        fixed=_scaled_fixed(h100.fixed, LLAMA_70B, (H100, 4), (card, gpus)) + latency,
        per_sequence=h100.per_sequence + link,
        per_kv_token=LLAMA_70B.kv_bytes / gpus / (card.bandwidth * 0.78),
        per_prefill_token=prompts + link,
        basis="scaled",
        source=(
            "the H100 x 4 profile by memory bandwidth and arithmetic rate, all-reduce by its bytes "
            f"over the link; no table of {gpus} x {card.name} with this model was found"
        ),
        quality="not measured; expect 15% on NVLink, a factor of up to 1.5 on PCIe",
    )


def _per_prefill_token(steps: list[tables.Step], fixed: float) -> float:
    """Seconds per prompt token of steps of 1,024 tokens and more, above a step's fixed part."""
    large = [step for step in steps if step.prefill >= 1024]
    return sum((step.seconds - fixed) / step.prefill for step in large) / len(large)


def _scaled_fixed(
    fixed: float, model: Model, known: tuple[Card, int], other: tuple[Card, int]
) -> float:
    """A step's fixed part on other cards: weights by bandwidth, the rest as it is."""

    def weights(card: Card, gpus: int) -> float:
        return model.weights / gpus / (card.bandwidth * REACHED)

    return fixed - weights(*known) + weights(*other)


def all_reduce_seconds(card: Card, model: Model, gpus: int) -> float:
    """
    Seconds per token of the two all-reduces of every layer.

    A ring moves 2 (g - 1) / g of the bytes through every link.
    """
    token_bytes = 2 * model.layers * model.hidden * 2
    return token_bytes * 2 * (gpus - 1) / gpus / card.all_reduce


def build() -> list[Entry]:
    """Every profile, fitted afresh from the tables."""
    h100_8b = _h100_8b()
    h100_70b = _fitted_70b(H100, "h100", "Llama-2-70b-hf", 0.78)
    a100_70b = _fitted_70b(A100, "a100", "Meta-Llama-3-70B", 0.75)
    h100_prompts = h100_70b.per_prefill_token - all_reduce_seconds(H100, LLAMA_70B, 4)
    # Seconds of arithmetic per prompt token of the 70B on one card: by the 8B's rate on it.
    ratio = LLAMA_70B.weights / LLAMA_8B.weights
    return [
        _entry(L4, LLAMA_8B, 1, 16_384, _l4_8b()),
        _entry(RTX4090, LLAMA_8B, 1, 32_768, _rtx4090_8b(), blocks=2588),
        _entry(A100, LLAMA_8B, 1, 131_072, _a100_8b()),
        _entry(H100, LLAMA_8B, 1, 131_072, h100_8b),
        _entry(H200, LLAMA_8B, 1, 131_072, _h200_8b(h100_8b)),
        _entry(L4, LLAMA_70B, 8, 32_768, _scaled_70b(L4, 8, h100_70b, ratio / 8 / 3_400, 10e-3)),
        _entry(
            RTX4090,
            LLAMA_70B,
            8,
            32_768,
            _scaled_70b(RTX4090, 8, h100_70b, ratio / 8 / 12_000, 8e-3),
        ),
        _entry(A100, LLAMA_70B, 4, 131_072, a100_70b),
        _entry(H100, LLAMA_70B, 4, 131_072, h100_70b),
        _entry(H200, LLAMA_70B, 2, 131_072, _scaled_70b(H200, 2, h100_70b, 2 * h100_prompts, 0.0)),
    ]


def _entry(
    card: Card, model: Model, gpus: int, max_model_len: int, cost: StepCost, blocks: int = 0
) -> Entry:
    count = f"x{gpus}" if gpus > 1 else ""
    return Entry(
        name=f"{card.name.lower().replace(' ', '')}{count}-{model.short}",
        model_name=model.name,
        source=cost.source,
        step_fixed=_digits(cost.fixed),
        step_per_sequence=_digits(cost.per_sequence),
        step_per_kv_token=_digits(cost.per_kv_token),
        step_per_prefill_token=_digits(cost.per_prefill_token),
        decode_beside_prefill=cost.beside_prefill,
        num_gpu_blocks=blocks or pool_blocks(card, model, gpus),
        block_tokens=BLOCK_TOKENS,
        max_num_seqs=card.num_seqs,
        max_num_batched_tokens=card.batched_tokens,
        max_model_len=max_model_len,
        gpu=card.name,
        gpus=gpus,
        dtype="bfloat16",
        basis=cost.basis,
        quality=cost.quality,
    )


def _digits(value: float) -> float:
    """Three significant digits: more than the tables can tell."""
    return float(f"{value:.3g}")


def dump(entries: list[Entry]) -> str:
    """Return the text of constants.json."""
    return json.dumps({"profiles": [asdict(entry) for entry in entries]}, indent=1) + "\n"


def load() -> dict[str, Entry]:
    """Entries of the committed constants.json, by name."""
    data = json.loads(PATH.read_text(encoding="utf-8"))
    return {each["name"]: Entry(**each) for each in data["profiles"]}
