import json

import pytest

from agentserve.core.forecast import classify
from agentserve.core.forecast.calls import ARGUMENT_CLASS_CHARS_MAX
from agentserve.core.forecast.shell import read


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("git status", "git status"),
        ("cd /srv/app && git -C lib log --oneline | head -5", "git log"),
        ("FOO=1 BAR=2 go test ./...", "go test"),
        ("sudo apt-get install -y jq", "apt-get install"),
        ("npm run test -- --watch=false", "npm run test"),
        ("docker compose up -d", "docker compose up"),
        ("python -m pytest -x tests", "pytest"),
        ("uv run pytest -q", "pytest"),
        ("npx tsc --noEmit", "tsc"),
        ("python3 scripts/build.py --all", "build.py"),
        ("python -c 'print(1)'", "python -c"),
        ("ls -la src", "ls"),
        ("/usr/local/bin/rg needle", "rg"),
        ("kubectl -n prod get pods", "kubectl get"),
        ("timeout 30s cargo build", "cargo build"),
        ("echo start; make test", "make test"),
        ("cat <<'EOF' > notes.md\ngit push && rm -rf x | y\nEOF", "cat"),
        ('git commit -m "a && b | c"', "git commit"),
        ("for f in *.py; do ruff check $f; done", "ruff"),
        ("bash -lc 'go vet ./...'", "go vet"),
        ("./run.sh now", "run.sh"),
        ("", ""),
    ],
)
def test_a_shell_command_is_known_by_its_program_and_subcommand(command: str, program: str) -> None:
    assert read(command).program == program


def test_pipes_chains_timeouts_and_sleeps_are_read() -> None:
    command = read("timeout 90 make all | tail -3 && sleep 20; sleep 1m")
    assert command.pipes
    assert command.chain == 3
    assert command.timeout_s == 90.0
    assert command.sleeps_s == 80.0
    assert not command.background
    assert read("serve --port 1 &").background


def test_quoted_operators_are_text() -> None:
    command = read("grep 'a | b && c' file.txt")
    assert (command.pipes, command.chain) == (False, 1)


@pytest.mark.parametrize("tool", ["Bash", "shell", "execute_command", "run_terminal_cmd", "zog"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"command": "git diff"},
        {"cmd": "git diff"},
        {"command": ["bash", "-lc", "git diff"]},
        {"command": ["git", "diff"]},
    ],
)
def test_shells_of_any_agent_are_recognised_by_their_arguments(
    tool: str, arguments: dict[str, object]
) -> None:
    assert classify(tool, arguments).argument_class == "git diff"
    assert classify(tool, json.dumps(arguments)).argument_class == "git diff"


def test_other_tools_are_known_by_file_ending_host_mode_or_agent() -> None:
    assert classify("Read", {"file_path": "/src/main.GO"}).argument_class == ".go"
    assert classify("view_file", {"path": "a/b"}).argument_class == ""
    assert classify("fetch", {"url": "https://docs.python.org/3/x"}).argument_class == "python.org"
    assert classify("fetch", {"url": "http://www.bbc.co.uk/"}).argument_class == "bbc.co.uk"
    assert classify("fetch", {"url": "http://192.168.1.5:80/"}).argument_class == "private"
    assert classify("Grep", {"pattern": "x", "output_mode": "content"}).argument_class == "content"
    explore = classify("Task", {"subagent_type": "Explore", "prompt": "find it"})
    assert (explore.kind, explore.argument_class) == ("subagent", "Explore")
    assert classify("AskUserQuestion", {"question": "Which?"}).kind == "human"


def test_the_same_call_has_the_same_hash_however_it_was_written() -> None:
    first = classify("Bash", '{"command": "ls", "description": "List", "timeout": 5000}')
    again = classify("Bash", {"timeout": 9000, "description": "Look around", "command": "ls"})
    assert first.exact_hash == again.exact_hash
    assert classify("Bash", {"command": "ls -a"}).exact_hash != first.exact_hash


def test_declared_timeouts_are_in_seconds_whatever_their_unit_was() -> None:
    assert classify("Bash", {"command": "x", "timeout": 120_000}).timeout_s == 120.0
    assert classify("shell", {"command": "x", "timeout_ms": 500}).timeout_s == 0.5
    assert classify("shell", {"command": "x", "timeout": 30}).timeout_s == 30.0
    assert classify("Bash", {"command": "x", "timeout": True}).timeout_s is None
    assert classify("Bash", {"command": "x", "run_in_background": True}).background


def test_a_sleep_is_known_by_its_length() -> None:
    assert classify("Bash", {"command": "sleep 30 && curl localhost"}).argument_class == "sleep 32"
    assert classify("Bash", {"command": "sleep 300"}).argument_class == "sleep 256"


@pytest.mark.parametrize("arguments", ["", "not json", "[1, 2]", "{", '{"command": 7}', "null", '"text"'])
def test_arguments_of_any_form_are_described(arguments: str) -> None:
    call = classify("Odd", arguments)
    assert call.name == "Odd"
    assert call.exact_hash is not None


def test_the_description_is_short_and_holds_no_secret() -> None:
    long = classify("Bash", {"command": "x" * 100_000})
    assert len(long.argument_class) <= ARGUMENT_CLASS_CHARS_MAX
    secret = classify("Bash", {"command": "curl -H 'authorization: hunter2' https://example.org/hunter2"})
    assert "hunter2" not in repr(secret)
    text = classify("shell", "deploy hunter2hunter2hunter2hunter2hunter2x")
    assert "hunter2" not in repr(text)


def test_a_hostile_command_is_read_in_bounded_time() -> None:
    # nested quotes and heredocs are where such readers hang
    for command in ("'" * 5000, '"\\' * 3000, "<<A\n" * 2000, "a|" * 5000, "$(" * 4000, "((((" * 1000):
        assert read(command).chain >= 1
