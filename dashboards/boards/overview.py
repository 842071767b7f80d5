"""Overview: are agents finishing sooner, and what did agentserve save?"""

from dashboards.panels import (
    AMBER,
    BUSY,
    GREEN,
    QUARTER,
    RED,
    TIMES,
    Board,
    Row,
    each_second,
    lines,
    number,
    q,
    quantiles,
)

_SOONER = Row(
    title="Are agents finishing sooner?",
    panels=[
        number(
            "Programs finished an hour",
            q("sum(rate(agentserve_programs_total[$__range])) * 3600"),
            what="Whole agent runs that ended, in the time shown. Idle ones count once they are given up.",
            decimals=1,
        ),
        number(
            "Mean completion",
            q("sum(rate(agentserve_program_seconds_sum[$__range])) "
              "/ sum(rate(agentserve_program_seconds_count[$__range]))"),
            what="From a program's first call to its last answer; waits for a person are left out.",
            unit="s",
        ),
        number(
            "Slowdown, median",
            q("histogram_quantile(0.5, sum by (le) (rate(agentserve_program_slowdown_bucket[$__range])))"),
            what="Completion over what it would have been had the program never queued. 1 is as fast as alone.",
            unit=TIMES,
            steps=((None, GREEN), (2, AMBER), (5, RED)),
            decimals=2,
        ),
        number(
            "Slowdown, p95",
            q("histogram_quantile(0.95, sum by (le) (rate(agentserve_program_slowdown_bucket[$__range])))"),
            what="The unlucky twentieth. If this rises while the median does not, somebody pays for the order.",
            unit=TIMES,
            steps=((None, GREEN), (5, AMBER), (20, RED)),
            decimals=2,
        ),
        number(
            "First byte, p95",
            q("histogram_quantile(0.95, sum by (le) (rate(agentserve_ttft_seconds_bucket[$__range])))"),
            what="From a step's arrival to its first byte, the wait in the proxy included.",
            unit="s",
        ),
        number(
            "Our own time a step, p99",
            q("histogram_quantile(0.99, sum by (le) (rate(agentserve_overhead_seconds_bucket[$__range])))"),
            what="What the proxy itself costs a step, waiting for room excluded.",
            unit="s",
            steps=((None, GREEN), (0.005, AMBER), (0.05, RED)),
        ),
        lines(
            "Completion time of programs",
            *quantiles("agentserve_program_seconds"),
            what="Each dot is a program: open its trace to see where its time went.",
            unit="s",
        ),
        lines(
            "Slowdown of programs",
            *quantiles("agentserve_program_slowdown"),
            what="Against never having queued. Flat near 1 means that engines have room; admission is bypassed.",
            unit=TIMES,
        ),
        lines(
            "Where programs spend their time",
            q("sum by (part) (rate(agentserve_program_part_seconds_total[$__rate_interval]))", "{{part}}"),
            what="Seconds of finished programs for each second: queue is ours to lessen, tools are theirs, "
                 "model is prefill and decode.",
            unit=BUSY,
            stacked=True,
        ),
        lines(
            "Programs",
            q("sum(agentserve_programs_live)", "live"),
            q("sum(agentserve_programs_seated)", "seated"),
            q("sum(agentserve_programs_queued)", "waiting for a seat"),
            what="A seat is room for a program's whole context on one engine, its tool gaps included.",
        ),
    ],
)  # fmt: skip

_SAVED = Row(
    title="What did agentserve save?",
    panels=[
        number(
            "Prompt tokens from cache",
            q("sum(increase(agentserve_cached_tokens_total[$__range])) "
              "/ sum(increase(agentserve_prompt_tokens_total[$__range]))"),
            what="Share of prompt tokens that engines had in their KV cache. Agents' prompts repeat nearly whole.",
            unit="percentunit",
            steps=((None, RED), (0.5, AMBER), (0.8, GREEN)),
        ),
        number(
            "Prompt tokens computed twice",
            q("sum(increase(agentserve_refilled_tokens_total[$__range]) or vector(0)) "
              "/ sum(increase(agentserve_prompt_tokens_total[$__range]))"),
            what="Context that had been computed before and was evicted: what thrash costs.",
            unit="percentunit",
            steps=((None, GREEN), (0.05, AMBER), (0.2, RED)),
        ),
        number(
            "Prefill spared by caches",
            q("sum(increase(agentserve_saved_prefill_seconds_total[$__range]) or vector(0))"),
            what="Engine seconds that cached tokens spared, at each engine's measured prefill speed. "
                 "An engine alone would have spared some of it too.",
            unit="s",
        ),
        number(
            "Of it by keeping KV in gaps",
            q("sum(increase(agentserve_pin_saved_seconds_total[$__range]) or vector(0))"),
            what="Prefill that programs did not repeat because their KV was kept while a tool ran.",
            unit="s",
        ),
        number(
            "Gaps that paid",
            q('sum(increase(agentserve_pins_total{end="hit"}[$__range]) or vector(0)) '
              "/ sum(increase(agentserve_pins_total[$__range]))"),
            what="Share of kept gaps whose program came back to its KV.",
            unit="percentunit",
            steps=((None, RED), (0.3, AMBER), (0.6, GREEN)),
        ),
        number(
            "Programs for each engine",
            q('sum(agentserve_programs_seated) / sum(agentserve_engine_up)'),
            what="Programs that have a seat, over engines that answer.",
            decimals=1,
        ),
        lines(
            "Prompt tokens",
            q("sum(rate(agentserve_cached_tokens_total[$__rate_interval]))", "cached"),
            q("sum(rate(agentserve_prompt_tokens_total[$__rate_interval])) "
              "- sum(rate(agentserve_cached_tokens_total[$__rate_interval])) "
              "- sum(rate(agentserve_refilled_tokens_total[$__rate_interval]) or vector(0))", "new"),
            q("sum(rate(agentserve_refilled_tokens_total[$__rate_interval]) or vector(0))", "computed twice"),
            what="Tokens a second. The last layer is waste; it should be thin.",
            unit=each_second("tokens"),
            stacked=True,
        ),
        lines(
            "Prefill spared",
            q("sum(rate(agentserve_saved_prefill_seconds_total[$__rate_interval]) or vector(0))", "by caches"),
            q("sum(rate(agentserve_pin_saved_seconds_total[$__rate_interval]) or vector(0))", "by kept gaps"),
            what="Engine seconds spared for each second.",
            unit=BUSY,
        ),
    ],
)  # fmt: skip

_WELL = Row(
    title="Is it well?",
    panels=[
        lines(
            "Steps",
            q("sum by (outcome) (rate(agentserve_steps_total[$__rate_interval]))", "{{outcome}}"),
            what="LLM calls a second, by what became of them.",
            unit=each_second("steps"),
            span=QUARTER,
            stacked=True,
        ),
        lines(
            "Waiting in the proxy",
            q("sum(agentserve_steps_waiting)", "steps"),
            what="Steps wait here, where program order holds, and not in an engine's queue.",
            span=QUARTER,
        ),
        lines(
            "Longest wait so far",
            q("max(agentserve_oldest_wait_seconds)", "of those that still wait"),
            what="The age of the oldest step that waits now. If it climbs without end, somebody is starved.",
            unit="s",
            span=QUARTER,
        ),
        lines(
            "Engines",
            q("sum(agentserve_engine_up)", "up"),
            q("count(agentserve_engine_up)", "known"),
            what="Engines that answer, of those that are configured.",
            span=QUARTER,
        ),
    ],
)

BOARD = Board(
    uid="agentserve-overview",
    title="Overview",
    what="Are agents finishing sooner, and what did agentserve save?",
    rows=[_SOONER, _SAVED, _WELL],
)
