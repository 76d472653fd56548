"""What a builder process is asked to build, and what it answers."""

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
    """A build, and the existing directory to write it into."""

    config: BuildConfig
    directory: Path

    def to_json(self) -> str:
        """Return the request as one line of JSON."""
        config = asdict(self.config) | {"output_dir": str(self.config.output_dir)}
        return json.dumps({"config": config, "directory": str(self.directory)})

    @classmethod
    def from_json(cls, line: str) -> BuildRequest:
        """Read what `to_json` returned."""
        data = json.loads(line)
        config = data["config"] | {"output_dir": Path(data["config"]["output_dir"])}
        return cls(BuildConfig(**config), Path(data["directory"]))


@dataclass(frozen=True)
class BuildResult:
    """What a backend reports of the engine that it has written.

    `graph` is serialized. `versions` are of packages whose version the backend itself reports.
    """

    graph: bytes
    kernels: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildJob:
    """A request with its sizes resolved, for a backend's `build(make_model, job)`."""

    resolved: ResolvedBuild
    io: Sequence[IoTensor]
    directory: Path
    progress: Progress
    timings: Path | None = None  # file of the timings of tactics, if the backend times any

    @property
    def scratch(self) -> Path:
        """Return a directory for files that are not part of the engine.

        It is on the engine's disk, since they may be as large.
        """
        return self.directory / "scratch"
