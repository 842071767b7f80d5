"""The chart's manifests are what the Kubernetes API takes, and hold the settings that were given.

Helm itself cannot be had where these tests run, so the few template constructs that the chart keeps to are rendered
here: values, `add`, `quote`, `toJson`, `toYaml`, `sha256sum`, `nindent`, `if` and `range`. A construct beyond those
fails loudly.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agentserve.cli import up
from agentserve.config import Settings
from agentserve.live.workers.server import STOP_S
from agentserve.store.journal import STOP_TIMEOUT_S

KUBERNETES = "1.30"
_ACTION = re.compile(r"(\s*)\{\{(-?)\s*(.*?)\s*\}\}")


def render(template: str, values: dict[str, Any]) -> str:
    tokens: list[tuple[str, str]] = []
    at = 0
    for found in _ACTION.finditer(template):
        text = template[at : found.start()] + ("" if found[2] else found[1])
        tokens += [("text", text), ("action", found[3])]
        at = found.end()
    tokens.append(("text", template[at:]))
    return _block(iter(tokens), {"Values": values, "Release": {"Name": "mine"}}, {})


def _block(tokens: Iterator[tuple[str, str]], root: dict[str, Any], here: Any) -> str:
    out = ""
    for kind, text in tokens:
        if kind == "text":
            out += text
        elif text == "end":
            return out
        elif text.startswith("if "):
            inner = _block_tokens(tokens)
            if _value(text[3:], root, here):
                out += _block(iter(inner), root, here)
        elif text.startswith("range "):
            inner = _block_tokens(tokens)
            named, assigned, over = text[6:].rpartition(":=")
            found = _value(over.strip(), root, here)
            if assigned:  # $key, $value: a map in the order of its keys
                key, value = (name.strip() for name in named.split(","))
                for k in sorted(found):
                    out += _block(iter(inner), {**root, key: k, value: found[k]}, here)
            else:
                for item in found:
                    out += _block(iter(inner), root, item)
        else:
            out += str(_value(text, root, here))
    return out


def _block_tokens(tokens: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """Everything up to the `end` that belongs to an opened block."""
    inner: list[tuple[str, str]] = []
    depth = 1
    for token in tokens:
        if token[0] == "action":
            depth += token[1].startswith(("if ", "range ")) - (token[1] == "end")
            if not depth:
                return inner
        inner.append(token)
    raise ValueError("a block has no end")


def _value(expression: str, root: dict[str, Any], here: Any) -> Any:
    first, *filters = [part.strip() for part in expression.split("|")]
    if first.startswith("toYaml "):
        value: Any = yaml.safe_dump(_value(first[7:], root, here), default_flow_style=False).rstrip()
    elif first.startswith("toJson "):
        value = json.dumps(_value(first[7:], root, here), sort_keys=True, separators=(",", ":"))
    elif first.startswith("add "):
        value = sum(int(part) if part.isdigit() else _value(part, root, here) for part in first[4:].split())
    elif first.startswith("$"):
        value = root[first]
    elif first == ".":
        value = here
    elif first.startswith("."):
        path = first[1:].split(".")
        value = root if path[0] in root else here
        for name in path:
            value = value.get(name)
    else:
        raise ValueError(f"this test cannot render `{expression}`")
    for name in filters:
        if name == "quote":
            value = f'"{value}"'
        elif name == "sha256sum":
            value = hashlib.sha256(value.encode()).hexdigest()
        elif name.startswith("nindent "):
            pad = " " * int(name[8:])
            value = "\n" + "\n".join(pad + line if line else line for line in str(value).splitlines())
        else:
            raise ValueError(f"this test cannot render the filter `{name}`")
    return value


@pytest.fixture
def manifests(deploy: Path) -> Any:
    def made(**changed: Any) -> dict[str, dict[str, Any]]:
        chart = deploy / "helm" / "agentserve"
        values = {**yaml.safe_load((chart / "values.yaml").read_text()), **changed}
        texts = [render(p.read_text(), values) for p in sorted((chart / "templates").glob("*.yaml"))]
        loaded = [yaml.safe_load(text) for text in texts]
        return {manifest["kind"]: manifest for manifest in loaded}

    return made


def test_every_manifest_is_what_the_kubernetes_api_takes(manifests: Any) -> None:
    made = manifests(secretName="engine-keys")
    assert set(made) == {"ConfigMap", "Deployment", "PersistentVolumeClaim", "Service"}
    for manifest in made.values():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def settings_of(made: dict[str, dict[str, Any]], tmp_path: Path) -> Settings:
    """What the gateway reads in the pod."""
    file = tmp_path / "agentserve.toml"
    file.write_text(made["ConfigMap"]["data"]["agentserve.toml"])
    command = argparse.ArgumentParser()
    up.add_arguments(command)
    args = made["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[0] == "up"
    given = command.parse_args([*args[1:], f"--config={file}"])
    return up.settings_of(given)


def test_the_settings_in_the_chart_are_settings_that_the_gateway_reads(
    manifests: Any, tmp_path: Path
) -> None:
    engines = [{"url": "http://a:8000"}, {"url": "http://b:8000", "kind": "sglang"}]
    settings = settings_of(manifests(engines=engines), tmp_path)
    assert [e.url for e in settings.engines] == ["http://a:8000", "http://b:8000"]
    assert settings.engines[1].kind == "sglang"


def test_an_engine_has_whatever_its_values_say(
    manifests: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", "k")
    said = {"url": "http://a:8000", "kv_tokens": 396_000, "models": ["m", "n"], "api_key_env": "ENGINE_KEY"}
    (engine,) = settings_of(manifests(engines=[said]), tmp_path).engines
    assert (engine.kv_tokens, engine.models, engine.api_key) == (396_000, ("m", "n"), "k")


@pytest.mark.parametrize(
    "changed", [{"engines": [{"url": "http://other:8000"}]}, {"settings": "[gateway]\nlog_level = 'debug'\n"}]
)
def test_other_settings_make_another_pod(manifests: Any, changed: dict[str, Any]) -> None:
    """Nothing tells a running one that the file it has read is another now."""
    before, after = (m["Deployment"]["spec"]["template"] for m in (manifests(), manifests(**changed)))
    assert before != after
    assert before == manifests()["Deployment"]["spec"]["template"]


@pytest.mark.parametrize("drain_s", [30, 300])
def test_a_pod_waits_for_running_replies_longer_than_the_gateway_does(
    manifests: Any, tmp_path: Path, drain_s: int
) -> None:
    made = manifests(drainSeconds=drain_s)
    settings = settings_of(made, tmp_path)
    assert settings.gateway.drain_timeout_s == drain_s
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > drain_s + STOP_TIMEOUT_S + STOP_S


def test_the_pod_listens_where_its_probes_ask(manifests: Any, tmp_path: Path) -> None:
    made = manifests(settings="[gateway]\nport = 9000\n")
    container = made["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert settings_of(made, tmp_path).gateway.port == container["ports"][0]["containerPort"]


def test_nobody_kills_a_gateway_while_it_upgrades_its_database(manifests: Any) -> None:
    probe = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["httpGet"]["path"] == "/healthz"
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800


def test_addresses_of_the_namespaces_services_do_not_become_our_variables(manifests: Any) -> None:
    assert manifests()["Deployment"]["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_container_without_a_secret_asks_for_none(manifests: Any) -> None:
    with_secret = manifests(secretName="keys")["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    without = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert with_secret["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert "envFrom" not in without
