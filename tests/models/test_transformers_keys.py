"""Every key of config.json that transformers' models read is read here, or has no effect."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.tiny_hybrid import HYBRIDS, tiny_hybrid
from tests.fixtures.tiny_models import tiny_target
from tests.fixtures.tiny_moe import tiny_gpt_oss, tiny_qwen3_moe
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.registry import TARGET_FAMILIES, read_target_config

# Shared code that reads a configuration, beside modeling_*.py of each family.
_SHARED = ("masking_utils.py", "modeling_rope_utils.py")
_READS = re.compile(r"""config\.(\w+)|getattr\((?:self\.)?config, "(\w+)\"""")
# The encoder of images, whose configuration is not the decoder's.
_VISION_CLASS = re.compile(
    r"^class \w+(?:Vision|PatchMerger)\w*\(.*?(?=^\S)", re.MULTILINE | re.DOTALL
)
# Methods and private names of the configuration class, and keys of other models in shared code.
_NOT_KEYS = re.compile(
    r"_.*|get_text_config|standardize_rope_params|validate_rope|default_theta|json"
    r"|per_layer_config|is_heterogeneous|num_labels"
)
WITHOUT_EFFECT = {
    "attention_dropout": "of training",
    "initializer_range": "of training",
    "pad_token_id": "a row of the embedding like others",
    "use_cache": "how it is computed",
    "output_router_logits": "what is returned",
    "router_aux_loss_coef": "of training",
    "rope_theta": "read as a parameter of RoPE",
    "sliding_window": "read where a layer slides",
    "attention_chunk_size": "of Llama 4, whose masks no family here asks for",
    "block_size": "of block masks, which no family here asks for",
    "problem_type": "of classifiers",
    "text_config": "read where a model also takes images",
    "vision_config": "of the encoder of images",
    "image_token_id": "a token like others where no image is given",
    "video_token_id": "a token like others where no video is given",
}
# Fields that every configuration class has: of its files, of classifiers, or of what is returned.
_OF_EVERY_CLASS = {
    *(
        "_name_or_path",
        "architectures",
        "transformers_version",
        "dtype",
        "chunk_size_feed_forward",
    ),
    *("id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict"),
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("configs")
    made: dict[str, Path] = {
        name: tiny_target(root / name, name) for name in ("llama", "mistral", "qwen2", "qwen3")
    }
    made["qwen3_moe"] = tiny_qwen3_moe(root / "qwen3_moe")
    made["gpt_oss"] = tiny_gpt_oss(root / "gpt_oss", mxfp4=False)
    for name, family in HYBRIDS.items():
        made[family.model_type] = tiny_hybrid(root / name, name)
    return {name: json.loads((path / "config.json").read_text()) for name, path in made.items()}


def _keys_of_transformers(folder: Path, model_type: str) -> set[str]:
    files = [folder / name for name in _SHARED]
    name = model_type.removesuffix("_text")
    files.append(folder / "models" / name / f"modeling_{name}.py")
    found = set()
    for file in files:
        text = _VISION_CLASS.sub("", file.read_text(encoding="utf-8"))
        for groups in _READS.findall(text):
            found.update(name for name in groups if name and not _NOT_KEYS.fullmatch(name))
    return found


@pytest.mark.parametrize(
    "model_type", sorted(family.model_type for family in TARGET_FAMILIES.values())
)
def test_no_key_of_transformers_is_overlooked(
    model_type: str, configs: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")  # of an extra: DFLASH_REQUIRE_ALL=1 wants it
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    read = _keys_read(configs[model_type], monkeypatch)
    theirs = _keys_of_transformers(Path(spec.origin).parent, model_type)
    assert {"hidden_size", "rms_norm_eps", "is_causal", "rope_parameters"} <= theirs
    assert theirs - read - WITHOUT_EFFECT.keys() == set()


@pytest.mark.parametrize("model_type", sorted(row.model_type for row in HYBRIDS.values()))
def test_no_field_of_a_hybrids_class_is_overlooked(
    model_type: str, configs: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field of the class is read, or is in the table of those without effect."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(model_type).get_text_config().to_dict().keys()
    assert {"linear_num_key_heads", "layer_types", "attention_bias"} <= theirs
    read = _keys_read(configs[model_type], monkeypatch)
    assert theirs - read - WITHOUT_EFFECT.keys() - _OF_EVERY_CLASS == set()


def _keys_read(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the keys that are looked at when a config.json is read."""
    read = set[str]()
    get = HfReader.get

    def recorded(reader: HfReader, path: str) -> Any:
        read.add(path.split(".")[0])
        return get(reader, path)

    monkeypatch.setattr(HfReader, "get", recorded)
    read_target_config(config, None, "tiny")
    return read
