"""How well live programs are told apart by how long they still are: `python -m tests.bench.length_ranks [FILE]`.

A scheduler that prefers short programs gains only if it knows which of those alive at one time is shorter, whatever the
error of each forecast. Printed is the rank correlation (Spearman's) of the steps that are left with what is forecast,
and with what any observer sees: steps done and context. Without FILE the workload is generated.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from agentserve.core import events as ev
from agentserve.core.learned import Learned
from agentserve.core.program import Program, Step
from agentserve.sim.importers import read
from agentserve.sim.run import Trial, build

EVERY_EVENTS = 400
WARM_EVENTS = 4_000
PROGRAMS_MIN = 8
NAMES = ("forecast", "fewer done", "context")


def ranks(values: Sequence[float]) -> list[float]:
    """Of each value; ties share the mean of theirs."""
    order = sorted(values)
    first = {value: at for at, value in reversed(list(enumerate(order)))}
    last = {value: at for at, value in enumerate(order)}
    return [(first[value] + last[value]) / 2 for value in values]


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Of ranks; 0 where all values are the same."""
    try:
        return statistics.correlation(ranks(one), ranks(other))
    except statistics.StatisticsError:
        return 0.0


class Watched(Learned):
    """What is learned, and now and then how the live programs would be ranked by it."""

    def __init__(self) -> None:
        super().__init__()
        self.events = 0
        self.due = False

    def learn(self, event: ev.AnyEvent, program: Program | None, step: Step | None, now: float) -> None:
        super().learn(event, program, step, now)
        self.events += 1
        self.due |= self.events > WARM_EVENTS and self.events % EVERY_EVENTS == 0


def main() -> None:
    """Run one simulation and print the means over its looks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "file", nargs="?", type=Path, help="recorded programs, what `agentserve replay` reads"
    )
    parser.add_argument("--workload", default="coding")
    parser.add_argument("--programs", type=int, default=120)
    parser.add_argument("--pressure", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    workload = read(args.file, limit=args.programs).workload if args.file else args.workload
    world = build(Trial(workload=workload, programs=args.programs, seed=args.seed, pressure=args.pressure))
    board = world.scheduler.board
    watched = board.foresight = Watched()
    looks: list[tuple[float, ...]] = []
    alive: list[int] = []

    def look(_: int) -> None:
        if not watched.due:
            return
        watched.due = False
        live = [p for p in board.programs.values() if p.steps_done]
        if len(live) >= PROGRAMS_MIN:
            left = [world.clients.true_steps_left(p.id) for p in live]
            seen = (
                [watched.steps_left(p) for p in live],
                [-float(p.steps_done) for p in live],
                [float(p.context_tokens) for p in live],
            )
            looks.append(tuple(correlation(values, left) for values in seen))
            alive.append(len(live))

    world.run(look)
    print(
        f"{len(looks)} looks at {statistics.fmean(alive):.0f} live programs; rank correlation with steps left:"
    )
    for name, values in zip(NAMES, zip(*looks, strict=True), strict=True):
        print(f"  {name:<12} {statistics.fmean(values):+.2f}")


if __name__ == "__main__":
    main()
