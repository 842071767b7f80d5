"""Forecasts: can the scheduler's expectations be believed, and were they acted on well?"""

from dashboards.panels import THIRD, TIMES, Board, Row, counted, heat, lines, q, quantiles

BOARD = Board(
    uid="agentserve-forecasts",
    title="Forecasts",
    what="Can the scheduler's expectations be believed, and were they acted on well?",
    rows=[
        Row(
            title="Calibration",
            panels=[
                lines(
                    "Coverage",
                    q("avg by (forecast, level) (agentserve_forecast_coverage)", "{{forecast}} {{level}}"),
                    what="Share of outcomes at or below the forecast's quantile: p50 should lie at 50%, p90 at "
                         "90%. Above is too pessimistic, below too hopeful.",
                    unit="percentunit",
                    span=THIRD,
                    top=1,
                ),
                lines(
                    "Loss, ours over the naive",
                    q('avg by (forecast) (agentserve_forecast_loss{model="ours"}) '
                      '/ avg by (forecast) (agentserve_forecast_loss{model="naive"})', "{{forecast}}"),
                    what="Quantile loss at p90 against a running quantile that looks at nothing. Below 1 the "
                         "forecast earns its keep.",
                    span=THIRD,
                ),
                lines(
                    "Error of the median",
                    q("avg by (forecast) (exp(agentserve_forecast_ln_error))", "{{forecast}}"),
                    what="By which factor the median is off, up or down, on average.",
                    unit=TIMES,
                    span=THIRD,
                ),
                lines(
                    "Outcomes seen",
                    q("sum by (forecast) (agentserve_forecast_samples)", "{{forecast}}"),
                    q("sum(increase(agentserve_forecast_steps_left_out_total[$__rate_interval]))", "left out"),
                    what="Under a few hundred the figures beside this one mean little. Of busy workflows a random "
                         "share teaches: the steps that do not are left out.",
                    span=THIRD,
                ),
                lines(
                    "Loss",
                    q("avg by (forecast, model) (agentserve_forecast_loss)", "{{forecast}}, {{model}}"),
                    what="Quantile loss at p90 in natural logarithms.",
                    span=THIRD,
                ),
                lines(
                    "Output of a step",
                    q("sum(rate(agentserve_output_tokens_total[$__rate_interval])) "
                      '/ sum(rate(agentserve_steps_total{outcome="finished"}[$__rate_interval]))', "tokens"),
                    what="What the output forecast has to foresee.",
                    unit=counted("tokens"),
                    span=THIRD,
                ),
            ],
        ),
        Row(
            title="What they are about",
            panels=[
                heat("Duration of tool calls", "agentserve_tool_seconds",
                     what="Measured or seen as the gap. Bands are tools, a long tail is where pins expire."),
                lines(
                    "Tool duration by tool",
                    q("topk(8, histogram_quantile(0.5, "
                      "sum by (le, tool) (rate(agentserve_tool_seconds_bucket[$__rate_interval]))))", "{{tool}} p50"),
                    what="The eight slowest by their median.",
                    unit="s",
                ),
            ],
        ),
        Row(
            title="What was made of them",
            panels=[
                lines(
                    "Gaps that were waited for in vain",
                    q('sum(rate(agentserve_pins_total{end=~"expired|ended"}[$__rate_interval]) or vector(0)) '
                      "/ sum(rate(agentserve_pins_total[$__rate_interval]))", "share"),
                    what="Kept, and the program did not come back in time.",
                    unit="percentunit",
                    span=THIRD,
                    top=1,
                ),
                lines(
                    "How long gaps were kept",
                    *quantiles("agentserve_pin_seconds", of=(0.5, 0.9)),
                    what="Compare with the duration of tool calls.",
                    unit="s",
                    span=THIRD,
                ),
                lines(
                    "Warms that came in time",
                    q('sum(rate(agentserve_warms_total{end="used", refresh="warm"}[$__rate_interval])) '
                      '/ (sum(rate(agentserve_warms_total{refresh="warm"}[$__rate_interval])) > 0) or vector(0)',
                      "share"),
                    what="Of the prefetches that were made, those that the program found ready. 0 where none is made.",
                    unit="percentunit",
                    span=THIRD,
                    top=1,
                ),
            ],
        ),
    ],
)  # fmt: skip
