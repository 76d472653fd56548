"""What a dry run says of the build itself, and of a checkpoint that is only supposed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trtllm_dflash.builder.dry_run import DryRun, preview_build
from trtllm_dflash.builder.host_costs import HostCosts, gpu_memory_range
from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.checkpoint.model_card import stated_licence
from trtllm_dflash.cli import main
from trtllm_dflash.errors import CheckpointError, UsageError
from trtllm_dflash.options.build import BuildConfig

BENCHMARK = Path(__file__).parents[2] / "examples" / "benchmark"
CODE = 20_000_000  # bytes beside the weights in engines of 4 layers and a drafter's one
QWEN, DRAFTER = "Qwen/Qwen3-8B", "z-lab/Qwen3-8B-DFlash-b16"


def preview(arch: str = "sm120", *, quant: str = "none", **options: Any) -> DryRun:
    """Return the dry run of a pair of the catalog, none of whose files is here."""
    config = BuildConfig("Qwen3-8B", Path("no-engine"), DRAFTER, arch=arch, **options)
    return preview_build(config, quant=quant)


def test_a_supposed_format_is_planned_and_said() -> None:
    real, supposed = preview(), preview(quant="nvfp4", kv_cache_dtype="fp8")
    linears = 36 * 4096 * (4096 + 2 * 1024 + 4096 + 3 * 12288)
    assert supposed.models.bytes_by_format["NVFP4"] == pytest.approx(linears * 9 / 16, rel=1e-3)
    assert supposed.plan.cache_bytes_per_token() == {
        "target": real.plan.cache_bytes_per_token()["target"] // 2,
        "drafter": real.plan.cache_bytes_per_token()["drafter"],
    }
    title, ((_, text),) = supposed.sections()[0]
    assert title == "what if"
    assert "linears were quantized to NVFP4 and its caches had scales for FP8" in text
    assert "`dflash-trt quantize --quant nvfp4 --kv-cache-dtype fp8` makes such" in text
    assert real.sections()[0][0] == "would build"
    # What is fetched is the checkpoint as it is.
    assert HostCosts(supposed.plan).downloads() == HostCosts(real.plan).downloads()


def test_what_cannot_be_supposed_is_refused() -> None:
    with pytest.raises(UsageError, match=r"sm86 .* has no arithmetic for NVFP4"):
        preview("sm86", quant="nvfp4")
    with pytest.raises(UsageError, match="sm86, which has no FP8"):
        preview("sm86", kv_cache_dtype="fp8")


def test_supposed_experts() -> None:
    """`quantize` makes all but those of gpt-oss; of FP8 they are a byte a weight."""
    config = BuildConfig("Qwen3-Coder-30B-A3B", Path("e"), arch="sm120")
    real = preview_build(config)
    for form, share in (("nvfp4", 0.296), ("fp8", 0.512)):
        run = preview_build(config, quant=form)
        assert f"`dflash-trt quantize --quant {form}` makes such" in run.models.supposed
        found = run.models.weight_bytes / real.models.weight_bytes
        assert found == pytest.approx(share, abs=0.003)
    mxfp4 = preview_build(BuildConfig("gpt-oss-20b", Path("e"), arch="sm120"), quant="nvfp4")
    assert HostCosts(mxfp4.plan).downloads()["openai/gpt-oss-20b"] < 15e9
    assert "of gpt-oss only experts are quantized" in mxfp4.models.supposed


def test_a_build_supposes_nothing(make_target: Callable[..., Path], tmp_path: Path) -> None:
    target = str(make_target("llama"))
    with pytest.raises(UsageError, match="needs scales for the caches"):
        resolve_models(BuildConfig(target, tmp_path / "e", kv_cache_dtype="fp8"))
    options = ["--target", target, "--no-drafter", "--output-dir", str(tmp_path / "e")]
    done = CliRunner().invoke(main, ["build", *options, "--quant", "nvfp4"])
    assert done.exit_code == 2
    assert "--quant nvfp4 is a what-if of --dry-run" in done.output
    assert not (tmp_path / "e").exists()


def test_downloads_and_disk_are_by_repository() -> None:
    costs = HostCosts(preview().plan)
    downloads = costs.downloads()
    assert list(downloads) == [QWEN, DRAFTER]
    assert [round(size / 1e9, 1) for size in downloads.values()] == [16.4, 2.1]
    assert costs.converted_bytes == 0
    texts = dict(costs.rows())
    assert texts["download"] == f"about 16.4 GB {QWEN}, 2.1 GB {DRAFTER}"
    assert re.search(r"18\.\d GB for the engine, 18\.5 GB for the download$", texts["disk"])
    low, high = costs.memory_range()
    assert 18.5e9 < low < high < 1.65 * 18.5e9
    seconds = costs.seconds_range()
    assert seconds is not None
    # 4 to 9 s a GB were measured.
    assert seconds[0] < 4.5 * 18.6 + 10 < 9 * 18.6 < seconds[1]


def _measured() -> Iterator[tuple[int, int]]:
    """Yield the bytes of dense engines that were built, and of the memory that took."""
    for name in ("layer_cost.json", "layer_cost_dflash2.json"):
        for build in json.loads((BENCHMARK / name).read_text())["builds"]:
            yield build["plan_bytes"], build["own_memory"]
    for row in json.loads((BENCHMARK / "quantization.json").read_text())["rows"]:
        if "sm120" in row:  # integers are for CPUs alone
            yield row["sm120"], row["gpu_build_memory"]
    row = r"\| [A-Z]+\d+ \| ([\d.]+) GB \| ([\d.]+) GB \| (?:the same|([\d.]+) GB) \|"
    for weights, before, now in re.findall(row, (BENCHMARK / "README.md").read_text()):
        yield int(1e9 * float(weights)) + CODE, int(1e9 * float(now or before))


def test_measured_builds_are_within_the_range() -> None:
    """Also the least of them, of Qwen3-4B with 4 layers, and BF16 with gate and up apart."""
    found = list(_measured())
    assert len(found) == 28
    for engine, memory in found:
        low, high = gpu_memory_range(engine, has_experts=False)
        assert low < memory < high, (engine, memory)


def test_experts_take_more_memory_than_dense_layers() -> None:
    plan = preview_build(BuildConfig("gpt-oss-20b", Path("e"), arch="sm120")).plan
    low, high = HostCosts(plan).memory_range()
    assert 1.4 * plan.weight_bytes < low < high < 2.1 * plan.weight_bytes


def test_what_was_not_measured_is_unknown() -> None:
    texts = dict(HostCosts(preview("sm100").plan).rows())
    assert texts["time"] == "unknown: not measured"
    assert texts["memory"].startswith("unknown; of builds by TensorRT-RTX about ")


@pytest.mark.parametrize(("dtype", "converted"), [("F32", 1), ("F16", 1), ("BF16", 0)])
def test_converted_weights_need_disk_too(
    dtype: str, converted: int, make_target: Callable[..., Path], tmp_path: Path
) -> None:
    target = str(make_target("llama", dtype=dtype))
    made = preview_build(BuildConfig(target, tmp_path / "e", arch="sm120", plugins=False))
    costs = HostCosts(made.plan)
    assert costs.converted_bytes == converted * made.models.weight_bytes
    assert costs.disk_bytes == made.plan.engine_bytes + costs.converted_bytes
    assert dict(costs.rows())["download"] == "nothing: the files are here"
    if dtype == "BF16":  # also where they are supposed in another format
        supposed = preview_build(
            BuildConfig(target, tmp_path / "e", arch="sm120", plugins=False), quant="fp8"
        )
        assert dict(HostCosts(supposed.plan).rows())["download"].startswith("nothing")
    on_cpu = preview_build(BuildConfig(target, tmp_path / "e"))
    assert HostCosts(on_cpu.plan).converted_bytes == 0


def test_a_small_disk_of_the_cache_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtllm_dflash.builder.dry_run.same_disk", lambda *_: False)
    monkeypatch.setattr("trtllm_dflash.builder.dry_run.free_bytes", lambda _: 10**9)
    obstacles = preview().obstacles
    assert any(
        "the download needs about 18.5 GB, and the disk of " in text for text in obstacles
    )
    assert any("set HF_HOME to a larger one" in text for text in obstacles)


def test_a_configuration_alone_can_be_planned(
    make_target: Callable[..., Path], make_drafter: Callable[..., Path], tmp_path: Path
) -> None:
    target = make_target("qwen3", dtype="BF16")
    drafter = make_drafter(target, dtype="BF16")
    bare = {name: tmp_path / name for name in ("target", "drafter")}
    for source, directory in zip((target, drafter), bare.values(), strict=True):
        directory.mkdir()
        shutil.copy(source / "config.json", directory)
    config = BuildConfig(
        str(bare["target"]), tmp_path / "e", str(bare["drafter"]), arch="sm120"
    )
    with pytest.raises(UsageError, match="no attention kernel"):  # the tiny head_dim
        preview_build(config)
    options = {"arch": "cpu"}
    whole = preview_build(BuildConfig(str(target), tmp_path / "e", str(drafter), **options))
    planned = preview_build(
        BuildConfig(str(bare["target"]), tmp_path / "e", str(bare["drafter"]), **options)
    )
    assert planned.plan.engine_bytes == whole.plan.engine_bytes
    rows = dict(summary_rows(planned.models))
    assert "its weights are not here: as its config.json says" in rows["target"]
    assert "unknown: the weights" in dict(HostCosts(planned.plan).rows())["download"]
    with pytest.raises(CheckpointError):
        resolve_models(BuildConfig(str(bare["target"]), tmp_path / "e"))


CARDS = {
    "---\nlicense: mit\ntags: [a]\n---\n# A model\n": "mit",
    '---\r\ntags:\r\n- a\r\nlicense: "apache-2.0"\r\n---\r\ntext': "apache-2.0",
    "---\nlicense: other\nlicense_name: nvidia-open\n---\n": "nvidia-open",
    "---\nlicense: other\n---\n": "other",
    "---\ntags: [a]\n---\nlicense: mit\n": None,
    "license: mit\n": None,
    "---\nlicense: \x1b[31mred\n---\n": None,
    f"---\nlicense: {'x' * 65}\n---\n": None,
    "---\nlicense:\n- mit\n---\n": None,
    "": None,
}


@pytest.mark.parametrize(("card", "licence"), CARDS.items())
def test_a_model_card_states_a_licence(card: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card.encode() + b"\xff" * 10)
    assert stated_licence(tmp_path) == licence


def test_the_drafters_licence_is_shown(
    make_target: Callable[..., Path], make_drafter: Callable[..., Path], tmp_path: Path
) -> None:
    assert dict(summary_rows(preview().models))["licence"] == (
        "of the drafter: unknown: read its model card"
    )
    target = make_target("qwen3")
    drafter = tmp_path / "drafter"
    shutil.copytree(make_drafter(target), drafter)
    (drafter / "README.md").write_text("---\nlicense: mit\n---\n")
    models = resolve_models(BuildConfig(str(target), tmp_path / "e", str(drafter)))
    assert models.drafter_licence == "mit (its README.md)"
    assert resolve_models(BuildConfig(str(target), tmp_path / "e")).drafter_licence == ""
