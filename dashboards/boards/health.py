"""Gateway health: does the proxy itself hold, and is anything lost?"""

from dashboards.panels import (
    AMBER,
    GREEN,
    RED,
    SIXTH,
    THIRD,
    Board,
    Row,
    counted,
    each_second,
    heat,
    lines,
    number,
    or_none,
    q,
    quantiles,
)

_BAD_FROM_1 = ((None, GREEN), (1, RED))

BOARD = Board(
    uid="agentserve-health",
    title="Gateway health",
    what="Does the proxy itself hold, and is anything lost?",
    rows=[
        Row(
            title="Now",
            panels=[
                number(
                    "Scheduler",
                    q("min(agentserve_scheduler_healthy)"),
                    what="Once it failed, steps are placed plainly from then on, and requests flow.",
                    said={"0": "failed", "1": "well"},
                    steps=((None, RED), (1, GREEN)),
                ),
                number(
                    "Store",
                    q("min(agentserve_store_up)"),
                    what="While the database does not answer, rows wait in memory, and requests flow.",
                    said={"0": "away", "1": "well"},
                    steps=((None, AMBER), (1, GREEN)),
                ),
                number(
                    "Rows lost",
                    q("sum(increase(agentserve_store_lost_rows_total[$__range]))"),
                    what="Rows of the journal that were dropped in the time shown. Never a request.",
                    steps=_BAD_FROM_1,
                    decimals=0,
                ),
                number(
                    "Fallbacks",
                    q("sum(increase(agentserve_fallbacks_total[$__range]))"),
                    what="Times a part of ours failed and a request went on without it.",
                    steps=_BAD_FROM_1,
                    decimals=0,
                ),
                number(
                    "Requests open",
                    q("sum(agentserve_requests_open)"),
                    what="Those that wait and those on engines, of any kind.",
                ),
                number(
                    "Gateways",
                    q("sum(agentserve_build_info)"),
                    what="How many are scraped.",
                    span=SIXTH,
                ),
            ],
        ),
        Row(
            title="On the request's path",
            panels=[
                heat(
                    "Our own time a step",
                    "agentserve_overhead_seconds",
                    what="Waiting for room excluded. A second band is the event loop being busy with something else.",
                ),
                lines(
                    "Our own time a step",
                    *quantiles("agentserve_overhead_seconds", of=(0.5, 0.95, 0.99)),
                    what="Waiting for room excluded.",
                    unit="s",
                ),
                lines(
                    "Answers with an error of ours",
                    q(or_none("sum by (status, reason) (rate(agentserve_refusals_total[$__rate_interval]))", "status"),
                      "{{status}} {{reason}}"),
                    what="429 and 503 are back-pressure; 5xx beside them are engines that failed a step.",
                    unit=each_second("answers"),
                    span=THIRD,
                ),
                lines(
                    "Fallbacks",
                    q("sum by (reason) (rate(agentserve_fallbacks_total[$__rate_interval]))", "{{reason}}"),
                    what="A part of ours failed, and requests went on without it.",
                    unit=each_second("times"),
                    span=THIRD,
                ),
                lines(
                    "Decisions",
                    q("sum by (decision) (rate(agentserve_decisions_total[$__rate_interval]))", "{{decision}}"),
                    what="Of the scheduler. The reasons are in the same metric.",
                    unit=each_second("decisions"),
                    span=THIRD,
                ),
            ],
        ),
        Row(
            title="Store",
            panels=[
                lines(
                    "Waiting to be written",
                    q("max(agentserve_store_queue_rows)", "rows"),
                    what="Written behind the requests; it grows while the database is away and drains after.",
                    unit=counted("rows"),
                    span=THIRD,
                ),
                lines(
                    "Lag",
                    q("max(agentserve_store_lag_seconds)", "oldest row"),
                    what="Age of the oldest row that waits. A crash loses about this much.",
                    unit="s",
                    span=THIRD,
                ),
                lines(
                    "Lost rows",
                    q("sum by (kind, why) (rate(agentserve_store_lost_rows_total[$__rate_interval]))",
                      "{{kind}}, {{why}}"),
                    what="`event` is the oldest detail, dropped first.",
                    unit=each_second("rows"),
                    span=THIRD,
                ),
                lines(
                    "Rows written",
                    q("sum by (kind) (rate(agentserve_store_rows_total[$__rate_interval]))", "{{kind}}"),
                    what="Rows of the journal, by table.",
                    unit=each_second("rows"),
                    stacked=True,
                ),
                lines(
                    "Size",
                    q("max(agentserve_store_bytes)", "database"),
                    what="Retention by age and size keeps it bounded.",
                    unit="bytes",
                ),
            ],
        ),
        Row(
            title="Telemetry",
            panels=[
                lines(
                    "Spans lost",
                    q("sum(rate(agentserve_spans_lost_total[$__rate_interval]))", "spans"),
                    what="The collector did not take them, or not fast enough.",
                    unit=each_second("spans"),
                ),
                lines(
                    "Figures that could not be had",
                    q("sum by (where) (rate(agentserve_telemetry_errors_total[$__rate_interval]))", "{{where}}"),
                    what="A fault of ours: the log names it once.",
                    unit=each_second("times"),
                ),
            ],
        ),
        Row(
            title="Process",
            panels=[
                lines(
                    "Processor",
                    q('rate(process_cpu_seconds_total{job="agentserve"}[$__rate_interval])', "{{instance}}"),
                    what="The gateway is one thread: near 1 it is full, start another.",
                    unit=counted("cores"),
                    span=THIRD,
                ),
                lines(
                    "Memory",
                    q('process_resident_memory_bytes{job="agentserve"}', "{{instance}}"),
                    what="Resident memory of the process; it should be flat once traffic is.",
                    unit="bytes",
                    span=THIRD,
                ),
                lines(
                    "Open files",
                    q('process_open_fds{job="agentserve"}', "{{instance}} open"),
                    q('process_max_fds{job="agentserve"}', "{{instance}} limit"),
                    what="Every client and engine connection is one.",
                    span=THIRD,
                ),
            ],
        ),
    ],
)  # fmt: skip
