"""What this machine has, and which engines it can build and run.

Each probe runs on its own: one that fails becomes a line of the report.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

from trtllm_dflash.hardware.archs import ARCHS, Arch
from trtllm_dflash.hardware.backends import BACKENDS, Backend, unbuildable_reason
from trtllm_dflash.hardware.devices import (
    Gpu,
    cuda_gpus,
    driver_cuda_version,
    format_driver,
    format_gpus,
    has_gpu,
)
from trtllm_dflash.hardware.versions import owner_of, owners_of, versions_of
from trtllm_dflash.log import human_bytes, table

DRIVER_RELEASES = {12: 525, 13: 580}  # the first driver of each major version of CUDA
PACKAGES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "tensorrt_rtx",
    "tensorrt",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "transformers",
    "tokenizers",
    "huggingface_hub",
)


@dataclass(frozen=True)
class ArchReport:
    """Why engines for an arch cannot be built or run on this machine; None if they can."""

    arch: str
    hardware: str
    build: str | None
    run: str | None


@dataclass(frozen=True)
class MachineReport:
    """The report of `dflash-trt doctor`."""

    archs: list[ArchReport]
    gpus: list[Gpu] | str
    cpu: str
    memory: str
    system: str
    versions: dict[str, str]
    distributions: dict[str, str]  # who brought those of them that are modules
    driver: str

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain types."""
        return asdict(self)

    def sections(self) -> list[tuple[str, list[str]]]:
        """Return the report for people: titles and lines."""
        gpus = (
            self.gpus
            if isinstance(self.gpus, str)
            else ", ".join(map(str, self.gpus)) or "none"
        )
        missing = [package for package in PACKAGES if package not in self.versions]
        hardware = [
            ("cpu", self.cpu),
            ("memory", self.memory),
            ("gpu", gpus),
            ("driver", self.driver),
            ("system", self.system),
        ]
        packages = [
            *((name, self._origin(name, found)) for name, found in self.versions.items()),
            *((package, "not installed") for package in missing),
        ]
        return [
            ("engines", table(map(_arch_cells, self.archs), "").splitlines()),
            ("why not", [*_reasons("build", self.archs), *_reasons("run", self.archs)]),
            ("machine", table(hardware, "").splitlines()),
            ("packages", table(packages, "").splitlines()),
        ]

    def _origin(self, name: str, version: str) -> str:
        owner = self.distributions.get(name, name)
        same = owner.replace("_", "-") == name.replace("_", "-")
        return version if same else f"{version} (of {owner})"


def _arch_cells(report: ArchReport) -> tuple[str, ...]:
    build, run = ("no" if reason else "yes" for reason in (report.build, report.run))
    return report.arch, f"build {build}", f"run {run}", report.hardware


def _reasons(verb: str, reports: list[ArchReport]) -> list[str]:
    """Return one line for each different reason, with the archs that it holds for."""
    archs: dict[str, list[str]] = {}
    for report in reports:
        reason = getattr(report, verb)
        if reason is not None:
            archs.setdefault(reason, []).append(report.arch)
    return [f"{verb} {', '.join(names)}: {reason}" for reason, names in archs.items()]


def diagnose_machine(runnable_backends: Collection[str]) -> MachineReport:
    """Report on this machine; `runnable_backends` are those that this version can run."""
    gpus = _probe(cuda_gpus)

    def report(arch: Arch) -> ArchReport:
        cannot_run = unrunnable_reason(arch, gpus, runnable_backends)
        cannot_run = cannot_run or BACKENDS[arch.backend].unusable_reason()
        return ArchReport(
            arch.name, arch.hardware, unbuildable_reason(arch, gpus=gpus), cannot_run
        )

    return MachineReport(
        archs=[report(arch) for arch in ARCHS.values()],
        gpus=gpus,
        cpu=_probe(lambda: f"{os.cpu_count()} logical cores, {platform.machine()}"),
        memory=_probe(
            lambda: human_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        ),
        system=_probe(platform.platform),
        versions=versions_of(PACKAGES),
        distributions=owners_of(PACKAGES),
        driver=_probe(lambda: format_driver(driver_cuda_version())),
    )


def unrunnable_reason(
    arch: Arch, gpus: list[Gpu] | str, runnable_backends: Collection[str]
) -> str | None:
    """Return why an engine for `arch` cannot run here, None if it can.

    `gpus` are the devices, or a text that says why there are none.
    """
    backend = BACKENDS[arch.backend]
    if backend.name not in runnable_backends:
        return f"this version of dflash-trt has no runtime for {backend.title} engines yet"
    if not backend.is_installed():
        return f"{backend.title} is not installed: {backend.install}"
    if arch.is_gpu and not has_gpu(arch.name, gpus):
        return f"it needs a GPU of {arch.name}, and here is: {format_gpus(gpus)}"
    return driver_reason(backend) if arch.is_gpu else None


def driver_reason(backend: Backend) -> str | None:
    """Return why this machine's driver is too old for a backend, None if it is not.

    A driver runs what was made for its CUDA or an older one, and within one major version newer
    ones too.
    """
    here = driver_cuda_version()
    owner = owner_of(backend.module) or backend.package
    needed = re.search(r"-cu(\d+)$", owner.replace("_", "-"))
    if here is None or needed is None or here[0] >= int(needed[1]):
        return None
    release = DRIVER_RELEASES.get(int(needed[1]))
    newer = f"CUDA {needed[1]}.0 or newer{f', R{release}' if release else ''}"
    return (
        f"the driver is for CUDA {here[0]}.{here[1]}, and {owner} needs a driver for {newer}:"
        " install a newer driver"
    )


def _probe(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - the reason is the answer
        return f"unknown ({type(error).__name__}: {error})"
