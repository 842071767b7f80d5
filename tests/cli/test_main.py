"""The command line as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentserve.cli import VERBS, main


def agentserve(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it as a process of its own."""
    command = [sys.executable, "-m", "agentserve.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"agentserve {verb}" in capsys.readouterr().out


def test_help_names_every_verb() -> None:
    done = agentserve("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulat"], "invalid choice"),
        (["engine", "--gateway", "x"], "see `agentserve engine --help`"),
        (["engine", "--port", "99999"], "a port is at most 65535"),
        (["engine", "--host", "no-such-host.invalid"], "cannot listen on no-such-host.invalid:8000"),
        (["profile", "llama-3.1-8b-h100", "--measure", "http://[::1"], "write it as http://host:port"),
        (["simulate", "--workload", "codng"], "did you mean `coding`?"),
        (["simulate", "--policy", "afinity"], "did you mean `affinity`?"),
        (["simulate", "--policy", "agentserve:beta"], "write name:key=value"),
        (["simulate", "--policy", "agentserve:bta=1"], "did you mean `beta`?"),
        (["simulate", "--engines", "0"], "it is at least 1"),
        (["simulate", "--faults", "-1"], "it is at least 0"),
        (["simulate", "--seed", "-1"], "it is at least 0"),
        (["simulate", "--seed", "1", "--seed", "2", "--seed", "1"], "--seed 1 stands twice"),
        (["simulate", "--kv-tokens", "0"], "it is at least 1"),
        (["simulate", "--slo-ttft", "-1"], "it is a number above zero"),
        (["simulate", "--slo-slowdown", "nan"], "it is a number above zero"),
        (["simulate", "--host-gb-per-s", "0"], "it is a number above zero"),
        (["simulate", "--plan", "slowdown_mean<2", "--at-once", "4", "--burst", "-1"], "above zero"),
        (["simulate", "--test-seed", "4"], "--test-seed belongs to --tune"),
        (["simulate", "--plan", "slowdown_mean<2", "--at-once", "4", "--tune", "9"], "exclude each other"),
        (["simulate", "--knob", "beta=1..2"], "--knob belongs to --tune"),
        (["simulate", "--rate", "1", "--pressure", "2"], "exclude each other"),
        (["export", "x.csv"], "there is no export as csv"),
        (["replay", "/nowhere.jsonl"], "cannot read"),
        (["up", "--set", "port=1"], "write --set gateway.port=8401"),
        (["up", "--port", "many", "--print-config"], "a whole number"),
        (["up", "--engine", "gpu1:8000"], "write it as http://host:port"),
        (["up", "--engine", "http://gpu1:80000"], "not an engine's address"),
        (["up", "--engine", "http://[::1:8000"], "not an engine's address"),
        (["up", "--config", "secret.toml"], "cannot be read"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_status_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "secret.toml").symlink_to("/proc/self/mem")  # which even root cannot read from its start
    done = agentserve(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_misspelt_key_in_the_file_names_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "agentserve.toml").write_text("[gateway]\nprot = 8500\n")
    done = agentserve("up", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean `port`?" in done.stderr


def test_print_config_says_where_each_setting_is_from(tmp_path: Path) -> None:
    (tmp_path / "agentserve.toml").write_text("[gateway]\nport = 8500\n")
    done = agentserve("up", "--print-config", "--host", "127.0.0.2", cwd=tmp_path)
    assert done.returncode == 0
    assert "gateway.port = 8500  # agentserve.toml" in done.stdout
    assert "gateway.host = '127.0.0.2'  # --host" in done.stdout


def test_a_simulation_repeats_to_the_byte_whatever_the_hash_seed() -> None:
    command = [
        sys.executable,
        "-m",
        "agentserve.cli",
        "simulate",
        "--workload",
        "coding",
        "--policy",
        "affinity",
    ]
    command += [
        "--policy",
        "agentserve",
        "--engines",
        "2",
        "--programs",
        "12",
        "--kv-tokens",
        "60000",
        "--json",
        "-",
    ]
    outputs = [
        subprocess.run(
            command, capture_output=True, env={"PYTHONHASHSEED": seed}, timeout=120, check=True
        ).stdout
        for seed in ("0", "1")
    ]
    assert outputs[0] == outputs[1]
    runs = json.loads(outputs[0])["runs"]
    assert [r["trial"]["policy"] for r in runs] == ["affinity", "agentserve"]
    assert all(r["figures"]["programs"] == 12 for r in runs)


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    arguments = ["simulate", "--programs", "6", "--engines", "1", "--kv-tokens", "60000", "--html", str(page)]
    done = agentserve(*arguments, "--policy", "fifo", "--policy", "agentserve")
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.count("<svg") >= 5
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text


def test_a_closed_reader_is_no_error() -> None:
    command = f"{sys.executable} -m agentserve.cli simulate --programs 3 --engines 1 --json - | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
