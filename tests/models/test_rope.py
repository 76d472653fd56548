"""RoPE numbers against transformers' own, every static kind; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trtllm_dflash.errors import ConfigError
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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            'rope_type is "dynamic", and only default, linear',
        ),
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
            "rope_scaling.factor is no parameter of default RoPE",
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
            "original_max_position_embeddings is missing",
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
