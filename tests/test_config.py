"""Settings: precedence, origins, and errors that name the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentserve import config
from agentserve.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agentserve.toml"
    path.write_text(text)
    return path


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = write(tmp_path, "[gateway]\nport = 1\nhost = 'a'\nlog_level = 'debug'\n")
    settings = config.load(
        file=path,
        environ={"AGENTSERVE_GATEWAY_PORT": "2", "AGENTSERVE_GATEWAY_HOST": "b"},
        flags=[("gateway.port", 3, "--port")],
    )
    assert (settings.gateway.port, settings.gateway.host) == (3, "b")
    assert settings.gateway.log_level == "debug"
    assert settings.origins["gateway.port"] == "--port"
    assert settings.origins["gateway.host"] == "AGENTSERVE_GATEWAY_HOST"
    assert settings.origins["gateway.log_level"] == str(path)
    assert "gateway.drain_timeout_s" not in settings.origins


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gateway]\nprot = 1\n", "did you mean `port`"),
        ("[gatway]\nport = 1\n", "did you mean `gateway`"),
        ("[gateway]\nport = 'x'\n", "a whole number"),
        ("[gateway]\nport = true\n", "a whole number"),
        ("[gateway]\nlog_level = 'loud'\n", "debug, info, warning, error"),
        ("[[engines]]\nkind = 'vllm'\n", "lacks `url`"),
        ("[[engines]]\nurl='a'\nid='x'\n[[engines]]\nurl='b'\nid='x'\n", "two engines are called 'x'"),
        ("gateway = 3\n", r"write \[gateway\]"),
        ("engines = ['http://gpu1:8000']\n", r"write \[\[engines\]\]"),
        ("[gateway]\nport = 70000\n", "from 0 to 65535"),
        ("[limits]\nqueue_timeout_s = nan\n", "of 0 or more"),
        ("[[engines]]\nurl='a'\nkv_tokens = -5\n", "of 1 or more"),
        ("[[tenants]]\nid='a'\nweight = 0\n", "from 0.001 to 1000000"),
        ("[[tenants]]\nid='a'\nprograms_max = -1\n", "of 1 or more"),
        ("[[tenants]]\nid='a'\n[[tenants]]\nid='a'\n", "two .* are called 'a'"),
        ("[[tenants]]\nid=''\n", "an empty id"),
        ("[gateway\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_remedy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.load(file=write(tmp_path, text), environ={})


def test_a_misspelt_variable_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    with pytest.raises(ConfigError, match="did you mean `port`"):
        config.load(file=path, environ={"AGENTSERVE_GATEWAY_PRT": "1"})
    with pytest.raises(ConfigError, match="names no section"):
        config.load(file=path, environ={"AGENTSERVE_GATWAY_PORT": "1"})


def test_variables_of_the_sdk_are_not_settings(tmp_path: Path) -> None:
    config.load(file=write(tmp_path, ""), environ={"AGENTSERVE_URL": "http://x", "AGENTSERVE_DISABLED": "1"})


def test_what_kubernetes_says_of_a_service_of_our_name_is_no_setting(tmp_path: Path) -> None:
    said = {
        "AGENTSERVE_SERVICE_HOST": "10.0.0.7",
        "AGENTSERVE_SERVICE_PORT": "8400",
        "AGENTSERVE_SERVICE_PORT_HTTP": "8400",
        "AGENTSERVE_PORT": "tcp://10.0.0.7:8400",
        "AGENTSERVE_PORT_8400_TCP": "tcp://10.0.0.7:8400",
        "AGENTSERVE_PORT_8400_TCP_PROTO": "tcp",
        "AGENTSERVE_PORT_8400_TCP_PORT": "8400",
        "AGENTSERVE_PORT_8400_TCP_ADDR": "10.0.0.7",
        "AGENTSERVE_GATEWAY_SERVICE_HOST": "10.0.0.8",
        "AGENTSERVE_GATEWAY_PORT": "tcp://10.0.0.8:8400",
    }
    settings = config.load(file=write(tmp_path, ""), environ={**said, "AGENTSERVE_GATEWAY_HOST": "::"})
    assert (settings.gateway.host, settings.gateway.port) == ("::", 8400)


def test_an_engines_key_is_taken_from_the_variable_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "[[engines]]\nurl = 'http://e'\napi_key_env = 'ENGINE_KEY'\n")
    assert config.load(file=path, environ={"ENGINE_KEY": "sk-1"}).engines[0].api_key == "sk-1"
    assert config.load(file=path, environ={"ENGINE_KEY": "sk-1\n"}).engines[0].api_key == "sk-1"
    assert config.load(file=path, environ={}).engines[0].api_key is None  # for verbs that call no engine


def test_secrets_are_masked_and_everything_has_an_origin(tmp_path: Path) -> None:
    text = "[store]\nurl = 'postgresql+asyncpg://me:hunter2@db/agents'\n"
    text += "[[engines]]\nurl = 'http://e'\napi_key = 'sk-1'\n"
    shown = config.render(config.load(file=write(tmp_path, text), environ={}))
    assert "hunter2" not in shown
    assert "sk-1" not in shown
    assert "postgresql+asyncpg://me:***@db/agents" in shown
    assert all("  # " in line for line in shown.splitlines())


def test_engines_without_a_name_are_numbered(tmp_path: Path) -> None:
    settings = config.load(file=write(tmp_path, ""), environ={}, engine_urls=["http://a", "http://b"])
    assert [e.id for e in settings.engines] == ["e1", "e2"]


def test_tables_and_lists_can_come_from_the_environment(tmp_path: Path) -> None:
    settings = config.load(
        file=write(tmp_path, ""), environ={"AGENTSERVE_SCHEDULER_PARAMS": "{admit = 0.8, touch_s = 1}"}
    )
    assert settings.scheduler.params == {"admit": 0.8, "touch_s": 1}
