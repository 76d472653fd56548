"""What `doctor` finds out, and that no probe can take the others down."""

from __future__ import annotations

import json

import pytest

from trtllm_dflash.hardware import backends, devices, doctor
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.hardware.devices import Gpu
from trtllm_dflash.hardware.doctor import diagnose_machine, unrunnable_reason
from trtllm_dflash.runtime.sessions.base import SESSIONS

RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", "sm120", 34_000_000_000)


def test_every_arch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cuda_gpus", list)
    found = diagnose_machine(SESSIONS)
    reports = {report.arch: report for report in found.archs}
    assert reports.keys() == ARCHS.keys()
    assert reports["cpu"].build is None
    assert reports["cpu"].run is None
    assert reports["sm90"].build
    assert reports["sm90"].build.startswith("it needs TensorRT, which is not installed here")
    assert reports["sm90"].run
    assert reports["sm90"].run.startswith("TensorRT is not installed: pip install")
    assert reports["sm120"].run == "it needs a GPU of sm120, and here is: no GPU"
    json.dumps(found.to_json())


def test_a_reason_that_holds_for_several_archs_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    reasons = dict(diagnose_machine(()).sections())["why not"]
    (rtx,) = [line for line in reasons if "needs TensorRT-RTX" in line]
    assert rtx.startswith(
        "build sm80, sm86, sm89, sm120, sm121: it needs TensorRT-RTX, which is not installed here"
    )


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        ([RTX_5090], None),
        ([], "it needs a GPU of sm120, and here is: no GPU"),
        (
            [Gpu("L4", "sm89", 24_000_000_000)],
            "it needs a GPU of sm120, and here is: L4 (sm89, 24.0 GB)",
        ),
        ("none: no driver", "it needs a GPU of sm120, and here is: none: no driver"),
    ],
)
def test_a_gpu_engine_needs_its_gpu(
    gpus: list[Gpu] | str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: object())
    assert unrunnable_reason(ARCHS["sm120"], gpus, {"tensorrt_rtx"}) == reason


@pytest.mark.parametrize(
    ("version", "owner", "reason"),
    [
        ((13, 0), "tensorrt-rtx-cu13", None),
        ((14, 1), "tensorrt-rtx-cu13", None),
        (None, "tensorrt-rtx-cu13", None),
        ((12, 4), "a_vendors_wheel", None),
        ((12, 4), "tensorrt_rtx_cu12", None),
        (
            (12, 4),
            "tensorrt-rtx-cu13",
            "the driver is for CUDA 12.4, and tensorrt-rtx-cu13 needs a driver for CUDA 13.0 or"
            " newer, R580: install a newer driver",
        ),
    ],
)
def test_a_driver_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int] | None,
    owner: str,
    reason: str | None,
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: object())
    monkeypatch.setattr(doctor, "driver_cuda_version", lambda: version)
    monkeypatch.setattr(doctor, "owner_of", lambda _: owner)
    assert unrunnable_reason(ARCHS["sm120"], [RTX_5090], {"tensorrt_rtx"}) == reason
    assert unrunnable_reason(ARCHS["cpu"], [RTX_5090], {"onnxruntime"}) is None


def test_the_drivers_version_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "driver_cuda_version", lambda: (12, 4))
    machine = dict(diagnose_machine(SESSIONS).sections())["machine"]
    assert any(line.split() == ["driver", "for", "CUDA", "12.4"] for line in machine)


def test_the_first_gpu_of_an_arch_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu("L4", "sm89", 24_000_000_000), RTX_5090, RTX_5090]
    monkeypatch.setattr(devices, "cuda_gpus", lambda: gpus)
    assert [devices.first_gpu_index(arch) for arch in ("sm89", "sm120", "sm80")] == [0, 1, 0]
    monkeypatch.setattr(devices, "cuda_gpus", lambda: "none: no driver")
    assert devices.first_gpu_index("sm120") == 0


def test_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    reason = unrunnable_reason(ARCHS["cpu"], [], {"onnxruntime"})
    assert reason == "ONNX Runtime is not installed: pip install onnxruntime"


def test_a_probe_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> str:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "cuda_gpus", explode)
    monkeypatch.setattr(doctor.os, "sysconf", lambda _: explode())
    monkeypatch.setattr(doctor.platform, "platform", explode)
    found = diagnose_machine({"onnxruntime", "tensorrt_rtx"})
    assert found.gpus == "unknown (RuntimeError: no such thing)"
    assert found.memory == "unknown (RuntimeError: no such thing)"
    assert found.system == "unknown (RuntimeError: no such thing)"
    assert {report.arch: report.run for report in found.archs}["cpu"] is None
