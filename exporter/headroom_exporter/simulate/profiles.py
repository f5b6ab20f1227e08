"""
What is simulated: a model on a device, as step time, KV pool and the engine's limits.

The profiles themselves are data: data/profiles.json, or a file of the user's.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.shapes import Shape, pool_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """
    One model on one device.

    Attributes:
        name: How the command line calls it.
        model_name: The ``model_name`` label of the metrics.
        source: Where the numbers come from.
        step_fixed: Seconds of a step whatever its batch (weights read, launches).
        step_per_sequence: Seconds each sequence in the step adds.
        step_per_kv_token: Seconds each resident KV token adds (cache read by attention).
        step_per_prefill_token: Seconds each prompt token computed in the step adds.
        decode_beside_prefill: Share of the decode time that still counts in a step that computes
            prompts; 1 where the two add up, less where decoding hides behind compute-bound prompts.
        num_gpu_blocks: Blocks of the KV pool; the engine keeps one of them for itself.
        block_tokens: Tokens in one block.
        max_num_seqs: Slots.
        max_num_batched_tokens: Tokens (decoded and prompt) one step may compute.
        max_model_len: Longest prompt plus output, in tokens.
        prefix_caching: Freed blocks stay findable, so that a preempted request may find its own.
        gpu: The card, for people.
        gpus: Cards that share the model (tensor parallel).
        dtype: Of weights and cache.
        basis: ``fitted`` to measurements of this card and model, or ``scaled`` from another.
        quality: How well it fits.

    Raises:
        ConfigError: limits that a real engine refuses to start with.
    """

    name: str
    model_name: str
    source: str
    step_fixed: float
    step_per_sequence: float
    step_per_prefill_token: float
    step_per_kv_token: float = 0.0
    decode_beside_prefill: float = 1.0
    num_gpu_blocks: int
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    prefix_caching: bool = True
    gpu: str = ""
    gpus: int = 1
    dtype: str = ""
    basis: str = ""
    quality: str = ""

    def __post_init__(self) -> None:
        if self.step_fixed <= 0 or min(self.block_tokens, self.max_num_seqs) < 1:
            raise ConfigError(
                f"profile {self.name}: step_fixed {self.step_fixed}, block_tokens "
                f"{self.block_tokens}, max_num_seqs {self.max_num_seqs}: must be above 0"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"profile {self.name}: max_num_batched_tokens {self.max_num_batched_tokens}: "
                f"must be at least max_num_seqs {self.max_num_seqs}"
            )
        if self.max_model_len > self.pool_tokens:
            raise ConfigError(
                f"profile {self.name}: max_model_len {self.max_model_len}: must fit in the pool "
                f"of {self.pool_tokens} tokens"
            )

    @property
    def usable_blocks(self) -> int:
        """Blocks that requests can hold."""
        return self.num_gpu_blocks - 1

    @property
    def pool_tokens(self) -> int:
        """Tokens that requests can hold."""
        return self.usable_blocks * self.block_tokens

    def step_seconds(self, sequences: int, resident: int, prefill: int) -> float:
        """
        Duration of one engine step.

        Args:
            sequences: Sequences scheduled in it.
            resident: KV tokens the running sequences hold as it begins.
            prefill: Prompt tokens it computes.

        Returns:
            Seconds. Decoding alone is linear in sequences and resident tokens; beside a prompt a
            part of it may hide (``decode_beside_prefill``), but never is a step shorter than its
            decoding.
        """
        decode = (
            self.step_fixed + self.step_per_sequence * sequences + self.step_per_kv_token * resident
        )
        if not prefill:
            return decode
        prompts = self.step_per_prefill_token * prefill
        return max(decode, prompts + self.decode_beside_prefill * decode)


# --- the table -----------------------------------------------------------------------------------

TABLE = Path(__file__).parent / "data" / "profiles.json"
_NAMES = {field.name: field for field in fields(Profile)}
# By the annotation, which is text here: what JSON may have, and what a message calls it.
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "float": ((int, float), "a number"),
    "int": ((int,), "a whole number"),
    "bool": ((bool,), "true or false"),
}
# In place of num_gpu_blocks a file may say what the pool follows from.
_POOL_KEYS = ("memory_bytes", "weight_bytes", "memory_share", "element_bytes", "shape")


@cache
def profiles() -> tuple[Profile, ...]:
    """Every profile that comes with the package."""
    return tuple(_read(TABLE))


def find(name: str) -> Profile:
    """
    The profile of that name, or the one in a JSON file.

    Args:
        name: As in ``profiles()``, or a path that ends in .json.

    Raises:
        ConfigError: there is none, or the file is wrong: file, key, value, what is allowed.
    """
    if name.endswith(".json"):
        found = _read(Path(name))
        if len(found) != 1:
            raise ConfigError(f"{name}: holds {len(found)} profiles: must hold one")
        return found[0]
    for profile in profiles():
        if profile.name == name:
            return profile
    known = ", ".join(profile.name for profile in profiles())
    raise ConfigError(f"profile {name}: must be one of {known}, or a file that ends in .json")


def _read(path: Path) -> list[Profile]:
    """Profiles of a file: one object, or several under ``profiles``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    listed = content.get("profiles", [content]) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise ConfigError(f"{path}: must hold an object, or a list of them under 'profiles'")
    return [_profile(f"{path}: profiles[{index}]", each) for index, each in enumerate(listed)]


def _profile(where: str, content: object) -> Profile:
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: must be an object")
    values = dict(content)
    pool = values.pop("pool", None)
    for key, value in values.items():
        field = _NAMES.get(key)
        if field is None:
            raise ConfigError(f"{where}.{key}: must be one of {', '.join(_NAMES)}, pool")
        kinds, words = _KINDS[str(field.type)]
        if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
            raise ConfigError(f"{where}.{key}: {value!r}: must be {words}")
    if pool is not None and "num_gpu_blocks" in values:
        raise ConfigError(f"{where}: must have num_gpu_blocks or pool, not both")
    if pool is not None:
        values["num_gpu_blocks"] = _pool_blocks(f"{where}.pool", pool, values)
    missing = [
        name for name, field in _NAMES.items() if name not in values and field.default is MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)}: must be there")
    return Profile(**values)


def _pool_blocks(where: str, pool: object, values: Mapping[str, Any]) -> int:
    """The size of a pool that is given by card and model."""
    if not isinstance(pool, dict) or set(pool) - set(_POOL_KEYS) or "shape" not in pool:
        raise ConfigError(f"{where}: must be an object of {', '.join(_POOL_KEYS)}")
    try:
        rest = {key: float(value) for key, value in pool.items() if key != "shape"}
        return pool_blocks(
            Shape(**pool["shape"]),
            tensor_parallel=values.get("gpus", 1),
            block_tokens=values["block_tokens"],
            max_num_batched_tokens=values["max_num_batched_tokens"],
            **rest,
        )
    except (ConfigError, TypeError, ValueError, KeyError) as exc:
        raise ConfigError(f"{where}: {exc}") from exc
