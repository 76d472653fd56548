"""The table of published pairs: its rows, and how names find them."""

from __future__ import annotations

import pytest

from trtllm_dflash.catalog.json_rows import make_row
from trtllm_dflash.catalog.pairs import PAIRS, nearest_names, pair_of
from trtllm_dflash.catalog.published import KnownTarget, Pair, drafter_json

BY_NAME = {pair.name: pair for pair in PAIRS}


def test_names_are_unique_and_found() -> None:
    assert len(BY_NAME) == len(PAIRS)
    assert len({pair.drafter.repository for pair in PAIRS}) == len(PAIRS)
    for pair in PAIRS:
        assert pair_of(pair.name.upper()) == pair
        assert pair.source
    assert pair_of("Qwen/Qwen3-8B") == BY_NAME["Qwen3-8B"]  # the first row of a target
    assert pair_of("nobody/nothing") is None
    assert nearest_names("Qwen3-8")[0] == "Qwen3-8B"
    assert nearest_names("openai/gpt-oss-120bb")[0] == "gpt-oss-120b"
    assert nearest_names("gpt-oss-120b-DFlsh", "drafter")[0] == "z-lab/gpt-oss-120b-DFlash"
    assert nearest_names("zzz") == nearest_names("zzz", "drafter") == []


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_drafter_is_found_like_a_target(pair: Pair) -> None:
    name = pair.drafter.repository
    assert pair_of(name, "drafter") == pair_of(name.upper(), "drafter") == pair
    bare = name.split("/")[1]  # two makers have a Kimi-K2.6-DFlash: the first is meant
    assert pair_of(bare, "drafter") == next(
        row for row in PAIRS if row.drafter.repository.endswith(f"/{bare}")
    )
    assert pair_of(name) is pair_of(bare) is None
    assert pair_of(pair.target.repository.split("/")[-1]) == pair_of(pair.target.repository)
    assert pair_of(pair.name, "drafter") is None


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_row_has_hugging_faces_keys(pair: Pair) -> None:
    for model in (pair.target, pair.drafter):
        if not model.config:
            assert model.architecture == "unknown"
            continue
        (architecture,) = model.config["architectures"]
        assert model.architecture == architecture
    assert "/" in pair.drafter.repository
    # A target whose owner was not read has the row's own name, and the source says so.
    assert "/" in pair.target.repository or "owner was not read" in pair.source
    tap_layers = pair.drafter.config.get("target_layer_ids", [])
    assert tap_layers == sorted(tap_layers)
    assert len(pair.drafter.config.get("layer_types", [])) in (
        0,
        pair.drafter.config.get("num_hidden_layers"),
    )


def test_an_unpublished_key_has_a_value_of_any_drafter() -> None:
    drafter = BY_NAME["MiniMax-M2.5"].drafter
    assert drafter.config == {"architectures": ["DFlashDraftModel"]}
    assert drafter_json(drafter)["block_size"] == 16
    assert drafter.block_size is None


def test_a_row_with_wrong_keys_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"row 1: keys missing: \['config'\], unknown: \['source'\]"
    ):
        make_row(KnownTarget, {"repository": "a/b", "source": "a card"}, "row 1")
