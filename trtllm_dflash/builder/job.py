"""The work order of a builder process, as it travels, and as the builder sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.log import Progress
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.resolved_build import ResolvedBuild


@dataclass(frozen=True)
class BuildRequest:
    """What to build, and the existing directory to write it into."""

    config: BuildConfig
    directory: Path

    def to_json(self) -> str:
        """One line of JSON."""
        config = asdict(self.config) | {"output_dir": str(self.config.output_dir)}
        return json.dumps({"config": config, "directory": str(self.directory)})

    @classmethod
    def from_json(cls, line: str) -> BuildRequest:
        """The inverse of `to_json`."""
        data = json.loads(line)
        config = data["config"] | {"output_dir": Path(data["config"]["output_dir"])}
        return cls(BuildConfig(**config), Path(data["directory"]))


@dataclass(frozen=True)
class BuildResult:
    """What a backend says of the engine that it has written: its graph, serialized, and the kernels
    in it.
    """

    graph: bytes
    kernels: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(
        default_factory=dict
    )  # of what the backend itself knows better than pip


@dataclass(frozen=True)
class BuildJob:
    """A request with its sizes resolved: what a backend's `build(make_model, job)` works from."""

    resolved: ResolvedBuild
    ports: Sequence[IoTensor]
    directory: Path
    progress: Progress
    timings: Path | None = None  # file of tactics' timings, where the backend times any

    @property
    def scratch(self) -> Path:
        """A directory for files that are not part of the engine; on the same disk, since they may
        be as large.
        """
        return self.directory / "scratch"
