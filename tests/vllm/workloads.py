"""
The lists of requests that the simulator is held to, and the server that each of them gets.

Work comes in floods and bursts that are over when the next begins. A queue that lives on the small
difference between load and capacity would measure the machine's speed, magnified, and not the
simulator: on such lists two real runs differ by 15 to 35 % (tried).
"""

from __future__ import annotations

from dataclasses import dataclass

from headroom_exporter.simulate import generators


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """
    A list of requests and the server that gets them.

    Attributes:
        traffic: When each generator (see simulate/generators.py) begins, seconds, and its text.
        seed: Of the token ids; the generators have their own.
    """

    name: str
    max_num_seqs: int
    num_gpu_blocks: int
    traffic: tuple[tuple[float, str], ...]
    max_num_batched_tokens: int = 2048
    max_model_len: int = 2048
    seed: int = 1

    def requests(self) -> list[tuple[float, int, int]]:
        """Arrival in seconds, prompt tokens, output tokens; in order of arrival."""
        rows = [
            (round(begin + each.arrival, 4), each.prompt_tokens, each.output_tokens)
            for begin, text in self.traffic
            for each in generators.parse(text).requests()
        ]
        return sorted(rows)


CHAT = "prompt_p50=160&prompt_p95=400&prompt_max=1200&output_p50=160&output_p95=400&output_max=700"
SHORT = "prompt_p50=20&prompt_p95=60&prompt_max=100&output_p50=100&output_p95=200&output_max=300"
LONG = "prompt_p50=600&prompt_p95=1400&prompt_max=1800&output_p50=60&output_p95=150&output_max=240"


def _poisson(
    begin: float, seconds: float, rate: float, seed: int, lengths: str = CHAT
) -> tuple[float, str]:
    return begin, f"synthetic:poisson?rate={rate:g}&duration={seconds:g}&seed={seed}&{lengths}"


def _bursty(seconds: float, parameters: str, seed: int, lengths: str = CHAT) -> tuple[float, str]:
    return 0.0, f"synthetic:bursty?{parameters}&duration={seconds:g}&seed={seed}&{lengths}"


WORKLOADS = (
    # The constants of a step are fitted to this one alone: batches of 1 to 48, contexts and prompts of
    # all sizes, as independent of each other as can be.
    Workload(
        name="calibration",
        max_num_seqs=48,
        num_gpu_blocks=400,
        traffic=(
            (0.0, f"synthetic:ramp?rate=1&rate_end=30&duration=30&seed=11&{CHAT}"),
            _poisson(36, 3, 60, 12),
            _poisson(46, 3, 60, 13, SHORT),
            _poisson(54, 5, 12, 14, LONG.replace("output_p50=60", "output_p50=150")),
            _poisson(63, 18, 4, 15, LONG),
            _poisson(63, 18, 4, 16),
        ),
    ),
    Workload(
        name="calm",
        max_num_seqs=16,
        num_gpu_blocks=400,
        traffic=(_poisson(0, 60, 4, 21),),
    ),
    # Two floods of four times what 16 slots can do, on a base that they can.
    Workload(
        name="slots",
        max_num_seqs=16,
        num_gpu_blocks=400,
        traffic=(_poisson(0, 60, 4, 31), _poisson(5, 4, 70, 32), _poisson(33, 4, 70, 33)),
    ),
    # The same with more slots than the pool of 71 blocks can feed.
    Workload(
        name="kv",
        max_num_seqs=48,
        num_gpu_blocks=72,
        traffic=(_poisson(0, 60, 4, 41), _poisson(5, 4, 80, 42), _poisson(33, 4, 80, 43)),
    ),
    # Bursts of 30 requests within 0.2 s, in the mean.
    Workload(
        name="bursty",
        max_num_seqs=16,
        num_gpu_blocks=400,
        traffic=(_bursty(60, "rate=6&dispersion=59&burst_seconds=0.2", 51),),
    ),
    # Bursts of 50 prompts that take as long as their answers: several in one step, cut by the token budget.
    Workload(
        name="prompts",
        max_num_seqs=32,
        num_gpu_blocks=400,
        traffic=(_bursty(60, "rate=12&dispersion=99&burst_seconds=0.2", 61, LONG),),
    ),
)
