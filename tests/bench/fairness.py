"""What a heavy tenant does to light ones, with the largest service gap beside its bound.

`python tests/bench/fairness.py`: the `mixed` workload by arrival; each light tenant's mean completion over what it
reaches alone, with the same arrivals, on its share of the fleet: one engine with a tenth of the fleet's KV and speed.

The bound: tenants that wait together differ by no more than what one of them can be given before the others' turn
comes, which is the whole fleet's KV for as long as a program keeps a seat; none kept it longer than the longest took.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics

from agentserve.sim.programs import Workload
from agentserve.sim.run import Trial, run, workload_of

ENGINES = 4
KV_TOKENS = 396_000
TENANTS = 10
SHARE = 1 / TENANTS


def alone(workload: Workload, tenant: str, trial: Trial) -> float:
    """Its mean completion on its share, nobody else there."""
    mine = [p for p in workload.programs if p.tenant == tenant]
    small = dataclasses.replace(
        trial,
        workload=Workload(name=tenant, programs=mine, seed=workload.seed),
        engines=1,
        speeds=(ENGINES * SHARE,),
        kv_tokens=int(ENGINES * KV_TOKENS * SHARE),
        rate_per_s=None,
        pressure=None,
    )
    return float(run(small)[0]["jct_mean_s"])


def measured(trial: Trial) -> tuple[dict[str, float], float, float]:
    """Each light tenant's ratio; the largest gap seen, and its bound, in KV token-seconds."""
    workload = workload_of(trial)
    figures, world, result = run(
        dataclasses.replace(trial, workload=workload, rate_per_s=None, pressure=None)
    )
    ratios = {
        tenant: row["jct_mean_s"] / alone(workload, tenant, trial)
        for tenant, row in figures["tenants"].items()
        if tenant.startswith("light")
    }
    longest_s = max(t.ended_at - t.started_at for t in result.programs)
    held = sum(engine.kv_tokens for engine in world.engines)
    return ratios, float(figures["policy"]["fairness_gap"]), held * longest_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument(
        "--rate", type=float, default=0.5, help="programs a second, half of them the heavy tenant's"
    )
    parser.add_argument("--seed", type=int, action="append")
    args = parser.parse_args()
    for seed in args.seed or (11, 12, 13):
        trial = Trial(
            workload="mixed",
            engines=ENGINES,
            kv_tokens=KV_TOKENS,
            programs=args.programs,
            rate_per_s=args.rate,
            pressure=None,
            seed=seed,
        )
        ratios, gap, bound = measured(trial)
        print(
            f"seed {seed}: light tenants over alone on their share: mean {statistics.fmean(ratios.values()):.2f}, "
            f"worst {max(ratios.values()):.2f}; largest gap {gap:.3g} of at most {bound:.3g} KV token-seconds"
        )


if __name__ == "__main__":
    main()
