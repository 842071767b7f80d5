"""The chart's manifests are what the Kubernetes API takes, and hold the settings that were given.

Helm itself cannot be had where these tests run, so the few template constructs that the chart keeps to are rendered
here: values, `quote`, `toYaml`, `nindent`, `if` and `range`. A construct beyond those fails loudly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agentserve.config import load

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
            for item in _value(text[6:], root, here):
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


def test_the_settings_in_the_chart_are_settings_that_the_gateway_reads(
    manifests: Any, tmp_path: Path
) -> None:
    engines = [{"url": "http://a:8000"}, {"url": "http://b:8000", "kind": "sglang"}]
    file = tmp_path / "agentserve.toml"
    file.write_text(manifests(engines=engines)["ConfigMap"]["data"]["agentserve.toml"])
    settings = load(file=file, environ={})
    assert [e.url for e in settings.engines] == ["http://a:8000", "http://b:8000"]
    assert settings.engines[1].kind == "sglang"


def test_a_pod_waits_for_running_replies_longer_than_the_gateway_does(manifests: Any, tmp_path: Path) -> None:
    made = manifests()
    file = tmp_path / "agentserve.toml"
    file.write_text(made["ConfigMap"]["data"]["agentserve.toml"])
    pod = made["Deployment"]["spec"]["template"]["spec"]
    drain_s = load(file=file, environ={}).gateway.drain_timeout_s
    assert pod["terminationGracePeriodSeconds"] > drain_s


def test_addresses_of_the_namespaces_services_do_not_become_our_variables(manifests: Any) -> None:
    assert manifests()["Deployment"]["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_container_without_a_secret_asks_for_none(manifests: Any) -> None:
    with_secret = manifests(secretName="keys")["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    without = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert with_secret["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert "envFrom" not in without
