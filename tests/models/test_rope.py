"""RoPE numbers against transformers' own, every static kind; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.context import read_context_limit
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.rope import RopeConfig

POSITIONS = 3000

SCALINGS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"type": "linear", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    "yarn_gpt_oss": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    },
    "yarn_attention_factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": 1.25,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn_mscale_alone": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.5,
    },
    "yarn_short_original": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 64,
    },
    "yarn_degenerate_ramp": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 4,
    },
}


def read(**settings: Any) -> RopeConfig:
    head_dim = settings.pop("head_dim", 16)
    return RopeConfig.from_hf(HfReader({"rope_theta": 10000.0} | settings, "model"), head_dim)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(
    ("head_dim", "theta"), [(8, 10000.0), (64, 500000.0), (96, 150000), (128, 1e6)]
)
def test_cos_and_sin_equal_transformers(name: str, head_dim: int, theta: float) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = SCALINGS[name]
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=4 * head_dim,
            num_attention_heads=4,
            head_dim=head_dim,
            rope_theta=theta,
            rope_scaling=dict(scaling) if scaling else None,
            max_position_embeddings=131072,
        )
    )
    ours = read(head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    frequencies, expected = ours.inverse_frequencies(), theirs.inv_freq.numpy()
    # float32 pow is not correctly rounded in either library, and yarn and llama3 round a few more
    # times on top of it.
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(frequencies, expected, rtol=2 * eps, atol=0)

    cos, sin = ours.cos_sin(POSITIONS)
    their_cos, their_sin = theirs(torch.zeros(1), torch.arange(POSITIONS)[None])
    assert cos.shape == sin.shape == (POSITIONS, head_dim // 2)
    assert cos.dtype == sin.dtype == np.float32
    # The angle is position x frequency: its error is that of the frequency times the position, plus
    # one rounding.
    atol = ours.attention_scaling * (3 * eps * POSITIONS * frequencies.max() + 2 * eps)
    np.testing.assert_allclose(cos, their_cos[0, :, : head_dim // 2].numpy(), rtol=0, atol=atol)
    np.testing.assert_allclose(sin, their_sin[0, :, : head_dim // 2].numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("name", [name for name, scaling in SCALINGS.items() if scaling])
def test_new_and_old_spelling_give_the_same(name: str) -> None:
    scaling = dict(SCALINGS[name] or {})
    old = read(rope_theta=5e5, rope_scaling=scaling)
    kind = scaling.pop("type", None) or scaling.pop("rope_type")
    new = RopeConfig.from_hf(
        HfReader(
            {"rope_parameters": scaling | {"rope_type": kind, "rope_theta": 500000}}, "model"
        ),
        16,
    )
    assert old == new


def test_default_theta_only_where_the_family_has_one() -> None:
    assert RopeConfig.from_hf(HfReader({}, "model"), 16, default_theta=10000.0).theta == 10000.0
    with pytest.raises(ConfigError, match="model: the key rope_theta is missing"):
        RopeConfig.from_hf(HfReader({}, "model"), 16)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}


@pytest.mark.parametrize(
    ("scaling", "positions", "longest"),
    [
        (None, 512, 512),
        ({"rope_type": "default", "factor": 1.0}, 512, 512),
        ({"type": "linear", "factor": 4.0}, 512, 2048),
        ({"rope_type": "dynamic", "factor": 4.0}, 512, 512),
        (LLAMA3 | {"original_max_position_embeddings": 512}, 2048, 2048),
        (LLAMA3 | {"original_max_position_embeddings": 512}, 512, 512),
        ({"rope_type": "yarn", "factor": 4.0}, 512, 2048),
        (YARN, 80, 256),
        (YARN, 300, 300),
        (YARN | {"original_max_position_embeddings": 64.0}, 80.0, 256),
        (YARN | {"factor": 2.5, "original_max_position_embeddings": 33}, 33, 82),
        (YARN | {"factor": None}, 320, 320),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_longest_context(
    scaling: dict[str, Any] | None, positions: float, longest: int, key: str
) -> None:
    config = {"max_position_embeddings": positions, key: scaling}
    assert read(**config).context_limit(int(positions)).tokens == longest
    for whole in (config, {"text_config": config}):
        limit = read_context_limit(HfReader(whole, "model"))
        assert limit is not None
        assert limit.tokens == longest


def test_context_of_unsupported_targets() -> None:
    deepseek = {"type": "deepseek_yarn", "factor": 64, "original_max_position_embeddings": 4096}
    config = {"max_position_embeddings": 131072, "rope_scaling": deepseek}
    limit = read_context_limit(HfReader({"text_config": config}, "model"))
    assert limit is not None
    assert limit.tokens == 262144
    assert "factor 64 x original_max_position_embeddings 4096" in limit.reason
    assert read_context_limit(HfReader({}, "model")) is None


@pytest.mark.parametrize("name", ["yarn", "llama3"])
def test_missing_original_length_is_the_positions(name: str) -> None:
    scaling = {key: value for key, value in (SCALINGS[name] or {}).items() if "orig" not in key}
    full = scaling | {"original_max_position_embeddings": 777}
    assert read(rope_scaling=scaling, max_position_embeddings=777) == read(rope_scaling=full)
    at_the_top = {"max_position_embeddings": 9, "original_max_position_embeddings": 777}
    assert read(rope_scaling=scaling, **at_the_top) == read(rope_scaling=full)


def test_yarn_without_factor_takes_the_ratio() -> None:
    scaling = YARN | {"factor": None}
    assert read(rope_scaling=scaling, max_position_embeddings=256) == read(rope_scaling=YARN)


def test_factors_of_other_engines_are_named(caplog: pytest.LogCaptureFixture) -> None:
    read(rope_scaling=YARN | {"attn_factor": 1.0, "extrapolation_factor": 1})
    assert not caplog.records
    assert read(rope_scaling=YARN | {"attn_factor": 1.2}) == read(rope_scaling=YARN)
    assert "rope_scaling.attn_factor is 1.2: Hugging Face does not read it" in caplog.text


def test_an_empty_scaling_is_none() -> None:
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert read(rope_scaling={}, rope_parameters=new) == read(rope_scaling=new)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rope_scaling": {"type": "longrope"}}, 'rope_scaling.rope_type is "longrope"'),
        (
            {"rope_scaling": {"type": "deepseek_yarn"}},
            'rope_scaling.rope_type is "deepseek_yarn"',
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        (
            {"rope_scaling": {"type": "linear", "factor": True}},
            "rope_scaling.factor is true, expected a finite number",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 0.5}},
            "rope_scaling.factor is 0.5, expected at least 1.0",
        ),
        (
            {"rope_scaling": {"factor": 2.0}},
            "rope_scaling.factor is 2.0, and default RoPE has none",
        ),
        (
            {"rope_scaling": YARN | {"mrope_section": [2, 3]}},
            "rope_scaling.mrope_section is no parameter of yarn",
        ),
        (
            {"rope_scaling": YARN | {"truncate": 1}},
            "rope_scaling.truncate is 1, expected true or false",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "the key max_position_embeddings is missing",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "attention_factor": 1.2}},
            "attention_factor is 1.2, and default RoPE has none: Hugging Face ignores it",
        ),
        (
            {"rope_scaling": YARN | {"truncate": None}},
            "rope_scaling.truncate is null, which engines read as true or as false",
        ),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 128},
            "original_max_position_embeddings is 64 but 128 at the top level",
        ),
        (
            {"rope_scaling": YARN | {"factor": None}, "max_position_embeddings": 32},
            "max_position_embeddings is 32, less than the 64 of yarn RoPE",
        ),
        (
            {"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 8.0}},
            "are both present and differ",
        ),
        ({"rope_scaling": "yarn"}, 'rope_scaling is "yarn", expected an object'),
        (
            {"rope_scaling": SCALINGS["llama3"] | {"low_freq_factor": 4.0}},
            "low_freq_factor must be positive and below",
        ),  # type: ignore[operator]
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
            "partial_rotary_factor is not 1",
        ),
        ({"rope_theta": 1.0}, "model: rope_theta is 1.0, expected more than 1"),
        (
            {"rope_parameters": {"rope_theta": 5e5}},
            "rope_theta is 500000.0 but rope_theta at the top level is 10000.0",
        ),
        ({"rope_theta": "1e6"}, 'rope_theta is "1e6", expected a finite number'),
        ({"head_dim": 15}, "model: head_dim is 15, expected an even number"),
    ],
)
def test_refusals(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.").replace("[", r"\[")):
        read(**settings)
