"""Read the code blocks and the commands of a Markdown page, in the order in which a reader meets them.

Rule: nothing is skipped in silence. An HTML comment that starts with `ci:` may stand before a block and say what is
done with it; all else is taken as written. It must not know what a block is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\S*)\s*$")
MARK = re.compile(r"^<!--\s*ci:\s*(.*?)\s*-->$")
INLINE = re.compile(r"`((?:make|agentserve) [^`]+)`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block; `mark` is the text of the `ci:` comment before it, "" without one."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command as the page has it; `inline` when it stands in a sentence."""

    page: str
    line: int
    text: str
    mark: str = ""
    inline: bool = False


class PageError(Exception):
    """A page that cannot be followed as written."""


def blocks(page: Path) -> list[Block]:
    """The page's fenced blocks, top to bottom."""
    found: list[Block] = []
    language, began, held, mark = "", 0, [""], ""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if inside and fence and not fence[1]:
            found.append(
                Block(page=page.name, line=began, language=language, text="\n".join(held), mark=mark)
            )
            inside, mark = False, ""
        elif inside:
            held.append(line)
        elif fence:
            inside, language, began, held = True, fence[1], number + 1, []
        elif marked := MARK.match(line):
            mark = marked[1]
        elif line.strip():
            mark = ""
    if inside:
        raise PageError(f"{page.name}:{began}: the block is not closed")
    return found


def commands(page: Path) -> list[Command]:
    """Every command of the page: those of `sh` blocks, and those named in sentences, top to bottom."""
    fenced = [b for b in blocks(page) if b.language == "sh"]
    found = [c for block in fenced for c in _commands_of(block)]
    covered = {n for b in blocks(page) for n in range(b.line - 1, b.line + b.text.count("\n") + 2)}
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if number not in covered:
            found += [
                Command(page=page.name, line=number, text=text, inline=True) for text in INLINE.findall(line)
            ]
    return sorted(found, key=lambda c: c.line)


def changed(text: str, mark: str) -> str:
    """`text` with the replacements that a mark names: `OLD becomes NEW; OLD becomes NEW`."""
    for rule in mark.split(";"):
        old, sep, new = (part.strip() for part in rule.partition(" becomes "))
        if not sep:
            raise PageError(f"`{rule}` is not `OLD becomes NEW`")
        if old not in text:
            raise PageError(f"`{old}` is to be changed and stands nowhere")
        text = text.replace(old, "" if new == "nothing" else new)
    return text


def _commands_of(block: Block) -> list[Command]:
    """The block's commands: a line each, with its continuations; a loop is one."""
    found: list[Command] = []
    held: list[str] = []
    began = block.line
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if not held:
            began = number
        if held or (line.strip() and not line.lstrip().startswith("#")):
            held.append(line)
        if held and not line.endswith("\\") and _whole(held):
            found.append(Command(page=block.page, line=began, text="\n".join(held), mark=block.mark))
            held = []
    if held:
        raise PageError(f"{block.page}:{began}: the command does not end")
    return found


def _whole(lines: list[str]) -> bool:
    words = " ".join(lines).split()
    return words.count("do") <= sum(word in ("done", "done;") for word in words)
