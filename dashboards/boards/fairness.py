"""Fairness and tenants: who got what, who waited, and how far apart that is from what they are owed."""

from dashboards.panels import THIRD, Board, Row, bars, counted, each_second, lines, q, quantiles, where

_OF = where("tenant")

BOARD = Board(
    uid="agentserve-fairness",
    title="Fairness and tenants",
    what="Who got what, who waited, and is anybody short of what they are owed?",
    variables=["tenant"],
    rows=[
        Row(
            title="Shares",
            panels=[
                lines(
                    "Weighted service, by tenant",
                    q(f"sum by (tenant) (deriv(agentserve_tenant_service_token_seconds{{{_OF}}}[$__rate_interval]))",
                      "{{tenant}}"),
                    what="KV tokens held over weight (token-seconds for each second). Among tenants that wait "
                         "these lines should meet; one that does not wait may be anywhere below.",
                    unit=counted("tokens"),
                ),
                lines(
                    "Largest gap between tenants that waited together",
                    q("max(agentserve_fairness_gap_token_seconds)", "gap"),
                    what="In weighted KV token-seconds, the largest since the gateway started. It may step up; it "
                         "must not climb.",
                    unit=counted("token-seconds"),
                ),
                bars(
                    "Weighted service so far",
                    q(f"sum by (tenant) (agentserve_tenant_service_token_seconds{{{_OF}}})", "{{tenant}}"),
                    what="The accounts. A tenant that was away is lifted to the least of those that waited.",
                    unit=counted("token-seconds"),
                    span=THIRD,
                ),
                lines(
                    "Memory held in gaps",
                    q(f"sum by (tenant) (rate(agentserve_pin_token_seconds_total{{{_OF}}}[$__rate_interval]))",
                      "{{tenant}}"),
                    what="KV tokens of kept gaps (token-seconds for each second), charged to the tenant when they end.",
                    unit=counted("tokens"),
                    span=THIRD,
                ),
                lines(
                    "Steps",
                    q(f"sum by (tenant) (rate(agentserve_steps_total{{{_OF}}}[$__rate_interval]))", "{{tenant}}"),
                    what="LLM calls, by the tenant that made them.",
                    unit=each_second("steps"),
                    span=THIRD,
                ),
            ],
        ),
        Row(
            title="Waiting",
            panels=[
                lines(
                    "Wait in the proxy, p95",
                    *quantiles("agentserve_queue_seconds", by="tenant", where=_OF, of=(0.95,)),
                    what="From a step's arrival until it was sent to an engine.",
                    unit="s",
                    span=THIRD,
                ),
                lines(
                    "First byte, p95",
                    *quantiles("agentserve_ttft_seconds", by="tenant", where=_OF, of=(0.95,)),
                    what="From a step's arrival to its first byte.",
                    unit="s",
                    span=THIRD,
                ),
                lines(
                    "Programs over",
                    q(f"sum by (tenant, reason) (rate(agentserve_programs_total{{{_OF}}}[$__rate_interval]))",
                      "{{tenant}}: {{reason}}"),
                    what="Agent runs that ended, and how.",
                    unit=each_second("programs"),
                    span=THIRD,
                ),
            ],
        ),
        Row(
            title="Tokens",
            panels=[
                lines(
                    "Prompt tokens computed",
                    q(f"sum by (tenant) (rate(agentserve_prompt_tokens_total{{{_OF}}}[$__rate_interval])) "
                      f"- (sum by (tenant) (rate(agentserve_cached_tokens_total{{{_OF}}}[$__rate_interval])) "
                      f"or 0 * sum by (tenant) (rate(agentserve_prompt_tokens_total{{{_OF}}}[$__rate_interval])))",
                      "{{tenant}}"),
                    what="Prompt tokens that were not in a cache: what a tenant's prompts cost the engines.",
                    unit=each_second("tokens"),
                    span=THIRD,
                ),
                lines(
                    "Output tokens",
                    q(f"sum by (tenant) (rate(agentserve_output_tokens_total{{{_OF}}}[$__rate_interval]))",
                      "{{tenant}}"),
                    what="What engines decoded for each tenant.",
                    unit=each_second("tokens"),
                    span=THIRD,
                ),
                lines(
                    "Share from cache",
                    q(f"sum by (tenant) (rate(agentserve_cached_tokens_total{{{_OF}}}[$__rate_interval])) "
                      f"/ sum by (tenant) (rate(agentserve_prompt_tokens_total{{{_OF}}}[$__rate_interval]))",
                      "{{tenant}}"),
                    what="A tenant far below the others sends prompts whose beginnings change.",
                    unit="percentunit",
                    span=THIRD,
                    top=1,
                ),
            ],
        ),
    ],
)  # fmt: skip
