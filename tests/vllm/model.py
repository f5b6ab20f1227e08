"""
Make a tiny Llama with random weights and a tokenizer for it: 9 MB, a second, no download.

    python model.py DIRECTORY           with the interpreter of the vLLM environment

The weights come from a fixed seed, so every run answers alike. What it says is noise; the tests
are about how many sequences run, not what they say. The tokenizer is learnt from sources of the
standard library, since any text will do; prompts are sent as token ids.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

SEED = 20240607
VOCABULARY = 4096
POSITIONS = 4096
HIDDEN = 256
INTERMEDIATE = 512
LAYERS = 4
HEADS = 8
KV_HEADS = 4
SPECIAL = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def make_weights(directory: Path) -> None:
    """Write config.json and the weights (bfloat16)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=POSITIONS,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def make_tokenizer(directory: Path) -> None:
    """Write a byte-level BPE tokenizer of at most ``VOCABULARY`` entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library = Path(sysconfig.get_paths()["stdlib"])
    tokenizer.train([str(path) for path in sorted(library.glob("*.py"))[:60]], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(directory)


def main() -> int:
    """Write the model into the directory named by the only argument; return 0."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    make_weights(directory)
    make_tokenizer(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
