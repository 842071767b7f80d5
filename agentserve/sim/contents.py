"""From a program's plan to what the engine hashes and what the scheduler is told of each prompt.

Rule: equal prefixes get equal block hashes, across programs and whatever the hash seed; nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentserve.core.events import Segment
from agentserve.sim.programs import OWN_KEYS, ProgramPlan, Run, StepPlan

EPOCHS = 64  # compactions told apart in one program
BLOCK_BITS = 20
SEGMENTS_MAX = 8


class Text:
    """The growing prompt of one live program, as block hashes of `block` tokens."""

    __slots__ = ("_epoch", "_hashes", "_shared_tokens", "block", "plan", "tokens")

    def __init__(self, plan: ProgramPlan, block: int) -> None:
        self.plan = plan
        self.block = block
        self._epoch = 0
        self._shared_tokens = sum(r.tokens for r in plan.shared)
        self._hashes: list[int] = []
        self.tokens = 0
        self._restart()

    def _restart(self) -> None:
        self._hashes = shared_hashes(self.plan.shared, self.block)
        self.tokens = self._shared_tokens

    def prompt(self, step: StepPlan) -> int:
        """Grow to the step's prompt; its length in tokens."""
        if step.contents is not None:
            self.tokens = sum(r.tokens for r in step.contents)
            return self.tokens
        if step.compact_to is not None:
            self._epoch += 1
            self._restart()
            self.tokens += step.compact_to
        self.tokens += step.new_tokens
        return self.tokens

    def hashes(self, step: StepPlan) -> Sequence[int]:
        """Hashes of every full block of the present prompt and the output that follows it."""
        total = self.tokens + step.output_tokens
        if step.contents is not None:
            return contents_hashes(step.contents, total, self.block)
        own = self._hashes
        base = ((self.plan.own * EPOCHS + self._epoch) << BLOCK_BITS) + 1
        own.extend(range(base + len(own), base + total // self.block))
        return own[: total // self.block]

    def answered(self, step: StepPlan) -> None:
        """The output is part of the text now."""
        self.tokens += step.output_tokens

    def segments(self, step: StepPlan) -> tuple[Segment, ...]:
        """The leading runs that other programs may share, as the scheduler sees them."""
        runs = self.plan.shared if step.contents is None else step.contents
        out = []
        chain = 0
        for run in runs[:SEGMENTS_MAX]:
            if run.key >= OWN_KEYS:
                break
            chain = (chain * 1_000_003 + run.key) & ((1 << 62) - 1)
            out.append(Segment(chain, run.tokens))
        return tuple(out)


def common_tokens(one: Sequence[Run], other: Sequence[Run]) -> int:
    """How far two prompts agree."""
    total = 0
    for a, b in zip(one, other, strict=False):
        if a.key != b.key:
            break
        total += min(a.tokens, b.tokens)
        if a.tokens != b.tokens:
            break
    return total


def shared_hashes(runs: Sequence[Run], block: int) -> list[int]:
    """Hashes of the blocks that lie wholly inside `runs`."""
    return contents_hashes(runs, sum(r.tokens for r in runs), block)


def contents_hashes(runs: Sequence[Run], total: int, block: int) -> list[int]:
    """Block hashes of a prompt made of `runs`, followed by output up to `total` tokens.

    A block is named by the run it ends in, its place in the prompt and the chain of runs up to there.
    """
    out: list[int] = []
    end = 0
    chain = 0
    last = 0
    for run in runs:
        end += run.tokens
        chain = (chain * 1_000_003 + run.key + 1) & ((1 << 60) - 1)
        last = chain << BLOCK_BITS
        # a block that straddles two runs belongs to the later one
        out.extend(range(last + len(out), last + end // block))
    out.extend(range(last + len(out), last + total // block))
    return out
