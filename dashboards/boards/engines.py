"""Engines: what each does, as it says itself and as the proxy sees it."""

from dashboards.panels import BUSY, THIRD, Board, Row, counted, each_second, lines, or_none, q, where

_OF = where("engine")


def _rate(metric: str) -> str:
    return f"sum by (engine) (rate({metric}{{{_OF}}}[$__rate_interval]))"


BOARD = Board(
    uid="agentserve-engines",
    title="Engines",
    what="What does each engine do, as it says itself and as the proxy sees it?",
    variables=["engine"],
    rows=[
        Row(
            title="State",
            panels=[
                lines(
                    "Up",
                    q(f"max by (engine) (agentserve_engine_up{{{_OF}}})", "{{engine}}"),
                    what="1 while it answers its probes.",
                    span=THIRD,
                    top=1,
                ),
                lines(
                    "Losses",
                    q(or_none(f"sum by (engine) (increase(agentserve_engine_losses_total{{{_OF}}}[$__rate_interval]))",
                              "engine"), "{{engine}}"),
                    what="Each time its KV and the steps under way there are gone.",
                    span=THIRD,
                ),
                lines(
                    "Steps sent again elsewhere",
                    q(or_none(_rate("agentserve_retries_total"), "engine"), "{{engine}}"),
                    what="By the engine that failed them, before their first byte.",
                    unit=each_second("steps"),
                    span=THIRD,
                ),
            ],
        ),
        Row(
            title="Work",
            panels=[
                lines(
                    "Steps on the engine",
                    q(f"sum by (engine) (agentserve_steps_running{{{_OF}}})", "{{engine}}, sent by us"),
                    q(f"max by (engine) (agentserve_engine_running{{{_OF}}})", "{{engine}}, as it says"),
                    what="If it runs more than we sent, somebody goes past the proxy.",
                ),
                lines(
                    "Waiting inside the engine",
                    q(f"max by (engine) (agentserve_engine_waiting{{{_OF}}})", "{{engine}}"),
                    what="Should stay near 0: steps are meant to wait in the proxy.",
                ),
                lines(
                    "Prompt tokens computed",
                    q(f"{_rate('agentserve_prompt_tokens_total')} - ({_rate('agentserve_cached_tokens_total')} "
                      f"or 0 * {_rate('agentserve_prompt_tokens_total')})", "{{engine}}"),
                    what="Prompt tokens that were not in its cache: its prefill work.",
                    unit=each_second("tokens"),
                    span=THIRD,
                ),
                lines(
                    "Prompt tokens from cache",
                    q(_rate("agentserve_cached_tokens_total"), "{{engine}}"),
                    what="Prompt tokens that it did not have to compute.",
                    unit=each_second("tokens"),
                    span=THIRD,
                ),
                lines(
                    "Output tokens",
                    q(_rate("agentserve_output_tokens_total"), "{{engine}}"),
                    what="What it decoded; falls when steps interrupt each other's decoding, or none run.",
                    unit=each_second("tokens"),
                    span=THIRD,
                ),
            ],
        ),
        Row(
            title="KV",
            panels=[
                lines(
                    "KV in use",
                    q(f"max by (engine) (agentserve_engine_kv_used_share{{{_OF}}})", "{{engine}}"),
                    what="As the engine says; on most, blocks of running requests only.",
                    unit="percentunit",
                    span=THIRD,
                    top=1,
                ),
                lines(
                    "KV seated",
                    q(f"max by (engine) (agentserve_seated_tokens{{{_OF}}})", "{{engine}} seated"),
                    q(f"max by (engine) (agentserve_engine_kv_tokens{{{_OF}}})", "{{engine}} capacity"),
                    what="The whole contexts of programs that have a seat here, against what fits.",
                    unit=counted("tokens"),
                    span=THIRD,
                ),
                lines(
                    "Prefill spared by its cache",
                    q(or_none(_rate("agentserve_saved_prefill_seconds_total"), "engine"), "{{engine}}"),
                    what="Seconds for each second, at its measured prefill speed.",
                    unit=BUSY,
                    span=THIRD,
                ),
            ],
        ),
    ],
)  # fmt: skip
