"""Dockerfile and Kubernetes files: what they name exists in the code and in each other."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from trtllm_dflash.errors import BusyError
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.options.triton_export import TritonExportConfig
from trtllm_dflash.runtime.intake import ROLES, Intake
from trtllm_dflash.runtime.metric_table import METRICS
from trtllm_dflash.triton_server.readme import DOCKERFILE, IMAGE
from trtllm_dflash.triton_server.settings import DRAIN_SECONDS

ROOT = Path(__file__).parents[2]
DOCKER_TEXT = (ROOT / DOCKERFILE).read_text()
NAME = TritonExportConfig.name


def manifest(name: str) -> Any:
    return yaml.safe_load((ROOT / "examples" / "kubernetes" / f"{name}.yaml").read_text())


@pytest.fixture
def pod() -> Any:
    return manifest("deployment")["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    (only,) = pod["containers"]
    return only


def test_dockerfile_installs_extras_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {backend.run_extra for backend in BACKENDS.values()} - {""}
    assert extras <= set(project["optional-dependencies"])
    assert all(extra in DOCKER_TEXT for extra in extras)
    assert f"-t {IMAGE} ." in DOCKER_TEXT
    wheel = project["name"].replace("-", "_")
    assert f"/wheels/{wheel}-*.whl" in DOCKER_TEXT


def test_server_command_drains_before_it_ends(pod: Any) -> None:
    command = re.search(r'^CMD \[(".*")\]$', DOCKER_TEXT, re.MULTILINE)
    assert command is not None
    words = [word.strip(' "') for word in command[1].split(",")]
    assert words[0] == "tritonserver"
    assert {"--model-repository=/models", "--model-control-mode=explicit"} < set(words)
    (seconds,) = [int(word.split("=")[1]) for word in words if "exit-timeout" in word]
    assert DRAIN_SECONDS < seconds < pod["terminationGracePeriodSeconds"]


def test_ports_have_one_number_everywhere(container: Any) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    exposed = re.search(r"^EXPOSE (.*)$", DOCKER_TEXT, re.MULTILINE)
    assert exposed is not None
    assert exposed[1].split() == [str(port) for port in ports.values()]
    for port in manifest("service")["spec"]["ports"]:
        assert port["targetPort"] == port["name"]
        assert port["port"] == ports[port["name"]]
    (endpoint,) = manifest("podmonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert endpoint["path"] == "/metrics"


def test_selectors_find_the_pods() -> None:
    deployment = manifest("deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service")["spec"]["selector"] == labels
    assert manifest("podmonitor")["spec"]["selector"]["matchLabels"] == labels


def test_probes_ask_the_model(container: Any) -> None:
    for probe in ("startupProbe", "readinessProbe"):
        request = container[probe]["httpGet"]
        assert request == {"path": f"/v2/models/{NAME}/ready", "port": "http"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 30 * 60
    assert container["image"] == IMAGE


def test_volumes_are_mounted(pod: Any, container: Any) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"models": "/models", "shm": "/dev/shm"}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}


def test_full_queue_passes_the_liveness_probe(container: Any) -> None:
    """A busy server must not be restarted: the probe knows the words of both queues."""
    (script,) = container["livenessProbe"]["exec"]["command"][2:]
    words = grep_words(script)
    intake, going_on = Intake(1), threading.Event()
    intake.put(ROLES[0], going_on.wait)
    with pytest.raises(BusyError) as error:
        fill(intake)
    going_on.set()
    intake.close()
    source = (ROOT / "trtllm_dflash" / "runtime" / "engine_thread.py").read_text()
    for text in (str(error.value), source):
        assert any(word in text for word in words)


def fill(intake: Intake) -> None:
    """Queue jobs until there is no room."""
    for _ in range(3):
        intake.put(ROLES[0], lambda: None)


def grep_words(script: str) -> list[str]:
    """Return the patterns of grep in the probe: each stands behind -e."""
    return shlex.split(script.split("grep -q ")[1])[1::2]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "code"), [("tiny", 0), ("nobody", 1)])
def test_liveness_probe_asks_for_a_token(
    model: str,
    code: int,
    container: Any,
    server: Any,
) -> None:
    shell, flag, script = container["livenessProbe"]["exec"]["command"]
    script = script.replace("localhost:8000", f"127.0.0.1:{server.http}")
    script = script.replace(f"/models/{NAME}/", f"/models/{model}/")
    assert subprocess.run([shell, flag, script]).returncode == code


def test_metrics_that_the_files_name_exist() -> None:
    names = {metric.name for metric in METRICS}
    for path in (ROOT / "examples" / "kubernetes").iterdir():
        assert set(re.findall(r"\bdflash_[a-z_]+", path.read_text())) <= names
