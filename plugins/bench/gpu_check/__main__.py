"""Check and time on a GPU all that is ours, in under eight minutes.

    make gpu-check                             # with python3, or PYTHON=...
    python3 -m plugins.bench.gpu_check --help

Needs an NVIDIA driver for CUDA 13, Python 3.11 and these packages:

    pip install torch numpy ml_dtypes onnx onnx-ir safetensors 'cuda-bindings==13.*' \
        'nvidia-cuda-nvrtc==13.*' 'nvidia-cuda-runtime==13.*' 'nvidia-cuda-cccl==13.*'

Parts that need more say so, and are skipped: TensorRT-RTX, FlashInfer, flash-attn, Triton, nvcc,
compute-sanitizer. Each part is a process of its own and fails alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plugins.bench.gpu_check.machine import NoGpuError, first_gpu, provenance
from plugins.bench.gpu_check.part_process import run_part
from plugins.bench.gpu_check.parts import PARTS, Part
from plugins.bench.gpu_check.report import write_report
from plugins.bench.gpu_check.rows import FAILED, SKIPPED

HERE = Path(__file__).parent
_SECONDS = 450.0  # for all parts together
_LEAST_SECONDS = 5.0  # of a part: with less left it is skipped


def main() -> int:
    """Run the parts and write the report; the status is 1 if one has failed or nothing can run."""
    options = _parser().parse_args()
    try:
        gpu = first_gpu()
    except NoGpuError as error:
        sys.stderr.write(f"{error}.\n")
        return 1
    start = time.monotonic()
    chosen = [part for part in PARTS if not options.parts or part.name in options.parts]
    with tempfile.TemporaryDirectory() as folder:
        parts = run_parts(chosen, Path(folder), small=options.small, seconds=options.seconds)
    report = {
        **provenance(gpu),
        "command": " ".join(["python3 -m plugins.bench.gpu_check", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - start, 1),
        "parts": parts,
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for path in write_report(report, options.output_dir):
        _say(f"wrote {path}")
    return int(any(part["result"] == FAILED for part in parts))


def run_parts(
    parts: list[Part], folder: Path, *, small: bool, seconds: float
) -> list[dict[str, Any]]:
    """Run parts one after the other, and return their reports.

    `seconds` is for all of them. With more or less than by default, each part's limit is longer or
    shorter too.
    """
    end, reports = time.monotonic() + seconds, []
    for part in parts:
        left = end - time.monotonic()
        if left < _LEAST_SECONDS:
            reason = f"the {seconds:.0f} s for all parts are used"
            empty = {"name": part.name, "seconds": 0.0, "rows": []}
            reports.append({**empty, "result": SKIPPED, "reason": reason})
        else:
            limit = min(left, part.seconds * seconds / _SECONDS)
            reports.append(run_part(part, folder, small=small, limit=limit))
        last = reports[-1]
        _say(f"{last['name']}: {last['result']}, {last['seconds']} s. {last['reason']}")
    return reports


def _say(line: str) -> None:
    sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu-check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output-dir", type=Path, default=HERE, help="where <gpu>.json and <gpu>.md go"
    )
    parser.add_argument(
        "--parts", nargs="+", metavar="PART", choices=[part.name for part in PARTS],
        help="run these parts alone: " + ", ".join(part.name for part in PARTS),
    )  # fmt: skip
    parser.add_argument(
        "--small", action="store_true", help="small sizes: shows in seconds what can start"
    )
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help="for all parts together (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
