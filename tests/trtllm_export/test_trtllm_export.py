"""export-trtllm: its files, their schema, what is refused; the example, without and with a stand-in
TensorRT-LLM.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trtllm_dflash.catalog.pairs import PAIRS
from trtllm_dflash.cli import main
from trtllm_dflash.errors import DFlashError, UsageError
from trtllm_dflash.trtllm_export.llm_args import OLDEST, TABLES, WRITTEN_FOR, schema_errors

PUBLISHED = next(pair for pair in PAIRS if pair.name == "gpt-oss-120b").drafter.config
EXAMPLE = Path(__file__).parents[2] / "examples" / "tensorrt_llm" / "run.py"


def test_export_for_one_machine(exported: Callable[..., dict[str, Any]]) -> None:
    made = exported(max_batch_size=7)
    assert made["yaml"]["tensor_parallel_size"] == made["yaml"]["gpus_per_node"] == 8
    assert (
        made["yaml"]["cuda_graph_config"]["max_batch_size"]
        == made["yaml"]["max_batch_size"]
        == 7
    )
    assert made["yaml"]["speculative_config"] == {
        "decoding_type": "DFlash",
        "max_draft_len": 9,  # the drafter's block is 10
        "speculative_model": "z-lab/gpt-oss-120b-DFlash",
        "target_layer_ids": list(PUBLISHED["target_layer_ids"]),
        "mask_token_id": PUBLISHED["mask_token_id"],
        "attention_backend": "VANILLA",
    }
    assert made["yaml"]["enable_chunked_prefill"] is False
    assert "moe_expert_parallel_size" not in made["yaml"]
    assert json.loads((made["dir"] / "export.json").read_text())["llm_args"] == made["yaml"]
    assert "srun" not in (made["dir"] / "serve.sh").read_text()
    page = (made["dir"] / "README.md").read_text()
    assert "every one of 128 experts is split among all" in page
    assert "quantization: mxfp4" in page
    assert "hf_quant_config.json" in page


def test_export_for_two_machines(exported: Callable[..., dict[str, Any]]) -> None:
    made = exported(gpus=16, nodes=2, expert_parallel=4, arch="sm103", draft_len=5)
    sizes = {
        name: made["yaml"][name]
        for name in ("tensor_parallel_size", "gpus_per_node", "moe_expert_parallel_size")
    }
    assert sizes == {
        "tensor_parallel_size": 16,
        "gpus_per_node": 8,
        "moe_expert_parallel_size": 4,
    }
    # TensorRT-LLM's own rule.
    assert (
        made["yaml"]["moe_tensor_parallel_size"] * made["yaml"]["moe_expert_parallel_size"]
        == 16
    )
    assert made["yaml"]["speculative_config"]["max_draft_len"] == 5
    assert made["yaml"]["speculative_config"]["attention_backend"] == "TRTLLM"
    words = (made["dir"] / "serve.sh").read_text()
    assert "srun --nodes 2 --ntasks 16 --ntasks-per-node 8 --gres=gpu:8" in words
    assert "trtllm-llmapi-launch trtllm-serve openai/gpt-oss-120b" in words


@pytest.mark.parametrize(
    ("target", "arch", "expected"),
    [
        ("Qwen3-8B", "sm90", "FA4"),
        ("Qwen3-8B", "sm100", "TRTLLM"),
        ("Qwen3.8-27B", "sm100", "VANILLA"),  # DFlash 2
        ("Qwen3.8-27B", "sm90", "FA4"),
    ],
)
def test_attention_backend_of_an_arch(
    target: str, arch: str, expected: str, exported: Callable[..., dict[str, Any]]
) -> None:
    assert (
        exported(target=target, arch=arch)["yaml"]["speculative_config"]["attention_backend"]
        == expected
    )


@pytest.mark.parametrize("script", ["serve.sh", "bench.sh"])
def test_scripts_run_the_commands_of_the_readme(
    script: str, exported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """With stand-ins for the commands, from another folder, with more options."""
    made, binaries = exported(gpus=4, nodes=2), tmp_path / "bin"
    binaries.mkdir()
    for name in ("srun", "trtllm-serve", "trtllm-bench"):
        (binaries / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (binaries / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
    command = [str(made["dir"] / script), "--more", "two words"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    arguments = done.stdout.splitlines()
    assert arguments[arguments.index("--config") + 1] == str(made["dir"] / "trtllm.yaml")
    assert arguments[-2:] == ["--more", "two words"]
    shown = (made["dir"] / "README.md").read_text()
    assert shlex.join(arguments[: arguments.index("--config")]) in shown


def test_export_of_local_directories(
    make_target: Callable[..., Path],
    make_drafter: Callable[..., Path],
    exported: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    target = make_target("llama")
    drafter = make_drafter(target)
    config = json.loads((drafter / "config.json").read_text())
    (tmp_path / "drafter").mkdir()
    (tmp_path / "drafter" / "config.json").write_text(
        json.dumps(config | {"num_attention_heads": 6})
    )
    made = exported(target=str(target), drafter=str(tmp_path / "drafter"), gpus=2)
    assert made["yaml"]["speculative_config"]["speculative_model"] == str(tmp_path / "drafter")
    assert made["yaml"]["speculative_config"]["max_draft_len"] == 3
    assert f"--model_path {target}" in (made["dir"] / "bench.sh").read_text()
    with pytest.raises(
        UsageError, match="--gpus 4 does not divide the drafter's 6 heads; 1, 2, 3, 6 would"
    ):
        exported(
            target=str(target),
            drafter=str(tmp_path / "drafter"),
            gpus=4,
            output_dir=tmp_path / "other",
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus": 5}, "--gpus 5 does not divide the target's 64 heads; 1, 2, 4, 8 would"),
        (
            {"target": "Qwen3.5-397B-A17B", "gpus": 32},
            "--gpus 32 does not divide the target's 16 key heads of linear attention; 1, 2, 4,",
        ),
        ({"gpus": 8, "nodes": 3}, "--gpus 8 cannot be shared evenly by --nodes 3"),
        ({"expert_parallel": 3}, "--expert-parallel 3 does not divide --gpus 8"),
        (
            {"target": "Qwen3-8B", "expert_parallel": 2},
            "--expert-parallel is for mixtures of experts",
        ),
        ({"draft_len": 10}, "--draft-len 10 is more than 9"),
        ({"draft_len": 0}, "--draft-len is 0, expected an integer of at least 1"),
        ({"arch": "sm99"}, "--arch 'sm99' is not known"),
        (
            {"max_seq_len": 131073},
            "--max-seq-len 131073 is more than 131072, the target's max_position_embeddings",
        ),
        (
            {"max_batch_size": 1024},
            "--max-num-tokens 8192 is less than the 10240 tokens that 1024 requests verify",
        ),
        ({"target": "nobody/nothing"}, "neither a directory nor a target of `dflash-trt list`"),
        ({"target": "gpt-oss120b"}, "of `dflash-trt list`; the nearest are gpt-oss-120b"),
        (
            {"drafter": "nobody/nothing"},
            "--drafter nobody/nothing: neither a directory nor a drafter of",
        ),
        ({"drafter": "gpt-oss-120-DFlash"}, "the nearest are z-lab/gpt-oss-120b-DFlash"),
        (
            {"drafter": "z-lab/Qwen3-8B-DFlash-b16"},
            (
                "does not fit the target openai/gpt-oss-120b: hidden_size is 4096 in the drafter,"
                " and hidden_size 2880 in the target; vocab_size is 151936 in the drafter, and"
                " vocab_size 201088 in the target"
            ),
        ),
        (
            {"drafter": "gpt-oss-20b-DFlash"},
            "num_target_layers is 24 in the drafter, and num_hidden_layers 36 in the target",
        ),
        (
            {"target": "gpt-oss-20b", "gpus": 64, "expert_parallel": 64},
            (
                "--expert-parallel 64 does not divide the target's 32 experts; 1, 2, 4, 8, 16, 32"
                " would"
            ),
        ),
        ({"target": "MiniMax-M2.5"}, "its block size is not published. Give its directory"),
    ],
)
def test_export_refuses_wrong_options(
    options: dict[str, Any], words: str, exported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(DFlashError, match=words):
        exported(**options)
    assert not (tmp_path / "export").exists()


def test_names_match_in_any_case_without_their_owner(
    exported: Callable[..., dict[str, Any]],
) -> None:
    made = exported(target="GPT-OSS-120B", drafter="gpt-oss-120b-dflash")
    assert (
        made["yaml"]["speculative_config"]["speculative_model"] == "z-lab/gpt-oss-120b-DFlash"
    )


def test_unpublished_sizes_are_not_compared(
    exported: Callable[..., dict[str, Any]],
) -> None:
    """Of this drafter only the block is known; its target is as wide as no model of the table."""
    made = exported(target="Qwen3-8B", drafter="RedHatAI/gemma-4-31B-it-speculator.dflash")
    assert made["yaml"]["speculative_config"]["max_draft_len"] == 7


def test_drafter_of_another_decoding_type_is_refused(
    make_target: Callable[..., Path], exported: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["DSparkDraftModel"], "block_size": 8})
    )
    with pytest.raises(
        UsageError,
        match="variant 'DSpark', for which TensorRT-LLM has another decoding_type",
    ):
        exported(target=str(make_target("llama")), drafter=str(tmp_path), gpus=1)


def test_schema_errors_are_found() -> None:
    good = {"tensor_parallel_size": 2, "kv_cache_config": {"dtype": "auto"}}
    assert schema_errors(good) == []
    assert schema_errors({"tp_size": 2}) == ["TorchLlmArgs.tp_size: no such field"]
    assert schema_errors({"tensor_parallel_size": "2"}) == [
        "TorchLlmArgs.tensor_parallel_size: '2' is no int"
    ]
    assert schema_errors({"kv_cache_config": 1}) == [
        "TorchLlmArgs.kv_cache_config: not an object"
    ]
    schedule = {"max_draft_len": 7, "draft_len_schedule": {1: 3, 4: 7}}
    (fault,) = schema_errors({"speculative_config": schedule})
    assert fault.endswith("draft_len_schedule: its first row is not max_draft_len = 7")
    (fault,) = schema_errors({"speculative_config": {"attention_backend": "FA3"}})
    assert fault.startswith("DFlashDecodingConfig.attention_backend: 'FA3' is none of")
    for table in TABLES.values():
        assert {expected for expected in table.values() if isinstance(expected, str)} <= set(
            TABLES
        )


def test_command_lists_its_files(tmp_path: Path) -> None:
    options = ["--target", "Qwen3-8B", "--gpus", "2", "--output-dir", str(tmp_path / "e")]
    result = CliRunner().invoke(main, ["export-trtllm", *options])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "e").iterdir()} == set(
        result.stdout.splitlines()[0].split("(")[1].rstrip(")").split(", ")
    )


class TestExample:
    """examples/tensorrt_llm/run.py"""

    def run(
        self, directory: Path, *options: str, modules: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        path = [str(modules)] if modules else []
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*path, *filter(None, sys.path)]),
        }
        command = [sys.executable, str(EXAMPLE), str(directory), *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def test_example_needs_tensorrt_llm(self, exported: Callable[..., dict[str, Any]]) -> None:
        done = self.run(exported()["dir"])
        assert done.returncode == 1
        assert done.stderr.startswith("Error: tensorrt_llm is not installed here.")
        assert "nvcr.io/nvidia/tensorrt-llm/release (1.3.0rc27 or newer" in done.stderr
        assert "Traceback" not in done.stderr

    def test_example_readme_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its commands, in order; the last one needs TensorRT-LLM."""
        monkeypatch.chdir(tmp_path)
        text = (EXAMPLE.parent / "README.md").read_text()
        lines = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
        assert len(lines) == 3
        for line in lines[:2]:
            result = CliRunner().invoke(main, shlex.split(line)[1:])
            assert result.exit_code == 0, result.output
        script, directory, *prompt = shlex.split(lines[2])[1:]
        assert Path(script) == EXAMPLE.relative_to(EXAMPLE.parents[2])
        assert self.run(Path(directory), *prompt).stderr.startswith(
            "Error: tensorrt_llm is not installed here."
        )
        assert WRITTEN_FOR in text
        assert OLDEST in text

    def test_example_prints_the_figures_of_run(
        self, exported: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> None:
        """A stand-in that streams 1, 3, 4 and 2 tokens, and takes no argument that is not in the
        export.
        """
        modules = tmp_path / "modules" / "tensorrt_llm"
        modules.mkdir(parents=True)
        (modules / "llmapi.py").write_text("class DFlashDecodingConfig: pass\n")
        (modules / "__init__.py").write_text(
            "import types\nclass SamplingParams:\n    def __init__(self, *, max_tokens,"
            " temperature): self.max_tokens = max_tokens\nclass LLM:\n    def __init__(self, *,"
            " model, tensor_parallel_size, speculative_config=None, **others):\n        assert"
            " (model, tensor_parallel_size) == ('openai/gpt-oss-120b', 8)\n        self.drafts ="
            " bool(speculative_config)\n    def __enter__(self): return self\n    def"
            " __exit__(self, *_): pass\n    @property\n    def tokenizer(self):\n        return"
            " types.SimpleNamespace(apply_chat_template=lambda chat, **_: chat[0]['content'])\n   "
            " def generate_async(self, prompt, sampling, streaming):\n        assert streaming and"
            " sampling.max_tokens in (8, 64)\n        ids = []\n        for count in (1, 3, 4, 2)"
            " if self.drafts else (1,) * 10:\n            ids = ids + [7] * count\n           "
            " output = types.SimpleNamespace(token_ids=ids, text='an answer',"
            " finish_reason='stop')\n            yield types.SimpleNamespace(outputs=[output],"
            " prompt_token_ids=[1, 2])\n"
        )
        done = self.run(
            exported()["dir"], "Hello", "--max-tokens", "64", modules=modules.parent
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "an answer\n"
        assert "2 tokens in " in done.stderr
        assert "9 tokens in " in done.stderr
        assert "(3 steps of " in done.stderr
        assert "3.00 tokens a step and sequence, bonus included, of at most 10" in done.stderr
        options = ("Hi", "--max-tokens", "64", "--no-draft")
        plain = self.run(
            exported(output_dir=tmp_path / "b")["dir"], *options, modules=modules.parent
        )
        assert "9 tokens in " in plain.stderr, plain.stderr
        assert "τ" not in plain.stderr
