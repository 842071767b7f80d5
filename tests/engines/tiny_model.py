"""Makes a tiny model with random weights: a real tokenizer, chat template and architecture, no knowledge.

Rule: everything is made on the spot from this file and a seed; nothing is downloaded. It runs inside an
engine's own environment (needs `transformers`, `tokenizers`, `torch`), never in agentserve's.

    python tests/engines/tiny_model.py DIR [--hidden 128 --layers 2 --heads 4 --context 4096 --seed 1]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
TEMPLATE = (
    "{% if tools %}<|system|>\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{{ m['content'] if m['content'] is string else (m['content'] | tojson) }}"
    "{% if m['tool_calls'] is defined and m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def corpus(seed: int, lines: int = 4_000) -> list[str]:
    """Text to train the tokenizer on: invented words with a natural spread of frequencies."""
    rng = random.Random(seed)
    syllables = [c + v for c in "bcdfghklmnprstvz" for v in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(3_000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=rng.randint(5, 20))) + "." for _ in range(lines)]


def make_tokenizer(where: Path, seed: int, vocabulary: int) -> int:
    """Train and save a byte-level BPE tokenizer; how many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", bos_token=None
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(where)
    return len(fast)


def make(where: Path, *, hidden: int, layers: int, heads: int, context: int, seed: int) -> Path:
    """The whole model, as `from_pretrained` and engines read it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    where.mkdir(parents=True, exist_ok=True)
    size = make_tokenizer(where, seed, vocabulary=2_048)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=context,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(where)
    generation = {"eos_token_id": 1, "pad_token_id": 0}
    (where / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where", type=Path)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=8_192)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(make(**vars(args)))


if __name__ == "__main__":
    main()
