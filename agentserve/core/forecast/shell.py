"""Reads a shell command as far as its running time depends on it: which program, which subcommand, how many.

One rule: it reads, it never runs, and it gives up rather than guess wrong. Any shell command of any agent may
come in, heredocs and quotes included; the work is bounded by `READ_CHARS_MAX`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

READ_CHARS_MAX = 2048
_WORDS_MAX = 256

_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_TOKEN = re.compile(
    r"(?P<space>[^\S\n]+|\\\n)|(?P<comment>(?<!\S)#[^\n]*)|(?P<op>&&|\|\||;;|\|&|[|;\n])"
    r"|(?P<redirect>\d?(?:>>|>&|>|<<<|<)&?\d?|&>)"
    r"|(?P<amp>&)|(?P<word>(?:[^\s|;&<>'\"\\]|\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\")+)|(?P<odd>.)",
    re.DOTALL,
)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_SUBCOMMAND = re.compile(r"[a-z][a-z0-9]*(?:[-:_][a-z0-9]+)*\Z")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)\Z")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Commands that prepare the one that counts, and take no time of their own.
_SETUP = _words("""
    cd export set source . pushd popd true false : unset alias echo printf local wait shopt trap read
""")
# Words of the shell's own language that a command may follow.
_KEYWORDS = _words("""
    do then else { } ( ) ! if while until fi done esac time
""")
# And those that head a line which runs nothing itself.
_HEADS = _words("""
    for case select function
""")
# Programs that run another program: the other one is what takes the time.
_WRAPPERS = _words("""
    sudo env nohup nice command exec stdbuf builtin doas setsid xvfb-run ionice caffeinate
""")
_RUNNERS = {
    **dict.fromkeys(("uv", "poetry", "pipenv", "hatch", "pdm", "rye", "conda", "dotenv"), "run"),
    **dict.fromkeys(("bundle", "pnpm", "yarn", "npm"), "exec"),
}
# And those that fetch it first.
_LAUNCHERS = _words("""
    npx bunx uvx pipx
""")
# Shells, which may be given a whole command line.
_SHELLS = _words("""
    bash sh zsh dash ksh fish
""")
# Interpreters are known by what they interpret.
_INTERPRETERS = _words("""
    python python3 node deno ruby perl php pwsh powershell Rscript julia lua tsx ts-node bash sh zsh
    dash ksh fish
""")
# Programs whose words are operands: files, patterns, hosts.
_OPERANDS = _words("""
    ls cat grep rg egrep find fd sed awk head tail rm cp mv mkdir touch wc sort uniq diff tree stat du
    df ps kill pkill which file chmod chown ln less more cut tr tee xargs curl wget ssh scp rsync tar
    zip unzip gcc g++ clang jq test [ [[ sqlite3 psql mysql vi vim nano ping basename dirname realpath
    readlink date whoami pytest mypy ruff eslint prettier tsc javac java openssl md5sum sha256sum base64
    xxd strings nl seq man type gofmt black flake8 pylint dd patch ack ag column
""")
# Subcommands that only say "run the following": the next word names what runs.
_TWO_WORDS = _words("""
    run compose exec run-script x buildx tool
""")
# Options that take a value, for programs that put them before the subcommand.
_VALUED: dict[str, frozenset[str]] = {
    "git": _words("-C -c --git-dir --work-tree"),
    "kubectl": _words("-n --namespace --context"),
    "docker": _words("-H --context"),
    "make": _words("-C -f -j"),
    "cargo": _words("--manifest-path"),
    "npm": _words("--prefix"),
    "pnpm": _words("-C --dir --filter"),
    "go": _words("-C"),
    "gh": _words("-R --repo"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a shell command says about its own running time."""

    program: str  # the program word and its subcommand: `git status`, `npm run test`
    pipes: bool
    chain: int  # commands joined by `&&`, `||`, `;` or a new line; 1 for a plain command
    background: bool
    timeout_s: float | None  # declared by the `timeout` program
    sleeps_s: float  # what its `sleep` commands add up to


def read(text: str) -> Command:
    """What `text`, a shell command line or script, is about to run."""
    return _read(text[:READ_CHARS_MAX], nested=False)


def _read(text: str, *, nested: bool) -> Command:
    program, pipes, background, timeout_s, sleeps_s, count = "", False, False, None, 0.0, 0
    setup = ""
    for found, operator in _commands(_without_heredocs(text)):
        pipes |= operator in ("|", "|&")
        background = operator == "&"
        limit, words = _unwrap(found)
        timeout_s = timeout_s or limit
        if not words:
            continue
        count += operator not in ("|", "|&")
        name = _base(words[0])
        inner = "" if nested else _command_line(name, words)
        if inner:  # a shell that was given a command line: that is the command
            within = _read(inner, nested=True)
            program = program or within.program
            pipes, sleeps_s = pipes or within.pipes, sleeps_s + within.sleeps_s
            count += within.chain - 1
        elif name == "sleep":
            sleeps_s += sum(s for s in map(_seconds, words[1:]) if s)
        elif name in _SETUP:
            setup = setup or name
        elif not program:
            program = _name(name, words)
    return Command(
        program=program or ("sleep" if sleeps_s else setup),
        pipes=pipes,
        chain=max(1, count),
        background=background,
        timeout_s=timeout_s,
        sleeps_s=sleeps_s,
    )


def _without_heredocs(text: str) -> str:
    """The text without what is fed to its commands: that is data, however much it looks like commands."""
    if "<<" not in text:
        return text
    kept: list[str] = []
    until = ""
    for line in text.split("\n"):
        if until:
            until = "" if line.strip() == until else until
            continue
        opening = _HEREDOC.search(line)
        if opening is not None:
            until = opening[2]
            line = line[: opening.start()] + line[opening.end() :]
        kept.append(line)
    return "\n".join(kept)


def _command_line(name: str, words: list[str]) -> str:
    """The command line in `bash -lc '...'`."""
    if name in _SHELLS and len(words) > 2 and words[1].startswith("-") and words[1].endswith("c"):
        return words[2]
    return ""


def _commands(text: str) -> Iterator[tuple[list[str], str]]:
    """Each simple command's words, and the operator after it."""
    words: list[str] = []
    skip_next = False
    for seen, match in enumerate(_TOKEN.finditer(text)):
        if seen >= 2 * _WORDS_MAX:
            break
        kind, token = match.lastgroup, match.group()
        if kind == "word":
            if skip_next:
                skip_next = False  # the file of a redirection
            else:
                words.append(token.strip("'\""))
        elif kind in ("op", "amp"):
            if words:
                yield words, token
            words, skip_next = [], False
        elif kind == "redirect":
            skip_next = not token[-1].isdigit()
    if words:
        yield words, ""


def _unwrap(words: list[str]) -> tuple[float | None, list[str]]:
    """The command behind `sudo`, `env`, `timeout` and the like, and the time limit if one was declared."""
    limit = None
    at = 0
    while at < len(words):
        word = _base(words[at])
        if word in _HEADS:
            return limit, []
        if word in _KEYWORDS:
            at += 1
            continue
        if _ASSIGNMENT.match(word) or word in _WRAPPERS:
            at += 1
        elif word == "timeout":
            at = _skip_options(words, at + 1)
            limit = _seconds(words[at]) if at < len(words) else None
            at += 1
            continue
        elif word in _LAUNCHERS:
            at += 1
        elif word in _RUNNERS and _RUNNERS[word] == (words[at + 1] if at + 1 < len(words) else ""):
            following = _skip_options(words, at + 2)
            if following >= len(words):
                break
            at = following
        else:
            break
        at = _skip_options(words, at)
    return limit, words[at:]


def _skip_options(words: list[str], at: int) -> int:
    while at < len(words) and words[at].startswith("-"):
        at += 1
    return at


def _name(name: str, words: list[str]) -> str:
    """The program with as much of its words as decides what it does."""
    if name in _INTERPRETERS:
        return _interpreted(name, words)
    if name in _OPERANDS or "." in name:  # a script's words are its own affair
        return name
    valued = _VALUED.get(name, frozenset())
    kept, at = [name], 1
    while at < len(words) and len(kept) < 3:
        word = words[at]
        if word.startswith("-"):
            at += 2 if word in valued else 1
            continue
        if len(word) > 32 or not _SUBCOMMAND.match(word):
            break
        kept.append(word)
        if word not in _TWO_WORDS:
            break
        at += 1
    return " ".join(kept)


def _interpreted(name: str, words: list[str]) -> str:
    """An interpreter is named by what it interprets: a module, a script, or text on the command line."""
    for at, word in enumerate(words[1:], 1):
        if word == "-m" and at + 1 < len(words):
            return _name(words[at + 1], words[at + 1 :])
        if word in ("-c", "-e", "-lc", "-p", "--eval", "-"):
            return f"{name} -c"
        if not word.startswith("-"):
            return _base(word)
    return name


def _base(word: str) -> str:
    """A program's name without its folder; scripts keep their ending, which says much about them."""
    return word.rsplit("/", 1)[-1][:48] or word[:48]


def _seconds(word: str) -> float | None:
    match = _DURATION.match(word)
    return float(match[1]) * _SECONDS[match[2]] if match else None
