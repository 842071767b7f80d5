"""Reads a shell command as far as its running time depends on it: which program, which subcommand, how many.

One rule: it reads, it never runs, and it gives up rather than guess wrong. Any shell command of any agent may
come in, heredocs and quotes included; the work is bounded by `READ_CHARS_MAX`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

READ_CHARS_MAX = 4096
_WORDS_MAX = 256

_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1(.*?)\n.*?^\s*\2\s*$", re.DOTALL | re.MULTILINE)
_TOKEN = re.compile(
    r"(?P<space>[^\S\n]+|\\\n)|(?P<comment>(?<!\S)#[^\n]*)|(?P<op>&&|\|\||;;|\|&|[|;\n])|(?P<redirect>\d?(?:>>|>&|>|<<<|<)&?\d?|&>)"
    r"|(?P<amp>&)|(?P<word>(?:[^\s|;&<>'\"\\]|\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\")+)|(?P<odd>.)",
    re.DOTALL,
)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_SUBCOMMAND = re.compile(r"[a-z][a-z0-9]*(?:[-:_][a-z0-9]+)*\Z")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)\Z")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

# Words that run before the command that counts, and take no time of their own.
_SETUP = frozenset(["cd", "export", "set", "source", ".", "pushd", "popd", "true", "false", ":", "unset", "alias", "echo", "printf", "{", "}", "(", ")", "then", "do", "done", "fi", "if", "else", "while", "!", "local", "wait"])  # fmt: skip
# Programs that run another program: the other one is what takes the time.
_WRAPPERS = frozenset(["sudo", "env", "time", "nohup", "nice", "command", "exec", "stdbuf", "builtin", "doas", "setsid", "xvfb-run", "ionice", "caffeinate"])  # fmt: skip
_RUNNERS = {"uv": "run", "poetry": "run", "pipenv": "run", "hatch": "run", "pdm": "run", "rye": "run", "bundle": "exec", "pnpm": "exec", "yarn": "exec", "npm": "exec", "conda": "run", "dotenv": "run"}  # fmt: skip
_LAUNCHERS = frozenset(["npx", "bunx", "uvx", "pipx"])
_INTERPRETERS = frozenset(["python", "python3", "node", "deno", "ruby", "perl", "php", "bash", "sh", "zsh", "pwsh", "powershell", "Rscript", "julia", "lua", "tsx", "ts-node"])  # fmt: skip
# Programs whose words are operands: files, patterns, hosts.
_OPERANDS = frozenset(["ls", "cat", "grep", "rg", "egrep", "find", "fd", "sed", "awk", "head", "tail", "rm", "cp", "mv", "mkdir", "touch", "wc", "sort", "uniq", "diff", "tree", "stat", "du", "df", "ps", "kill", "pkill", "which", "file", "chmod", "chown", "ln", "less", "more", "cut", "tr", "tee", "xargs", "curl", "wget", "ssh", "scp", "rsync", "tar", "zip", "unzip", "gcc", "g++", "clang", "jq", "for", "test", "[", "sqlite3", "psql", "mysql", "vi", "vim", "nano", "ping", "basename", "dirname", "realpath", "readlink", "date", "whoami", "env", "pytest", "mypy", "ruff", "eslint", "prettier", "tsc", "javac", "java", "openssl", "md5sum", "sha256sum", "base64", "xxd", "strings", "nl", "seq", "man", "type", "gofmt", "black", "flake8", "pylint", "dd", "patch", "ack", "ag", "column"])  # fmt: skip
# Subcommands that only say "run the following": the next word names what runs.
_TWO_WORDS = frozenset(["run", "compose", "exec", "run-script", "x", "buildx", "tool"])
# Options that take a value, for programs that put them before the subcommand.
_VALUED = {"git": {"-C", "-c", "--git-dir", "--work-tree"}, "kubectl": {"-n", "--namespace", "--context"}, "docker": {"-H", "--context"}, "make": {"-C", "-f", "-j"}, "cargo": {"--manifest-path"}, "npm": {"--prefix"}, "pnpm": {"-C", "--dir", "--filter"}, "go": {"-C"}, "gh": {"-R", "--repo"}}  # fmt: skip


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
    cut = _HEREDOC.sub(r"\3", text[:READ_CHARS_MAX])
    program, pipes, background, timeout_s, sleeps_s, count = "", False, False, None, 0.0, 0
    setup = ""
    for words, operator in _commands(cut):
        pipes |= operator in ("|", "|&")
        background = operator == "&"
        limit, words = _unwrap(words)
        timeout_s = timeout_s or limit
        if not words:
            continue
        count += operator not in ("|", "|&")
        name = _base(words[0])
        if name == "sleep":
            sleeps_s += sum(s for s in map(_seconds, words[1:]) if s)
        elif name in _SETUP:
            setup = setup or name
        elif not program:
            program = _name(name, words)
    program = program or ("sleep" if sleeps_s else setup)
    return Command(
        program=program,
        pipes=pipes,
        chain=max(1, count),
        background=background,
        timeout_s=timeout_s,
        sleeps_s=sleeps_s,
    )


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
    if name in _OPERANDS:
        return name
    valued: frozenset[str] | set[str] = _VALUED.get(name, set())
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
