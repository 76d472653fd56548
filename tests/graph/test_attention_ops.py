"""The attention operators against an independent NumPy twin that works row by row in float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.run_op import run_op
from trtllm_dflash.engine_dir.ring_cache import rows_needed
from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.ops import VERIFY_ATTENTION

B, HQ, HKV, D, CACHE = 3, 6, 2, 8, 40


def _attend_row(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float, sink: float
) -> np.ndarray:
    """Attend with one query head [D] to the keys [n, D] that it sees; a sink of -inf is none."""
    scores = (keys.astype(np.float64) @ q.astype(np.float64)) * scale
    largest = max(scores.max(), sink)
    weights = np.exp(scores - largest)
    return (weights / (weights.sum() + np.exp(sink - largest))) @ values.astype(np.float64)


def _sinks(rng: np.random.Generator) -> np.ndarray:
    """Return sinks of little weight, of about a key's, and one of nearly all."""
    sinks = rng.standard_normal(HQ)
    sinks[0], sinks[3] = 12.0, -30.0
    return sinks.astype(np.float32)


def _reference(q, keys, values, positions, sees, scale, sinks=None):
    sinks = np.full(HQ, -np.inf) if sinks is None else sinks.astype(np.float64)
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for s in range(q.shape[1]):
            for h in range(q.shape[2]):
                kv = h // (q.shape[2] // keys.shape[1])
                seen = [k for k in range(keys.shape[2]) if sees(b, positions[b][s], k)]
                out[b, s, h] = _attend_row(
                    q[b, s, h], keys[b, kv, seen], values[b, kv, seen], scale, sinks[h]
                )
    return out


def _poisoned_caches(
    rng: np.random.Generator, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Random up to each row's length; huge behind it, so that reading there cannot pass."""
    caches = rng.standard_normal((2, B, HKV, CACHE, D)).astype(np.float32)
    for b, length in enumerate(lengths):
        caches[:, b, :, length:] = 1e4
    return caches[0], caches[1]


# float32 sums over at most 40 keys and 8 dimensions, values of order 1
TOLERANCE = 40 * np.finfo(np.float32).eps


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("window", [0, 3, 7])
@pytest.mark.parametrize("width", [1, 5])
def test_verify_attention(width: int, window: int, with_sinks: bool) -> None:
    rng = np.random.default_rng(width * 10 + window)
    past = np.array([0, 9, 17])
    q = rng.standard_normal((B, width, HQ, D)).astype(np.float32)
    k, v = rng.standard_normal((2, B, width, HKV, D)).astype(np.float32)
    keys, values = _poisoned_caches(rng, past)
    arrays = {"q": q, "k": k, "v": v, "key_cache": keys, "value_cache": values}
    arrays["positions"] = past[:, None] + np.arange(width)
    arrays["kv_positions"] = np.arange(17 + width + 2, dtype=np.int64)
    arrays |= {"sinks": _sinks(rng)} if with_sinks else {}
    got = run_op("DFlashVerifyAttention", arrays, scale=0.3, window_size=window)

    for b, start in enumerate(past):
        keys[b, :, start : start + width] = k[b].transpose(1, 0, 2)
        values[b, :, start : start + width] = v[b].transpose(1, 0, 2)
    np.testing.assert_array_equal(got["key_cache_out"], keys)
    np.testing.assert_array_equal(got["value_cache_out"], values)

    def sees(b: int, p: int, key: int) -> bool:
        return key <= p and (window == 0 or p - key < window)

    positions = past[:, None] + np.arange(width)
    want = _reference(q, keys, values, positions, sees, 0.3, arrays.get("sinks"))
    np.testing.assert_allclose(got["out"], want, rtol=TOLERANCE, atol=TOLERANCE)


def _as_rings(
    arrays: dict[str, np.ndarray], past: np.ndarray, rows: int
) -> dict[str, np.ndarray]:
    """Return the same inputs with the caches as rings: each slot's last positions, and huge numbers
    where there is none.
    """
    made = dict(arrays)
    for name in ("key_cache", "value_cache"):
        made[name] = np.full((B, HKV, rows, D), 1e4, np.float32)
        for b, length in enumerate(past):
            for position in range(max(length - rows, 0), length):
                made[name][b, :, position % rows] = arrays[name][b, :, position]
    return made


@pytest.mark.parametrize("spare", [0, 1, 6])
@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("operator", ["DFlashVerifyAttention", "DFlashDraftAttention"])
def test_rings_hold_what_is_looked_at(operator: str, window: int, spare: int) -> None:
    """In the smallest ring and in larger ones, slots that never came round and that did: as over
    whole caches.
    """
    rng = np.random.default_rng(window)
    draft, width, block = "Draft" in operator, 4, 3 if "Draft" in operator else 0
    past = np.array([0, 9, 30])
    start = past + np.array([1, 4, 2]) if draft else past
    q = rng.standard_normal((B, block or width, HQ, D)).astype(np.float32)
    k, v = rng.standard_normal((2, B, width + block, HKV, D)).astype(np.float32)
    keys, values = _poisoned_caches(rng, past)
    arrays = {"q": q, "k": k, "v": v, "key_cache": keys, "value_cache": values}
    contexts = past[:, None] + np.arange(width)
    arrays["positions"] = np.concatenate([contexts, start[:, None] + np.arange(block)], axis=1)
    arrays["kv_positions"] = np.arange(30 + width + block + 2, dtype=np.int64)
    arrays |= {"block_rows": np.arange(block)} if draft else {}
    rows = rows_needed(window, width + block) + spare
    rings = _as_rings(arrays, past, rows)
    whole = run_op(operator, arrays, scale=0.3, window_size=window)
    # Of whole caches the body with rings makes the same, to the bit.
    same = run_op(operator, arrays, scale=0.3, window_size=window, ring=0)
    for name, array in whole.items():
        np.testing.assert_array_equal(same[name], array, err_msg=name)
    got = run_op(operator, rings, scale=0.3, window_size=window, ring=1)
    # The same sums in another order.
    np.testing.assert_allclose(got["out"], whole["out"], rtol=TOLERANCE, atol=TOLERANCE)
    for name in ("key_cache", "value_cache"):
        for b in range(B):
            expected = rings[name][b].copy()
            for position in range(past[b], past[b] + width + block):
                expected[:, position % rows] = whole[f"{name}_out"][b, :, position]
            np.testing.assert_array_equal(got[f"{name}_out"][b], expected)


@pytest.mark.parametrize("ring", [None, 0, 1])
def test_a_block_of_no_rows_takes_the_context_in(ring: int | None) -> None:
    """Then all context rows are where their positions say, and nothing is attended."""
    rng = np.random.default_rng(5)
    past, width, rows = np.array([0, 9, 17]), 4, 31 if ring is None else 10
    q = np.zeros((B, 0, HQ, D), np.float32)
    k, v = rng.standard_normal((2, B, width, HKV, D)).astype(np.float32)
    caches = rng.standard_normal((2, B, HKV, rows, D)).astype(np.float32)
    arrays = {"q": q, "k": k, "v": v, "key_cache": caches[0], "value_cache": caches[1]}
    if ring == 0:
        past = past % 6
    arrays |= {"positions": past[:, None] + np.arange(width)}
    arrays |= {"kv_positions": np.arange(past[-1] + width), "block_rows": np.arange(0)}
    attributes = {} if ring is None else {"ring": ring}
    got = run_op("DFlashDraftAttention", arrays, scale=0.3, window_size=5, **attributes)
    assert got["out"].size == 0
    for cache, written, name in zip(caches, (k, v), ("key", "value"), strict=True):
        for b, positions in enumerate(arrays["positions"]):
            cache[b, :, positions % rows] = written[b]
        np.testing.assert_array_equal(got[f"{name}_cache_out"], cache)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize(("causal", "window"), [(0, 0), (1, 0), (0, 5), (1, 5), (1, 2), (0, 2)])
def test_draft_attention(causal: int, window: int, with_sinks: bool) -> None:
    rng = np.random.default_rng(causal * 10 + window)
    width, block = 4, 3
    past, committed = np.array([0, 9, 17]), np.array([1, 4, 2])
    nxt = past + committed
    q = rng.standard_normal((B, block, HQ, D)).astype(np.float32)
    k, v = rng.standard_normal((2, B, width + block, HKV, D)).astype(np.float32)
    keys, values = _poisoned_caches(rng, past)
    arrays = {"q": q, "k": k, "v": v, "key_cache": keys, "value_cache": values}
    contexts, blocks = past[:, None] + np.arange(width), nxt[:, None] + np.arange(block)
    arrays["positions"] = np.concatenate([contexts, blocks], axis=1)
    arrays["kv_positions"] = np.arange(17 + width + block, dtype=np.int64)
    arrays["block_rows"] = np.arange(block)
    arrays |= {"sinks": _sinks(rng)} if with_sinks else {}
    got = run_op("DFlashDraftAttention", arrays, scale=0.3, window_size=window, causal=causal)

    for b in range(B):
        for cache, rows, out in ((keys, k, "key_cache_out"), (values, v, "value_cache_out")):
            cache[b, :, past[b] : nxt[b]] = rows[b, : committed[b]].transpose(1, 0, 2)
            cache[b, :, nxt[b] : nxt[b] + block] = rows[b, width:].transpose(1, 0, 2)
            readable = slice(0, nxt[b] + block)
            np.testing.assert_array_equal(got[out][b][:, readable], cache[b][:, readable])

    def sees(b: int, p: int, key: int) -> bool:
        inside = window == 0 or abs(p - key) < window
        return key < nxt[b] + block and (key <= p or not causal) and inside

    positions = nxt[:, None] + np.arange(block)
    want = _reference(q, keys, values, positions, sees, 0.3, arrays.get("sinks"))
    np.testing.assert_allclose(got["out"], want, rtol=TOLERANCE, atol=TOLERANCE)


def test_without_fp8_caches_the_body_pays_nothing_for_them() -> None:
    plain, quantized = (
        VERIFY_ATTENTION.function(7, some) for some in ((), ("key_scale", "value_scale"))
    )
    assert list(plain.attributes) == ["scale", "window_size"]
    assert list(quantized.attributes) == ["scale", "window_size", "key_scale", "value_scale"]
    made = [
        node.attributes["saturate"].as_int()
        for node in quantized
        if "saturate" in node.attributes
    ]
    assert made == [1, 1]
    assert {node.op_type for node in quantized} - {node.op_type for node in plain} == {"Div"}
    assert not any("saturate" in node.attributes for node in plain)


def test_one_graph_has_fp8_caches_in_all_layers_or_in_none() -> None:
    g = GraphBuilder()
    inputs = [ir.Value(name=tensor.name) for tensor in VERIFY_ATTENTION.inputs[:7]]
    VERIFY_ATTENTION(g, *inputs)
    VERIFY_ATTENTION(g, *inputs, key_scale=0.5, value_scale=0.5)
    words = "with none of its optional attributes and with key_scale, value_scale in one graph"
    with pytest.raises(GraphError, match=words):
        VERIFY_ATTENTION.functions(g.nodes)


def test_without_sinks_the_body_pays_nothing_for_them() -> None:
    plain, sinking = (VERIFY_ATTENTION.function(count) for count in (7, 8))
    assert [value.name for value in plain.inputs] == [
        tensor.name for tensor in VERIFY_ATTENTION.inputs[:7]
    ]
    concats = [
        sum(node.op_type == "Concat" for node in function) for function in (plain, sinking)
    ]
    assert concats[0] < concats[1]


def test_one_graph_uses_an_operator_with_sinks_or_without() -> None:
    g = GraphBuilder()
    inputs = [ir.Value(name=tensor.name) for tensor in VERIFY_ATTENTION.inputs]
    for count in (7, 8):
        VERIFY_ATTENTION(g, *inputs[:count])
    with pytest.raises(
        GraphError, match="DFlashVerifyAttention is used with 7 and with 8 inputs in one graph"
    ):
        VERIFY_ATTENTION.functions(g.nodes)
    with pytest.raises(
        GraphError, match=r"DFlashVerifyAttention takes 7 to 8 inputs \['q', .*got 6 inputs"
    ):
        VERIFY_ATTENTION(g, *inputs[:6])
