"""KV and pins: who holds the engines' memory, and whether keeping it through tool calls pays."""

from dashboards.panels import (
    AMBER,
    GREEN,
    RED,
    THIRD,
    Board,
    Row,
    bars,
    counted,
    each_second,
    lines,
    number,
    or_none,
    q,
    quantiles,
    where,
)

_OF = where("engine")

BOARD = Board(
    uid="agentserve-kv",
    title="KV and pins",
    what="Who holds the engines' memory, and does keeping it through tool calls pay?",
    variables=["engine"],
    rows=[
        Row(
            title="Memory",
            panels=[
                bars(
                    "Seated share of KV",
                    q(f"sum by (engine) (agentserve_seated_tokens{{{_OF}}}) "
                      f"/ sum by (engine) (agentserve_engine_kv_tokens{{{_OF}}})", "{{engine}}"),
                    what="Contexts of all seated programs over the engine's capacity. Fresh seats are given up to "
                         "90%, growth may take it to 100%.",
                    unit="percentunit",
                    span=THIRD,
                    top=1,
                ),
                lines(
                    "KV in use, as engines say",
                    q(f"agentserve_engine_kv_used_share{{{_OF}}}", "{{engine}}"),
                    what="Blocks that running requests hold. Cached blocks that may be evicted are not in it on "
                         "most engines.",
                    unit="percentunit",
                    span=THIRD,
                    top=1,
                ),
                lines(
                    "KV tokens kept in gaps",
                    q(f"sum by (engine) (agentserve_pinned_tokens{{{_OF}}})", "{{engine}}"),
                    what="Under announced pins that stand now.",
                    unit=counted("tokens"),
                    span=THIRD,
                ),
                lines(
                    "Prompt tokens from cache",
                    q(f"sum by (engine) (rate(agentserve_cached_tokens_total{{{_OF}}}[$__rate_interval])) "
                      f"/ sum by (engine) (rate(agentserve_prompt_tokens_total{{{_OF}}}[$__rate_interval]))",
                      "{{engine}}"),
                    what="Falls when more programs are on an engine than fit.",
                    unit="percentunit",
                    span=THIRD,
                    top=1,
                ),
                lines(
                    "Prompt tokens computed twice",
                    q(or_none(f"sum by (engine) (rate(agentserve_refilled_tokens_total{{{_OF}}}[$__rate_interval]))",
                              "engine"), "{{engine}}"),
                    what="Tokens that had been computed before and were evicted: what thrash costs.",
                    unit=each_second("tokens"),
                    span=THIRD,
                ),
                lines(
                    "Pins that stand",
                    q("sum(agentserve_pins_live)", "pins"),
                    what="Gaps whose KV is kept now, on all engines, because it is worth more than others' wait.",
                    span=THIRD,
                ),
            ],
        ),
        Row(
            title="Seats",
            panels=[
                lines(
                    "Programs seated",
                    q(f"sum by (engine) (agentserve_programs_seated{{{_OF}}})", "{{engine}}"),
                    q("sum(agentserve_programs_queued)", "waiting for a seat"),
                    what="Programs whose whole context has room on the engine.",
                    span=THIRD,
                ),
                lines(
                    "What was done with seats",
                    q("sum by (event) (rate(agentserve_seat_events_total[$__rate_interval]))", "{{event}}"),
                    what="`kept` and `returned` are gaps that were waited for; `released` were not worth their "
                         "memory, `outranked` had to go for others, `held` waits for seats to shrink.",
                    unit=each_second("events"),
                    span=THIRD,
                ),
                lines(
                    "Preemptions inside engines",
                    q(f"sum by (engine) (increase(agentserve_engine_preemptions{{{_OF}}}[$__rate_interval]))",
                      "{{engine}}"),
                    what="Requests that an engine had to stop for want of KV. Near 0 when admission is right.",
                    span=THIRD,
                ),
            ],
        ),
        Row(
            title="Do kept gaps pay?",
            panels=[
                number(
                    "Hit",
                    q('sum(increase(agentserve_pins_total{end="hit"}[$__range]) or vector(0)) '
                      "/ sum(increase(agentserve_pins_total[$__range]))"),
                    what="Share of kept gaps whose program came back to its KV.",
                    unit="percentunit",
                    span=6,
                    steps=((None, RED), (0.3, AMBER), (0.6, GREEN)),
                ),
                number(
                    "Memory that went to hits",
                    q('sum(increase(agentserve_pin_token_seconds_total{end="hit"}[$__range]) or vector(0)) '
                      "/ sum(increase(agentserve_pin_token_seconds_total[$__range]))"),
                    what="Of the token-seconds that kept gaps held, the share that was not in vain.",
                    unit="percentunit",
                    span=6,
                    steps=((None, RED), (0.3, AMBER), (0.6, GREEN)),
                ),
                number(
                    "Prefill spared",
                    q("sum(increase(agentserve_pin_saved_seconds_total[$__range]) or vector(0))"),
                    what="Engine seconds that returning programs did not spend on their old context.",
                    unit="s",
                    span=6,
                ),
                number(
                    "Spared for each million token-seconds",
                    q("1000000 * sum(increase(agentserve_pin_saved_seconds_total[$__range]) or vector(0)) "
                      "/ sum(increase(agentserve_pin_token_seconds_total[$__range]))"),
                    what="The return on the memory that kept gaps held.",
                    unit="s",
                    span=6,
                ),
                lines(
                    "Kept gaps, by how they ended",
                    q("sum by (end) (rate(agentserve_pins_total[$__rate_interval]))", "{{end}}"),
                    what="`expired` waited too long, `revoked` gave way to others, `ended` never came back.",
                    unit=each_second("gaps"),
                    stacked=True,
                ),
                lines(
                    "How long gaps were kept, p90",
                    *quantiles("agentserve_pin_seconds", by="end", of=(0.9,)),
                    what="By how they ended. Long `expired` ones are forecasts that were too hopeful.",
                    unit="s",
                ),
                lines(
                    "Pins set",
                    q(or_none("sum by (mode) (rate(agentserve_pins_made_total[$__rate_interval]))", "mode"),
                      "{{mode}}"),
                    what="`native` where the engine can pin, `reserved` where the proxy keeps the room free, "
                         "`touched` where it refreshes the blocks.",
                    unit=each_second("pins"),
                    span=THIRD,
                ),
                lines(
                    "Warms",
                    q("sum by (end, refresh) (rate(agentserve_warms_total[$__rate_interval]))",
                      "{{refresh}}: {{end}}"),
                    what="`used` came in time; `late` and `unused` were prefill for nothing. A `touch` refreshes "
                         "blocks that are still there.",
                    unit=each_second("warms"),
                    span=THIRD,
                ),
                lines(
                    "What engines made of it",
                    q(or_none("sum by (decision, outcome) (rate(agentserve_actions_total[$__rate_interval]))",
                              "decision"),
                      "{{decision}} {{outcome}}"),
                    what="Answers to native pins, unpins and warms; `unknown` is an engine that says nothing.",
                    unit=each_second("answers"),
                    span=THIRD,
                ),
            ],
        ),
    ],
)  # fmt: skip
