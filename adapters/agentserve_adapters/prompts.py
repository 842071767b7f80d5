"""Requests that adapters send of their own: how the next prompt of a program begins, with one token of output.

Rule: whatever decides the prompt's tokens stays as the client sent it (messages, tools, template
arguments); whatever decides only the output is dropped, so that nothing but the prefill is paid for.
The client's body is never changed: a warm is a new one.
"""

from __future__ import annotations

from agentserve.ports import Json, ProgramPrefix
from agentserve_adapters.readings import whole

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}

# Fields that say what to do with the output; none of them reaches the prompt.
OUTPUT_FIELDS = frozenset(
    {
        "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens",
        "n", "best_of", "stop", "stop_sequences", "logprobs", "top_logprobs", "echo", "suffix", "seed",
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "logit_bias",
        "repetition_penalty", "ignore_eos", "prediction", "modalities", "audio", "store", "background",
        "metadata", "user", "service_tier", "request_id", "priority",
    }
)  # fmt: skip


def warm_request(prefix: ProgramPrefix) -> tuple[str, Json] | None:
    """Path and body of a request whose prompt is the program's last one: its next one begins with it.

    None for protocols that keep no KV.
    """
    if prefix.protocol not in ("chat", "completions", "responses", "messages"):
        return None
    body = {k: v for k, v in prefix.body.items() if k not in OUTPUT_FIELDS}
    limit = "max_output_tokens" if prefix.protocol == "responses" else "max_tokens"
    body[limit] = 1
    body["stream"] = False
    if prefix.protocol == "responses":
        body["store"] = False
    return PATHS[prefix.protocol], body


def counted(protocol: str, reply: Json) -> tuple[int | None, int | None]:
    """How long the engine says that the prompt was, in a whole reply of this protocol, and how much of it was in its
    cache."""
    usage = reply.get("usage") or {}
    if protocol == "messages":
        cached = whole(usage.get("cache_read_input_tokens"))
        prompt = whole(usage.get("input_tokens"))
        if prompt is not None:  # of which it leaves out what has to do with the cache
            prompt += (cached or 0) + (whole(usage.get("cache_creation_input_tokens")) or 0)
        return prompt, cached
    side = "input" if protocol == "responses" else "prompt"
    details = usage.get(f"{side}_tokens_details") or {}
    return whole(usage.get(f"{side}_tokens")), whole(details.get("cached_tokens"))
