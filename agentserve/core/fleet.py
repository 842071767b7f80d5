"""The engines as the scheduler sees them: what they can hold, what we sent there, what is probably still there.

Rule: an engine's own word (capacity, cached tokens, KV events) overrides our arithmetic; our arithmetic
fills in where engines are silent.

Where an engine publishes KV events, what they say of a program stands until the engine's reply finds more.
Residency without events rests on one fact about an LRU: a program's blocks are gone once the engine has
written more new tokens since their last use than it had room for. So each engine has a clock that counts
written tokens, each program remembers the reading at its last use, and residency is one subtraction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agentserve.core.decisions import PinMode
from agentserve.core.events import EngineReported
from agentserve.core.ids import EngineId, StepId
from agentserve.core.prefixes import Prefixes
from agentserve.core.program import Program, Step

# Until an engine says or shows how much it holds.
KV_TOKENS_ASSUMED = 1 << 40
# What a prefill must amount to before its time says something of the engine's speed: so many tokens, or for an engine
# with little memory, whose prompts are never that long, this share of it.
PREFILL_TOKENS_TELLING = 1024
PREFILL_SHARE_TELLING = 1 / 16
# A prompt's tokens also attend to all before them. At this length that takes as long as all the rest: models of 8 to 70
# billion parameters have it between 60,000 and 110,000, and most fleets serve smaller ones.
ATTENTION_EVEN_TOKENS = 60_000


@dataclass(slots=True, eq=False, kw_only=True)
class Engine:
    """One inference server."""

    id: EngineId
    up: bool = True
    draining: bool = False
    models: frozenset[str] = frozenset()  # empty: serves any
    kv_tokens: int = KV_TOKENS_ASSUMED
    kv_known: bool = False
    seqs_max: int | None = None
    block_tokens: int = 1  # it keeps and drops KV by so many
    prefill_tokens_per_s: float = 20_000.0  # assumed until it is told or shown
    prefill_known: bool = False
    prefill_seen: bool = False
    decode_s_per_token: float = 0.015
    speed: float = 1.0
    pin_mode: PinMode = "reserved"  # how it keeps KV: by a call of its own, or because we leave it the room

    steps: dict[StepId, Step] = field(default_factory=dict)  # in flight
    in_flight_tokens: int = 0  # their footprints
    written: int = 0  # the clock: new KV tokens written since the start
    prefixes: Prefixes = field(default_factory=Prefixes)

    # bounds learned from hits and misses while the engine does not say its capacity
    _held_at_least: int = 0

    def usable(self, model: str) -> bool:
        return self.up and not self.draining and (not self.models or not model or model in self.models)

    def room(self) -> int:
        """KV tokens not taken by steps in flight."""
        return self.kv_tokens - self.in_flight_tokens

    def seqs_free(self) -> int:
        return 1 << 30 if self.seqs_max is None else self.seqs_max - len(self.steps)

    def keeps(self, program: Program) -> bool:
        """Is what the program left here still here, by its word or else by our arithmetic?"""
        if program.told_by == self.id:
            return True
        room = self.room()
        return self.written - program.home_clock <= (room if room > 0 else 0)

    def kept_of(self, tokens: int) -> int:
        """Of so many tokens of prompt and output, those that stay: whole blocks, and the last token has no KV yet."""
        size = self.block_tokens
        return tokens if size < 2 else max(tokens - 1, 0) // size * size

    def prefill_s(self, tokens: float) -> float:
        return tokens / (self.prefill_tokens_per_s * self.speed)

    def restore_s(self, tokens: float) -> float:
        """To prefill a whole context anew: more than in proportion to its length."""
        return self.prefill_s(tokens) * (1.0 + tokens / ATTENTION_EVEN_TOKENS)

    def decode_s(self, tokens: float) -> float:
        return tokens * self.decode_s_per_token / self.speed

    def says(self, report: EngineReported) -> None:
        """It said something of itself; what it does not mention stays as it was."""
        if report.kv_tokens is not None:
            self.kv_tokens = report.kv_tokens
            self.kv_known = True
        if report.models:
            self.models = frozenset(report.models)
        if report.seqs_max:
            self.seqs_max = report.seqs_max
        if report.block_tokens:
            self.block_tokens = report.block_tokens
        if report.prefill_tokens_per_s is not None:
            self.prefill_tokens_per_s = report.prefill_tokens_per_s
            self.prefill_known = True
        if report.decode_tokens_per_s is not None:
            self.decode_s_per_token = 1.0 / report.decode_tokens_per_s
        if report.draining is not None:
            self.draining = report.draining
        if report.pins_natively is not None:
            self.pin_mode = "native" if report.pins_natively else "reserved"

    def learn_speed(self, *, uncached_tokens: int, cached_tokens: int, seconds: float) -> None:
        """A prefill of so many tokens, behind so many that were there, took so long from dispatch to first byte.

        Whatever waited or ran beside it only makes it look slower, so the estimate rises fast and sinks slowly; what
        was assumed before the first one counts for nothing.
        """
        if self.prefill_known or seconds <= 0.0:
            return
        telling = min(PREFILL_TOKENS_TELLING, self.kv_tokens * PREFILL_SHARE_TELLING)
        if uncached_tokens < telling:
            return
        # of that time, what it took to attend to all before them is no matter of the speed: `restore_s` adds it again
        attending = (2 * cached_tokens + uncached_tokens) / ATTENTION_EVEN_TOKENS
        seen = uncached_tokens * (1.0 + attending) / seconds / self.speed
        if not self.prefill_seen:
            self.prefill_seen = True
            self.prefill_tokens_per_s = seen
            return
        gain = 0.5 if seen > self.prefill_tokens_per_s else 0.05
        self.prefill_tokens_per_s += gain * (seen - self.prefill_tokens_per_s)

    def learn_capacity(self, *, distance: int, hit: bool, held: int = 1) -> None:
        """A prefix last used `distance` written tokens ago was (not) still there: a bound on the capacity. The step
        that found out held so many tokens at once: what is missed after fewer was not forgotten for want of room."""
        if hit:
            if distance > self._held_at_least:
                self._held_at_least = distance
            if not self.kv_known and self.kv_tokens < self._held_at_least:
                self.kv_tokens = self._held_at_least
            return
        if not self.kv_known and distance >= held:
            seen = max(distance, self._held_at_least, self.in_flight_tokens)
            if seen < self.kv_tokens:
                # approach from above, never below what was seen to fit
                self.kv_tokens = max(int(seen * 0.95), self._held_at_least)


class Fleet:
    """All engines, in the order they were added."""

    def __init__(self) -> None:
        self.engines: dict[EngineId, Engine] = {}

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines.values())

    def __getitem__(self, engine: EngineId) -> Engine:
        return self.engines[engine]

    def get(self, engine: EngineId | None) -> Engine | None:
        return None if engine is None else self.engines.get(engine)

    def prefill_rate(self, engine: str) -> float | None:
        """Tokens a second that it prefills, as far as that was seen."""
        found = self.engines.get(EngineId(engine))
        return None if found is None else found.prefill_tokens_per_s * found.speed

    def usable(self, model: str) -> list[Engine]:
        return [e for e in self.engines.values() if e.usable(model)]

    def add(self, engine: EngineId) -> Engine:
        found = self.engines.get(engine)
        if found is None:
            found = self.engines[engine] = Engine(id=engine)
        return found

    # -- residency

    def expected_cached(self, program: Program, engine: Engine) -> int:
        """Tokens of the program's prefix that this engine probably still holds."""
        if program.told_by == engine.id:
            return program.told_tokens
        shared = engine.prefixes.held(program.prefix)
        if program.home != engine.id or not program.home_tokens:
            return shared
        if not engine.keeps(program):
            return shared
        return program.home_tokens if program.home_tokens > shared else shared

    def placed(self, step: Step, engine: Engine, now: float) -> None:
        """The step goes to the engine: charge its footprint."""
        step.engine = engine.id
        step.dispatched_at = now
        expected = self.expected_cached(step.program, engine)
        if expected >= step.prompt_tokens:  # an engine computes the last token always
            expected = (step.prompt_tokens or 1) - 1
        step.expected_cached = expected - expected % engine.block_tokens
        step.footprint = step.prompt_tokens + int(step.output_tokens)
        engine.steps[step.id] = step
        engine.in_flight_tokens += step.footprint

    def left(self, step: Step) -> Engine | None:
        """The step is no longer on its engine."""
        engine = self.get(step.engine)
        if engine is None or engine.steps.pop(step.id, None) is None:
            return None
        engine.in_flight_tokens -= step.footprint
        return engine

    def wrote(
        self, step: Step, engine: Engine, prompt: int, output: int, cached: int | None, now: float
    ) -> None:
        """A step finished there: move the clock, believe the engine about what it found cached."""
        program = step.program
        believed = step.expected_cached if cached is None else cached
        if cached is not None and step.started_at is not None and step.dispatched_at is not None:
            engine.learn_speed(
                uncached_tokens=prompt - cached,
                cached_tokens=cached,
                seconds=step.started_at - step.dispatched_at,
            )
        if cached is not None:
            own = program.home == engine.id and program.home_tokens > 0
            distance = engine.written - program.home_clock
            hit = cached * 2 >= program.home_tokens or cached * 2 >= prompt
            if own and step.expected_cached > 4 * 256 and step.expected_cached > 4 * cached:
                held = max(prompt + output, step.prompt_tokens)
                engine.learn_capacity(distance=distance, hit=False, held=held)
            elif own and hit and program.steps_done:
                engine.learn_capacity(distance=distance, hit=True)
        engine.written += (prompt - believed if prompt > believed else 0) + output
        program.home = engine.id
        if program.told_by == engine.id and (cached is None or cached <= program.told_tokens):
            program.home_tokens = program.told_tokens
        else:  # it found more than its events tell of: they leave something out
            program.told_by = None
            program.home_tokens = engine.kept_of(prompt + output)
        program.home_clock = engine.written
        engine.prefixes.seen(program.prefix, engine.written)

    def warmed(self, program: Program, engine: Engine, prompt: int | None, cached: int | None) -> None:
        """Its KV is there again, as far as it was not: that was written, and pushed others' out.

        What was sent may be less than what it left there: the last prompt, without the reply to it.
        """
        if cached is not None:
            sent = program.home_tokens if prompt is None else min(prompt, program.home_tokens)
            engine.written += max(sent - cached, 0)
        program.home_clock = engine.written

    def told(self, program: Program, engine: Engine, tokens: int) -> None:
        """The engine's KV events say that it holds this much of the program."""
        at_home = program.home is None or program.home == engine.id
        if not at_home and program.told_by != engine.id and not program.runs_on(engine.id):
            return  # what it left elsewhere is of no interest any more
        program.told_by = engine.id
        program.told_tokens = tokens
        if at_home:
            program.home_tokens = tokens

    def forget(self, engine: Engine, programs: Iterable[Program]) -> None:
        """The engine's cache is gone."""
        engine.prefixes.forget()
        for program in programs:
            if program.home == engine.id:
                program.home_tokens = 0
            if program.told_by == engine.id:
                program.told_by = None
