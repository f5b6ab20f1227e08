"""
KV cache bytes from a model's shape, and how many blocks a card has room for.

Memory of a card = weights + what a step needs + cache; the weights are there once, whatever the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from headroom_exporter.errors import ConfigError

# vLLM's default share of the card's memory until 0.2x; 0.92 in 0.32.
MEMORY_SHARE = 0.9
# What is neither weights nor cache: CUDA graphs, libraries, and activations that grow with the tokens
# of a step. Meets the one pool known from a log, an RTX 4090's 2,588 blocks at 2,048 tokens, by one.
OVERHEAD_BYTES = 1.0e9
OVERHEAD_BYTES_PER_STEP_TOKEN = 1.0e5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """
    What of a model's shape its cache depends on.

    Attributes:
        layers: Layers with a cache that grows with the sequence.
        kv_heads: Key-value heads: all heads of multi-head attention, fewer of grouped queries. 0 with
            latent attention.
        head_dim: Elements of one head.
        latent: Elements of one token's compressed cache in multi-head latent attention (kv_lora_rank
            + rope dimension); not divided among GPUs. 0 without it.
        window_layers: Further layers that look back no further than ``window``.
        window: Tokens.

    Raises:
        ConfigError: neither heads nor a latent, or a window without a size.
    """

    layers: int
    kv_heads: int = 0
    head_dim: int = 0
    latent: int = 0
    window_layers: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        heads = self.kv_heads > 0 and self.head_dim > 0
        if min(self.layers, self.window_layers, self.window, self.latent) < 0 or (
            heads == (self.latent > 0)
        ):
            raise ConfigError(
                f"shape: layers {self.layers}, kv_heads {self.kv_heads}, head_dim {self.head_dim}, "
                f"latent {self.latent}: must have either kv_heads and head_dim, or latent"
            )
        if (self.window_layers > 0) != (self.window > 0) or self.layers + self.window_layers < 1:
            raise ConfigError(
                f"shape: layers {self.layers}, window_layers {self.window_layers}, window "
                f"{self.window}: must have a layer, and a window where there are window_layers"
            )

    def bytes_per_layer(self, tensor_parallel: int = 1, element_bytes: float = 2) -> float:
        """
        Bytes of one token in one layer, on each GPU.

        Args:
            tensor_parallel: GPUs that share the heads; heads that are fewer than GPUs are repeated.
            element_bytes: 2 for bfloat16, 1 for fp8.
        """
        if self.latent:
            return self.latent * element_bytes
        # 8 heads on 3 GPUs: some hold 3, and the fullest limits.
        heads = -(-self.kv_heads // tensor_parallel)
        return 2 * heads * self.head_dim * element_bytes

    def bytes_per_token(self, tensor_parallel: int = 1, element_bytes: float = 2) -> float:
        """Bytes on each GPU that one more token takes, while it is inside the window."""
        per_layer = self.bytes_per_layer(tensor_parallel, element_bytes)
        return (self.layers + self.window_layers) * per_layer

    def bytes_of_sequence(
        self, tokens: int, tensor_parallel: int = 1, element_bytes: float = 2
    ) -> float:
        """Bytes on each GPU of a whole sequence: layers with a window stop growing at its size."""
        per_layer = self.bytes_per_layer(tensor_parallel, element_bytes)
        inside = min(tokens, self.window)
        return (self.layers * tokens + self.window_layers * inside) * per_layer


def pool_blocks(
    shape: Shape,
    *,
    memory_bytes: float,
    weight_bytes: float,
    tensor_parallel: int = 1,
    block_tokens: int = 16,
    max_num_batched_tokens: int = 2048,
    memory_share: float = MEMORY_SHARE,
    element_bytes: float = 2,
) -> int:
    """
    KV blocks that fit beside the weights, the reserved one included.

    Args:
        shape: The model's.
        memory_bytes: Of one card, as CUDA reports it.
        weight_bytes: Of the whole model; shared evenly.
        tensor_parallel: Cards that share the model.
        block_tokens: Tokens in a block.
        max_num_batched_tokens: Tokens of a step, for which activations are set aside.
        memory_share: gpu_memory_utilization.
        element_bytes: Of the cache.

    Raises:
        ConfigError: nothing is left for the cache.
    """
    overhead = OVERHEAD_BYTES + OVERHEAD_BYTES_PER_STEP_TOKEN * max_num_batched_tokens
    free = memory_bytes * memory_share - weight_bytes / tensor_parallel - overhead
    blocks = int(free / (shape.bytes_per_token(tensor_parallel, element_bytes) * block_tokens))
    if blocks < 2:
        raise ConfigError(
            f"{weight_bytes / 1e9:.1f} GB of weights on {tensor_parallel} GPUs of "
            f"{memory_bytes / 1e9:.1f} GB leave no room for a cache"
        )
    return blocks
