"""Writes the tiny model's tokenizer with fresh random weights as a GGUF file, for llama.cpp.

Rule: as `tiny_model.py`: nothing is downloaded, everything follows from the seed. Needs `gguf` and `numpy`.

    python tests/engines/tiny_gguf.py MODEL_DIR OUT.gguf
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def write(model: Path, out: Path, *, seed: int = 1) -> Path:
    """Same shape, vocabulary and chat template as the model in `model`."""
    import gguf
    import numpy as np

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, kv_heads, inner = (
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["intermediate_size"],
    )
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    size = _add_vocabulary(writer, tokenizer, gguf)
    writer.add_chat_template((model / "chat_template.jinja").read_text(encoding="utf-8"))

    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.02).astype(np.float32)

    ones = np.ones(hidden, dtype=np.float32)
    kv = hidden // heads * kv_heads
    writer.add_tensor("token_embd.weight", weights(size, hidden))
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(layers):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", ones)
        writer.add_tensor(block + "attn_q.weight", weights(hidden, hidden))
        writer.add_tensor(block + "attn_k.weight", weights(kv, hidden))
        writer.add_tensor(block + "attn_v.weight", weights(kv, hidden))
        writer.add_tensor(block + "attn_output.weight", weights(hidden, hidden))
        writer.add_tensor(block + "ffn_norm.weight", ones)
        writer.add_tensor(block + "ffn_gate.weight", weights(inner, hidden))
        writer.add_tensor(block + "ffn_up.weight", weights(inner, hidden))
        writer.add_tensor(block + "ffn_down.weight", weights(hidden, inner))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add_vocabulary(writer: Any, tokenizer: Any, gguf: Any) -> int:
    """The byte-level BPE vocabulary; special tokens are control tokens."""
    vocabulary = tokenizer["model"]["vocab"]
    special = {entry["content"] for entry in tokenizer["added_tokens"] if entry["special"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    kinds = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(vocabulary["<|end|>"])
    writer.add_pad_token_id(vocabulary["<|pad|>"])
    writer.add_add_bos_token(False)
    return len(tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    print(write(args.model, args.out))
