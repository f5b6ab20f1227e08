"""What the simulator's tests share."""

from __future__ import annotations

from headroom_exporter.simulate.profiles import Profile

# Round figures to reckon with; the profile of the same name in the package is fitted anew at times.
TINY_CPU = Profile(
    name="tiny-cpu",
    model_name="tiny",
    source="",
    step_fixed=1.2e-3,
    step_per_sequence=0.2e-3,
    step_per_prefill_token=0.06e-3,
    num_gpu_blocks=72,
    block_tokens=128,
    max_num_seqs=48,
    max_num_batched_tokens=2048,
    max_model_len=2048,
)
