"""llama.cpp's server: slots as pins, their files as warms, its own token counts.

Rule: a slot is a true pin, and there are few of them, so the book of slots is kept here: a pinned program's
slot is named in its requests and given to nobody else. Slots can be saved to and restored from files only
where the server has `--slot-save-path`. Facts checked against the server's source and a running one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, ClassVar

from agentserve.ports import Capabilities, EngineLoad, Hints, Json, Outcome, Outgoing, ProgramPrefix, Receipt
from agentserve_adapters.actions import Refused
from agentserve_adapters.detection import Recognised, Sight
from agentserve_adapters.exposition import Exposition
from agentserve_adapters.readings import at, whole
from agentserve_adapters.served import RESERVED, ServedEngine, together

SAVED_MAX = 1_000
SLOT_TIMEOUT_S = 30.0  # a long prompt's file is hundreds of megabytes


class SlotBook:
    """Which program has which slot. Pinned slots are kept; the others go to whoever came last."""

    def __init__(self) -> None:
        self.slots = 0
        self._slot_of: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._pinned: set[str] = set()

    def resize(self, slots: int) -> None:
        if slots != self.slots:
            self.slots = slots
            self.forget()

    def forget(self) -> None:
        self._slot_of.clear()
        self._pinned.clear()

    def slot_of(self, program: str) -> int | None:
        return self._slot_of.get(program)

    def place(self, program: str) -> int | None:
        """A slot for the program's next step; None when all are pinned by others: the server may choose."""
        if program in self._slot_of:
            self._slot_of.move_to_end(program)
            return self._slot_of[program]
        free = [slot for slot in range(self.slots) if slot not in self._slot_of.values()]
        if free:
            slot = free[0]
        else:
            victim = next((p for p in self._slot_of if p not in self._pinned), None)
            if victim is None:
                return None
            slot = self._slot_of.pop(victim)
        self._slot_of[program] = slot
        return slot

    def pin(self, program: str) -> int | None:
        """Keep the program's slot. At least one slot stays free for everyone else."""
        if len(self._pinned | {program}) >= max(self.slots, 1):
            return None
        slot = self.place(program)
        if slot is not None:
            self._pinned.add(program)
        return slot

    def unpin(self, program: str) -> int | None:
        self._pinned.discard(program)
        return self._slot_of.get(program)


class LlamaCppAdapter(ServedEngine):
    """One `llama-server`."""

    kind = "llamacpp"
    protocols: ClassVar[frozenset[str]] = frozenset(
        {"chat", "completions", "responses", "messages", "embeddings"}
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.book = SlotBook()
        self._saved: OrderedDict[str, str] = OrderedDict()  # program -> file
        self._metrics = False
        self._slots_shown = False
        self._files: bool | None = None  # None: not tried yet

    @staticmethod
    async def recognise(sight: Sight) -> Recognised | None:
        owner = await sight.owner()
        props = await sight.table("/props")
        if "total_slots" in props:
            version = str(props.get("build_info", ""))
            return Recognised(certainty=0.95, evidence="/props has slots", version=version)
        if owner == "llamacpp":
            return Recognised(certainty=0.9, evidence="/v1/models is owned by llamacpp")
        return None

    # -- probing

    async def probe(self) -> Capabilities:
        models, props, slots, page = await together(
            self.models(), self.ask_softly("/props"), self._slots(), self._page()
        )
        self._metrics, self._slots_shown = bool(page), slots is not None
        count = whole(props.get("total_slots")) or len(slots or ()) or 1
        self.book.resize(count)
        context = whole(at(props, "default_generation_settings", "n_ctx"))
        capacity = context * count if context else None
        version = str(props.get("build_info", ""))
        self.seen(marks={"version": version or None, "capacity": capacity})
        if self._files is None:
            self._files = await self._has_files()
        pins = self.book.slots > 1
        native = {
            "tokenise": "native: /v1/chat/completions/input_tokens",
            "load": "native: /metrics" if self._metrics else "native: /slots",
        }
        if pins:
            native["pin"] = (
                f"native: {self.book.slots - 1} of {self.book.slots} slots may be kept for programs"
            )
            native["unpin"] = "native: the slot is given back"
        if self._files:
            native["warm"] = "native: a slot's saved file is restored; else the next prompt with one token"
        if capacity:
            native["kv_capacity"] = "native: /props (context per slot, times slots)"
        return Capabilities(
            kind=self.kind,
            version=version,
            models=self.names(models),
            protocols=self.protocols,
            kv_tokens=self.options.kv_tokens or capacity,
            block_tokens=1,
            seqs_max=self.book.slots,
            context_tokens_max=context,
            pin="native" if pins else "reserved",
            reports_cached_tokens=True,
            tokenises=True,
            unlocks=self._unlocks(),
            refused=self.actions.refused,
            mechanisms=self.mechanisms(**native),
        )

    def _unlocks(self) -> tuple[tuple[str, str], ...]:
        found = []
        if self.book.slots < 2:
            found.append(("--parallel 8", "slots of their own for several programs, and native pins"))
        if self._files is not True:
            found.append(
                ("--slot-save-path DIR", "a program's KV survives in a file while others use its slot")
            )
        if not self._metrics:
            found.append(("--metrics", "requests running and deferred"))
        if not self._slots_shown:
            found.append(("--slots", "which slot does what"))
        return tuple(found)

    async def _slots(self) -> list[Json] | None:
        found = (await self.wire.get("/slots")).json()
        return found if isinstance(found, list) else None

    async def _has_files(self) -> bool:
        """Ask it to save under a name that it must refuse: without a place for files it says so first (501)."""
        answer = await self.wire.post("/slots/0?action=save", {"filename": "../"})
        return answer.status == 400

    async def _page(self) -> Exposition:
        answer = await self.wire.get("/metrics")
        return Exposition(answer.text if answer.ok else "", prefixes=("llamacpp:",))

    async def load(self) -> EngineLoad:
        page = await self._page()
        if page:
            boot = self.seen(
                counters={
                    "prompts": page.total("llamacpp:prompt_tokens_total"),
                    "predicted": page.total("llamacpp:tokens_predicted_total"),
                }
            )
            return EngineLoad(
                running=page.count("llamacpp:requests_processing"),
                waiting=page.count("llamacpp:requests_deferred"),
                boot=boot,
            )
        slots = await self._slots()
        if slots is None:
            return await super().load()
        tasks = max((whole(s.get("id_task")) or 0 for s in slots), default=0)
        boot = self.seen(counters={"tasks": max(tasks, 0) or None})
        return EngineLoad(running=sum(1 for s in slots if s.get("is_processing")), boot=boot)

    def restarted(self) -> None:
        super().restarted()
        self.book.forget()
        self._files = None

    # -- on the request's path

    def prepare(self, outgoing: Outgoing, hints: Hints) -> None:
        super().prepare(outgoing, hints)
        if self.book.slots < 2 or "id_slot" in outgoing.body:
            return
        slot = self.book.place(hints.program)
        if slot is not None:
            outgoing.body["id_slot"] = slot
            outgoing.changed = True

    def dress_warm(self, program: str, body: Json, headers: dict[str, str]) -> None:
        slot = self.book.place(program) if self.book.slots > 1 else None
        if slot is not None:
            body["id_slot"] = slot

    async def count_tokens(self, protocol: str, body: Json) -> int | None:
        paths = {
            "chat": "/v1/chat/completions/input_tokens",
            "responses": "/v1/responses/input_tokens",
            "messages": "/v1/messages/count_tokens",
        }
        if protocol in paths:
            return whole((await self.wire.post(paths[protocol], body)).table().get("input_tokens"))
        if protocol == "completions" and isinstance(body.get("prompt"), str):
            asked = {"content": body["prompt"], "add_special": True}
            tokens = (await self.wire.post("/tokenize", asked)).table().get("tokens")
            return len(tokens) if isinstance(tokens, list) else None
        return None

    # -- KV

    async def pin(self, program: str, prefix: ProgramPrefix | None, tokens: int, ttl_s: float) -> Receipt:
        return await self.actions.carry_out(
            "kv.pin",
            {"program": program, "tokens": tokens, "ttl_s": round(ttl_s, 3)},
            lambda: self._keep(program),
            instead="reserved",
            emulation=RESERVED,
        )

    async def _keep(self, program: str) -> Receipt:
        slot = self.book.pin(program)
        if slot is None:
            raise Refused("no slot can be kept: the last one serves everyone else", lasting=False)
        saved = await self._save(program, slot)
        detail = f"slot {slot} is kept" + (f", {saved} tokens saved" if saved is not None else "")
        return Receipt(outcome=Outcome.ACCEPTED, mode="native", detail=detail)

    async def _save(self, program: str, slot: int) -> int | None:
        """To a file, where the server has a place for it; otherwise the slot alone must do."""
        if self._files is False:
            return None
        name = file_of(program)
        answer = await self.wire.post(
            f"/slots/{slot}?action=save", {"filename": name}, timeout_s=SLOT_TIMEOUT_S
        )
        if not answer.ok:
            self._files = False if answer.status in (400, 404, 501) else self._files
            return None
        self._files = True
        self._saved[program] = name
        self._saved.move_to_end(program)
        if len(self._saved) > SAVED_MAX:
            self._saved.popitem(last=False)
        return whole(answer.table().get("n_saved"))

    async def unpin(self, program: str) -> Receipt:
        """The slot is free for others; its content stays until somebody takes it.

        Nor is it erased when the program is over: the next one there finds the instructions that both begin with.
        """
        slot = self.book.unpin(program)
        detail = "it had no slot" if slot is None else f"slot {slot} is given back"
        receipt = Receipt(
            outcome=Outcome.ACCEPTED, mode="native" if slot is not None else "none", detail=detail
        )
        return self.actions.note("kv.release", {"program": program}, receipt)

    async def prefill(self, program: str, prefix: ProgramPrefix) -> Receipt:
        """Restore the program's file into a slot; without one, prefill."""
        name = self._saved.get(program)
        resident = self.book.slot_of(program) is not None
        slot = self.book.place(program) if name is not None else None
        if name is None or slot is None or resident:
            return await super().prefill(program, prefix)
        answer = await self.wire.post(
            f"/slots/{slot}?action=restore", {"filename": name}, timeout_s=SLOT_TIMEOUT_S
        )
        if not answer.ok:
            self._saved.pop(program, None)
            return await super().prefill(program, prefix)
        restored = whole(answer.table().get("n_restored"))
        return Receipt(
            outcome=Outcome.ACCEPTED,
            mode="native",
            detail=f"slot {slot} is restored from its file",
            cached_tokens=restored,
        )


def file_of(program: str) -> str:
    """A file name that no program's name can lead out of the directory."""
    return f"agentserve-{hashlib.sha256(program.encode()).hexdigest()[:32]}.bin"
