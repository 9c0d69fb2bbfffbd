"""Compose, and the Prometheus and Grafana that it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY, ROOT
from tests.deploy.test_commands import parsed
from tests.served import ServedService

FILE = DEPLOY / "compose.yaml"


def check_schema(file: Path) -> subprocess.CompletedProcess[str]:
    """The schema of the Compose Specification, as check-jsonschema brings it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return load("compose.yaml")["services"]


def test_compose_is_what_its_specification_says() -> None:
    done = check_schema(FILE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_with_gpus_is_what_its_specification_says() -> None:
    done = check_schema(DEPLOY / "compose.gpu.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (sampler,) = load("compose.gpu.yaml")["services"].values()
    assert sampler["environment"] == {"NVIDIA_VISIBLE_DEVICES": "all"}, "the image does not say it"


@pytest.fixture
def health_check(services) -> list[str]:
    """The command, for a service that a test adds the address of."""
    marker, program, *rest = services["sampler"]["healthcheck"]["test"]
    assert (marker, program) == ("CMD", "python")
    return [sys.executable, *rest]


def checked(command: list[str], address: str) -> int:
    assert "127.0.0.1:50051" in command[-1]
    ask = [*command[:-1], command[-1].replace("127.0.0.1:50051", address)]
    return subprocess.run(ask, capture_output=True, check=False, timeout=30).returncode


def test_a_service_is_healthy_though_one_of_its_runs_is_away(health_check, monkeypatch) -> None:
    served = ServedService()
    monkeypatch.setattr(served.service, "runs", lambda: ["away"])
    assert checked(health_check, served.address) == 0
    served.stop()
    assert checked(health_check, served.address) != 0


def test_a_mistake_in_compose_would_be_found(tmp_path: Path) -> None:
    bad = tmp_path / "compose.yaml"
    bad.write_text(FILE.read_text(encoding="utf-8").replace("mem_limit:", "memory_limit:"), encoding="utf-8")
    assert "memory_limit" in check_schema(bad).stdout


def test_what_is_built_or_mounted_is_there(services) -> None:
    for service in services.values():
        if "build" in service:
            assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        for source, *_ in (volume.split(":") for volume in service.get("volumes", ())):
            assert (DEPLOY / source).is_dir() if source.startswith(".") else source in load("compose.yaml")["volumes"]


def test_data_sets_outlive_the_container(services) -> None:
    kept = [volume.partition(":") for volume in services["sampler"]["volumes"]]
    for file in ("compose.yaml", "compose.gpu.yaml"):
        data_dir = Path(parsed(load(file)["services"]["sampler"]["command"][1:])["data_dir"])
        assert [name for name, _, at in kept if data_dir.is_relative_to(at)] == ["data"]


def test_nothing_is_published_beyond_this_machine(services) -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_no_container_may_take_all_memory_or_gain_privileges(services) -> None:
    for service in services.values():
        assert service["mem_limit"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_images_of_others_have_a_version(services) -> None:
    for image in (service["image"] for service in services.values() if "build" not in service):
        assert image.rpartition(":")[2].lstrip("v").replace(".", "").isdigit()


def test_prometheus_scrapes_the_service_where_it_is(services) -> None:
    assert "./prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]
    config = load("prometheus/prometheus.yml")
    assert config["rule_files"] == ["alerts.yml"]
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in services
    assert any(published.endswith(f":{port}:{port}") for published in services[host]["ports"])


def test_grafana_finds_prometheus_and_the_dashboards(services) -> None:
    (source,) = load("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["url"].split("/")[2].split(":")[0] in services
    (provider,) = load("grafana/provisioning/dashboards/dashboards.yml")["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
