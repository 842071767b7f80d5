"""Programs: how whole agent runs go, by workflow, and what their tools take."""

from dashboards.panels import (
    BUSY,
    HALF,
    THIRD,
    TIMES,
    Board,
    Row,
    counted,
    each_second,
    heat,
    lines,
    q,
    quantiles,
    where,
)

_OF = where("workflow")

BOARD = Board(
    uid="agentserve-programs",
    title="Programs",
    what="How do whole agent runs go, and which workflow or tool is slow?",
    variables=["workflow"],
    rows=[
        Row(
            title="Runs",
            panels=[
                lines(
                    "Programs begun and over",
                    q("sum(rate(agentserve_programs_opened_total[$__rate_interval]))", "begun"),
                    q(f"sum by (reason) (rate(agentserve_programs_total{{{_OF}}}[$__rate_interval]))",
                      "over: {{reason}}"),
                    what="`idle` are programs that were not heard of for `scheduler.program_idle_s`: nobody said "
                         "that they were over.",
                    unit=each_second("programs"),
                ),
                lines(
                    "Live programs",
                    q("sum(agentserve_programs_live)", "live"),
                    q("sum(agentserve_programs_seated)", "seated"),
                    q("sum(agentserve_programs_queued)", "waiting for a seat"),
                    what="Those that are neither seated nor waiting are in a gap whose KV was let go.",
                ),
                heat("Completion time", "agentserve_program_seconds", where=_OF,
                     what="Darker is more programs. Two bands are usually two kinds of work."),
                heat("Slowdown", "agentserve_program_slowdown", where=_OF, unit=TIMES,
                     what="Completion over what it would have been without queueing."),
                lines(
                    "Completion by workflow, p95",
                    *quantiles("agentserve_program_seconds", by="workflow", where=_OF, of=(0.95,)),
                    what="The workflow is a declared name or the fingerprint of the system prompt and tools.",
                    unit="s",
                ),
                lines(
                    "Where programs spend their time",
                    q(f"sum by (part) (rate(agentserve_program_part_seconds_total{{{_OF}}}[$__rate_interval]))",
                      "{{part}}"),
                    what="Seconds of finished programs for each second.",
                    unit=BUSY,
                    stacked=True,
                ),
                lines(
                    "Steps of a program",
                    *quantiles("agentserve_program_steps", where=_OF, of=(0.5, 0.9, 0.99)),
                    what="Programs that loop without end show as a p99 that climbs.",
                    unit=counted("steps"),
                    span=THIRD,
                ),
                lines(
                    "First byte by workflow, p95",
                    *quantiles("agentserve_ttft_seconds", by="workflow", where=_OF, of=(0.95,)),
                    what="From a step's arrival to its first byte, the wait in the proxy included.",
                    unit="s",
                    span=THIRD,
                ),
                lines(
                    "Step time by workflow, p95",
                    *quantiles("agentserve_step_seconds", by="workflow", where=_OF, of=(0.95,)),
                    what="From a step's arrival to its last byte.",
                    unit="s",
                    span=THIRD,
                ),
            ],
        ),
        Row(
            title="Tools",
            panels=[
                lines(
                    "Tool calls",
                    q("topk(10, sum by (tool) (rate(agentserve_tool_calls_total[$__rate_interval])))", "{{tool}}"),
                    what="The ten most called.",
                    unit=each_second("calls"),
                    span=THIRD,
                ),
                lines(
                    "Tool duration, p95",
                    q("topk(10, histogram_quantile(0.95, "
                      "sum by (le, tool) (rate(agentserve_tool_seconds_bucket[$__rate_interval]))))", "{{tool}}"),
                    what="The ten slowest. Measured where the client tells; else it is the gap, thinking included.",
                    unit="s",
                    span=THIRD,
                ),
                lines(
                    "Tool calls by outcome",
                    q("sum by (outcome, timing) (rate(agentserve_tool_calls_total[$__rate_interval]))",
                      "{{outcome}}, {{timing}}"),
                    what="`open`: the program went on without the result. `inferred`: seen as a gap, not told.",
                    unit=each_second("calls"),
                    span=THIRD,
                    stacked=True,
                ),
            ],
        ),
        Row(
            title="Recognition",
            panels=[
                lines(
                    "Steps by how their program was recognised",
                    q("sum by (source) (rate(agentserve_steps_identified_total[$__rate_interval]))", "{{source}}"),
                    what="Headers are certain; content is the chain of message hashes.",
                    unit=each_second("steps"),
                    span=HALF,
                    stacked=True,
                ),
                lines(
                    "Steps by what they are to their program",
                    q("sum by (relation) (rate(agentserve_steps_identified_total[$__rate_interval]))",
                      "{{relation}}"),
                    what="Many `new` where agents make many steps: clients drop what would identify them.",
                    unit=each_second("steps"),
                    span=HALF,
                    stacked=True,
                ),
            ],
        ),
    ],
)  # fmt: skip
