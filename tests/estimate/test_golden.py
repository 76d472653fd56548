"""Estimates as they were on 28 November 2026: every figure, and the tables as printed.

`python -m tests.estimate.test_golden` writes golden.json again, after a change that is meant.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trtllm_dflash.cli import main

GOLDEN = Path(__file__).with_name("golden.json")
CASES = (
    "--target gpt-oss-20b --arch sm100",
    "--target gpt-oss-120b --arch sm103 --gpus 8 --runtime serving --batch 1,8,64,512",
    "--target Qwen3-8B --arch sm100",
    "--target Qwen3-8B --arch sm120 --quant nvfp4 --kv-cache fp8 --drafter-quant nvfp4",
    "--target Qwen3-8B --arch sm90 --gpu H200 --runtime serving --eagle 60,7,10,3.4 --tau 6.49",
    "--target Qwen3-4B --arch sm90 --quant fp8 --drafter-quant fp8 --tau 6.1 --eagle 16,7,10,2.96",
    "--target Qwen3-4B --arch sm89 --gpu 'RTX 4090' --batch 1,2,3",
    "--target Qwen3-Coder-30B-A3B --arch sm120 --quant w4a16_nvfp4 --context 4096",
    "--target Qwen3-Coder-30B-A3B --arch sm90 --gpus 2 --quant fp8 --kv-cache fp8 --batch 1,16,256",
    "--target Llama-3.1-8B-Instruct --arch sm100 --gpu GB200 --eagle 60,7,10,4.55",
    "--target gpt-oss-20b --arch sm121 --quant nvfp4 --kv-cache fp8",
    "--target gpt-oss-20b --arch sm100 --batch 1,16,256 --tau 3.5 --eagle 3,3,1,2.4 --gpus 2",
    "--target Qwen3-8B --arch sm100 --context 16384 --batch 32,64",
    "--target Qwen3-8B --arch sm80 --tau 1.02 --batch 1,8",
    "--target Qwen3.6-27B --arch sm121 --quant nvfp4 --tau 5 --batch 1,8",
)
TABLES_START = "plain decoding > DFlash"


def numbers_in(value: Any, where: str = "") -> dict[str, float]:
    """Return every number of a JSON value by its path."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return {where: value} if is_number else {}
    found: dict[str, float] = {}
    for key, each in items:
        found |= numbers_in(each, f"{where}/{key}")
    return found


def run_case(case: str, folder: Path) -> dict[str, Any]:
    """Estimate one case through the command; return its tables and the numbers of its JSON."""
    path = folder / "estimate.json"
    arguments = ["profile", "--estimate", *shlex.split(case), "--json", str(path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    title, _, rest = done.output.partition("\n")
    lines = rest[rest.index(TABLES_START) : rest.index("json:")].splitlines()
    report = json.loads(path.read_text())
    names = ("steps", "best_block_sizes", "left_out", "advice")
    figures = numbers_in({name: report[name] for name in names})
    return {"printed": [title, *(line.rstrip() for line in lines)], "figures": figures}


@pytest.mark.parametrize("case", CASES)
def test_estimate_is_as_it_was(case: str, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())[case]
    found = run_case(case, tmp_path)
    assert found["printed"] == expected["printed"]
    # Keys may get other names; the order of fields and every value stay.
    assert list(found["figures"].values()) == pytest.approx(expected["figures"], rel=1e-9)


def write_golden(folder: Path) -> None:
    """Write golden.json from the estimates of today."""
    cases = {}
    for case in CASES:
        found = run_case(case, folder)
        cases[case] = {
            "printed": found["printed"],
            "figures": [float(f"{value:.12g}") for value in found["figures"].values()],
        }
    entries = [
        f"{json.dumps(case)}: {{\n"
        f' "printed": {json.dumps(each["printed"], indent=2, ensure_ascii=False)},\n'
        f' "figures": {json.dumps(each["figures"])}\n}}'
        for case, each in cases.items()
    ]
    GOLDEN.write_text("{\n" + ",\n".join(entries) + "\n}\n")


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        write_golden(Path(name))
