"""
A random Llama of 1.3 million parameters as a GGUF file, made in a second:

    PYTHONPATH=DIRECTORY_WITH_gguf python model.py FILE
"""

from __future__ import annotations

import sys

import gguf
import numpy as np

CONTEXT, WIDTH, BLOCKS, FEED_FORWARD, HEADS, KV_HEADS, VOCABULARY = 8192, 128, 2, 256, 4, 2, 4096


def add_settings(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    special = [(b"<unk>", gguf.TokenType.UNKNOWN), (b"<s>", gguf.TokenType.CONTROL)]
    special.append((b"</s>", gguf.TokenType.CONTROL))
    single = [(b"<0x%02X>" % value, gguf.TokenType.BYTE) for value in range(256)]
    words = [
        (f"\u2581w{i}".encode(), gguf.TokenType.NORMAL)
        for i in range(VOCABULARY - len(special) - len(single))
    ]
    tokens = special + single + words
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def add_tensors(writer: gguf.GGUFWriter) -> None:
    random = np.random.default_rng(0)
    head = WIDTH // HEADS
    shapes = {
        "token_embd": (VOCABULARY, WIDTH),
        "output": (VOCABULARY, WIDTH),
        "output_norm": (WIDTH,),
    }
    for i in range(BLOCKS):
        shapes |= {
            f"blk.{i}.attn_q": (WIDTH, WIDTH),
            f"blk.{i}.attn_k": (KV_HEADS * head, WIDTH),
            f"blk.{i}.attn_v": (KV_HEADS * head, WIDTH),
            f"blk.{i}.attn_output": (WIDTH, WIDTH),
            f"blk.{i}.ffn_gate": (FEED_FORWARD, WIDTH),
            f"blk.{i}.ffn_up": (FEED_FORWARD, WIDTH),
            f"blk.{i}.ffn_down": (WIDTH, FEED_FORWARD),
            f"blk.{i}.attn_norm": (WIDTH,),
            f"blk.{i}.ffn_norm": (WIDTH,),
        }
    for name, shape in shapes.items():
        values = random.normal(1.0 if len(shape) == 1 else 0.0, 0.02, shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))


def main() -> int:
    """Write the file named by the only argument."""
    writer = gguf.GGUFWriter(sys.argv[1], "llama")
    add_settings(writer)
    add_vocabulary(writer)
    add_tensors(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
