"""How long an iteration takes: a roofline of a model on an accelerator, with factors that are fitted to real engines.

Rule: every number has its source beside it. Time of one iteration is

    max(2 x parameters x tokens / (FLOP/s x mfu), weight bytes / (bandwidth x mbu))   the linear layers
    + attention FLOPs of prefill chunks / (FLOP/s x mfu_attention)                    4 x layers x heads x dim x context
    + KV bytes read by decodes / (bandwidth x mbu)
    + overhead
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from agentserve.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The shape of a transformer, from its published config."""

    name: str
    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int = 2  # of KV
    weight_dtype_bytes: int = 2
    context_max: int = 131_072

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """Peak figures of a datasheet, dense bf16."""

    name: str
    flops: float
    bandwidth: float
    memory_bytes: float


# meta-llama/Llama-3.1-8B config.json: 32 layers, 32 heads, 8 KV heads, head dim 128; 8.03e9 parameters
LLAMA_8B = Model(name="llama-3.1-8b", parameters=8.03e9, layers=32, heads=32, kv_heads=8, head_dim=128)
# meta-llama/Llama-3.1-70B config.json: 80 layers, 64 heads, 8 KV heads, head dim 128; 70.6e9 parameters
LLAMA_70B = Model(name="llama-3.1-70b", parameters=70.6e9, layers=80, heads=64, kv_heads=8, head_dim=128)
# Qwen/Qwen3-32B-FP8 config.json: 64 layers, 64 heads, 8 KV heads, head dim 128; 32.8e9 parameters, 40,960 positions;
# the fp8 weights, since bf16 ones leave one H100 next to no KV
QWEN_32B = Model(
    name="qwen3-32b",
    parameters=32.8e9,
    layers=64,
    heads=64,
    kv_heads=8,
    head_dim=128,
    weight_dtype_bytes=1,
    context_max=40_960,
)
# NVIDIA H100 SXM datasheet: 989 TFLOP/s bf16 dense, 3.35 TB/s, 80 GB
H100 = Accelerator(name="h100", flops=989e12, bandwidth=3.35e12, memory_bytes=80e9)
# NVIDIA A100 SXM 80GB datasheet: 312 TFLOP/s bf16 dense, 2.039 TB/s, 80 GB
A100 = Accelerator(name="a100", flops=312e12, bandwidth=2.039e12, memory_bytes=80e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A model on `count` accelerators in tensor parallel, with its efficiency."""

    name: str
    model: Model
    accelerator: Accelerator
    count: int = 1
    # Prefill of large dense models reaches about half of peak in public engine benchmarks; attention kernels
    # (FlashAttention-3 paper) 0.5 to 0.75 of peak on H100; decode reaches 0.7 to 0.85 of bandwidth.
    mfu: float = 0.5
    mfu_attention: float = 0.5
    mbu: float = 0.75
    overhead_s: float = 0.004  # scheduling, sampling, kernel launches of one iteration
    parallel_efficiency: float = 0.85  # of each further doubling of accelerators, all-reduce included
    memory_utilisation: float = 0.9  # vLLM's default
    activation_bytes: float = 4e9  # peak activations and graphs at the default batch of 8,192 tokens

    def __str__(self) -> str:
        return self.name

    @property
    def _scale(self) -> float:
        doublings = self.count.bit_length() - 1
        return self.count * self.parallel_efficiency**doublings

    @property
    def flops(self) -> float:
        return self.accelerator.flops * self._scale

    @property
    def bandwidth(self) -> float:
        return self.accelerator.bandwidth * self._scale

    @property
    def weight_bytes(self) -> float:
        return self.model.parameters * self.model.weight_dtype_bytes

    def kv_tokens(self) -> int:
        """What the memory leaves for KV."""
        free = self.accelerator.memory_bytes * self.count * self.memory_utilisation
        free -= self.weight_bytes + self.activation_bytes * self.count
        return max(int(free / self.model.kv_bytes_per_token), 0)

    def linear_s(self, tokens: float) -> float:
        compute = 2.0 * self.model.parameters * tokens / (self.flops * self.mfu)
        return max(compute, self.weight_bytes / (self.bandwidth * self.mbu))

    def attention_s_per_token_context(self) -> float:
        """Seconds for one prefill token to attend to one token of context."""
        work = 4.0 * self.model.layers * self.model.heads * self.model.head_dim
        return work / (self.flops * self.mfu_attention)

    def kv_read_s_per_token(self) -> float:
        """Seconds to read one token's KV."""
        return self.model.kv_bytes_per_token / (self.bandwidth * self.mbu)

    def iteration_s(self, *, prefill: list[tuple[int, int]], decodes: int, decode_context: int) -> float:
        """One iteration: `prefill` chunks as (tokens, context before), `decodes` sequences with this context in sum."""
        tokens = decodes + sum(n for n, _ in prefill)
        attention = sum(n * (before + n / 2) for n, before in prefill) * self.attention_s_per_token_context()
        return (
            self.linear_s(tokens) + attention + decode_context * self.kv_read_s_per_token() + self.overhead_s
        )

    # -- rough figures for schedulers and reports

    def prefill_s(self, tokens: int, context: int, chunk: int = 8192) -> float:
        """Prefill of the last `tokens` of a prompt of `context`, alone."""
        total = 0.0
        before = max(context - tokens, 0)
        left = tokens
        while left > 0:
            n = min(chunk, left)
            total += self.iteration_s(prefill=[(n, before)], decodes=0, decode_context=0)
            before += n
            left -= n
        return total

    def decode_step_s(self, sequences: int, context: int) -> float:
        """One decode iteration over `sequences` with `context` tokens each."""
        return self.iteration_s(prefill=[], decodes=sequences, decode_context=sequences * context)

    def prefill_tokens_per_s(self, tokens: int = 8192) -> float:
        return tokens / self.iteration_s(prefill=[(tokens, 0)], decodes=0, decode_context=0)


PROFILES = {
    p.name: p
    for p in (
        Profile(name="llama-3.1-8b-h100", model=LLAMA_8B, accelerator=H100),
        Profile(name="qwen3-32b-h100", model=QWEN_32B, accelerator=H100),
        Profile(name="llama-3.1-70b-4xh100", model=LLAMA_70B, accelerator=H100, count=4),
        Profile(name="llama-3.1-70b-4xa100", model=LLAMA_70B, accelerator=A100, count=4),
    )
}


def profile(name: str | Profile) -> Profile:
    """The profile of this name; one that is a profile already stays itself."""
    if isinstance(name, Profile):
        return name
    if name not in PROFILES:
        near = difflib.get_close_matches(name, PROFILES, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(sorted(PROFILES))}"
        raise UsageError(f"there is no profile `{name}`", remedy=remedy)
    return PROFILES[name]
