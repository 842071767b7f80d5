"""Prometheus' own tool takes the configuration, and each alert fires on what it is for and on nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentserve.telemetry import Recorder
from agentserve.telemetry.metrics import TABLE
from tests.dashboards.queries import PROMETHEUS, ROOT, rules

HERE = Path(__file__).parent
DASHBOARDS = ROOT / "dashboards"
TESTED = HERE / "rules_test.yml"
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


def promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@needs_promtool
def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    promtool("check", "rules", str(PROMETHEUS / "rules.yml"), str(PROMETHEUS / "alerts.yml"))


@needs_promtool
def test_alerts_fire_on_what_they_are_for_and_on_nothing_else() -> None:
    promtool("test", "rules", str(TESTED))


def test_every_alert_is_tested_explained_and_has_a_runbook() -> None:
    tested = TESTED.read_text(encoding="utf-8")
    for rule in rules():
        if "alert" not in rule:
            continue
        assert f'alertname="{rule["alert"]}"' in tested, f"no test makes {rule['alert']} fire"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert len(rule["annotations"]["runbook"]) > 40


def test_the_compose_file_mounts_what_there_is_and_its_parts_find_one_another() -> None:
    compose = loaded(DASHBOARDS / "compose.yml")
    services = compose["services"]
    assert set(services) == {"gateway", "prometheus", "tempo", "grafana"}
    for service in services.values():
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            assert target.startswith("/")
            assert source in compose["volumes"] or (DASHBOARDS / source).is_dir(), volume
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert (ROOT / services["gateway"]["build"]["dockerfile"]).is_file()
    scraped = loaded(PROMETHEUS / "prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert scraped == ["gateway:8400"]
    assert services["gateway"]["command"][-1] == "8400"
    sources = loaded(DASHBOARDS / "grafana/provisioning/datasources/agentserve.yml")["datasources"]
    by_uid = {source["uid"]: source for source in sources}
    assert by_uid["prometheus"]["url"] == "http://prometheus:9090"
    assert by_uid["tempo"]["url"] == "http://tempo:3200"
    (exemplars,) = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars == {"name": "trace_id", "datasourceUid": "tempo"}
    tempo = loaded(DASHBOARDS / "tempo/tempo.yml")
    assert tempo["server"]["http_listen_port"] == 3200
    assert tempo["distributor"]["receivers"]["otlp"]["protocols"]["http"]["endpoint"] == "0.0.0.0:4318"
    (provider,) = loaded(DASHBOARDS / "grafana/provisioning/dashboards/agentserve.yml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]


def test_the_settings_that_compose_gives_the_gateway_exist() -> None:
    from agentserve.config import load

    environment = loaded(DASHBOARDS / "compose.yml")["services"]["gateway"]["environment"]
    assert environment
    settings = load(environ=environment)
    assert settings.gateway.allow_open
    assert settings.telemetry.traces == "otlp"
    assert settings.telemetry.otlp_endpoint == "http://tempo:4318/v1/traces"


@needs_promtool
def test_promtool_finds_nothing_to_mend_in_the_names_of_our_metrics() -> None:
    recorder = Recorder()
    for metric in TABLE:
        child = recorder.meters.child(metric.name, *["x"] * len(metric.labels))
        if metric.kind == "histogram":
            child.observe(1.0)
    assert PROMTOOL is not None
    _, text = recorder.render("")
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
