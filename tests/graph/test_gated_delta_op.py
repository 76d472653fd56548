"""The gated delta operator against its twin, in the steps that a session makes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.graph.gated_delta_twin import Sizes, Slots, random_weights, twin
from tests.graph.run_op import run_op
from trtllm_dflash.graph.ops import GATED_DELTA
from trtllm_dflash.graph.ops.gated_delta import FOR_CPU, ROW_ORDER

# float32 sums of some hundred products of order 1 between whole sequences
TOLERANCE = 2e-5
SLOTS = 3
FORMS = pytest.mark.parametrize("form", [None, "for_cpu", "row_order"], ids=str)


def _close(got: np.ndarray, want: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(
        got, want, rtol=0, atol=TOLERANCE * np.abs(want).max(), err_msg=what
    )


class _Run:
    """Sequences of random rows in slots, every step compared with the twin."""

    def __init__(self, sizes: Sizes, length: int, *, form: str | None, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.sizes = sizes
        weights = random_weights(self.rng, sizes)
        self.rows = self._random(SLOTS, length)
        pairs = [twin(rows, weights, sizes) for rows in self.rows]
        self.outs, self.states = (np.stack(part) for part in zip(*pairs, strict=True))
        self.slots = Slots(sizes, weights, SLOTS, form=form)

    def _random(self, *shape: int) -> np.ndarray:
        shape = (*shape, self.sizes.window[2])
        return self.rng.normal(size=shape).astype(np.float32)

    def prompt(self, slot: int, length: int, chunks: list[int]) -> None:
        """Step through a slot's first rows, all of them known, in chunks that go round."""
        part = slice(slot, slot + 1)
        turn = 0
        while (past := int(self.slots.past[slot])) < length:
            count = min(chunks[turn % len(chunks)], length - past)
            out, state = self.slots.step(self.rows[part, past : past + count], count, part)
            _close(out[0], self.outs[slot, past : past + count], f"slot {slot} at {past}")
            _close(state[0], self.states[slot, past + count - 1], "state")
            turn += 1

    def block(self, width: int, known: np.ndarray, accepted: np.ndarray) -> None:
        """Make one step of all slots, of which `accepted` drafts are the sequence's own rows."""
        past = self.slots.past.copy()
        block = 3 * self._random(SLOTS, width)
        right = known + accepted
        for slot in range(SLOTS):
            own = self.rows[slot, past[slot] : past[slot] + right[slot]]
            block[slot, : right[slot]] = own
        out, state = self.slots.step(block, known)
        for slot, (start, count) in enumerate(zip(past, right, strict=True)):
            _close(out[slot, :count], self.outs[slot, start : start + count], f"slot {slot}")
            _close(state[slot], self.states[slot, start + known[slot] - 1], f"state of {slot}")
        self.slots.accept(accepted)

    def random_blocks(self, count: int, widest: int) -> None:
        """Make steps of random widths, known rows and accepted drafts."""
        for _ in range(count):
            width = int(self.rng.integers(1, widest + 1))
            fewest = max(1, width - self.sizes.pending)
            known = self.rng.integers(fewest, width + 1, SLOTS)
            self.block(width, known, self.rng.integers(0, width - known + 1))


@FORMS
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(),
        Sizes(key_heads=3, value_heads=3, taps=3, pending=15),
        Sizes(key_heads=1, value_heads=4, taps=2, pending=1),
        Sizes(key_dim=16, value_dim=5, pending=0),
    ],
    ids=str,
)
def test_steps_equal_the_rule_over_the_whole_sequence(sizes: Sizes, form: str | None) -> None:
    """Prompts in chunks, slots at different lengths, drafts that are accepted or not."""
    run = _Run(sizes, 340, form=form, seed=sizes.pending)
    for slot, (length, chunks) in enumerate([(5, [5]), (41, [40, 1]), (23, [1, 2, 7])]):
        run.prompt(slot, length, chunks)
    run.random_blocks(16, sizes.pending + 1)


@FORMS
def test_a_step_of_many_chunks(form: str | None) -> None:
    """The kept rows may end in any chunk, with drafts behind them."""
    run = _Run(Sizes(pending=15), 280, form=form)
    for known in ([70, 64, 63], [33, 60, 65]):
        run.block(79, np.array(known), np.array([9, 15, 14]))
    run.block(1, np.array([1, 1, 1]), np.array([0, 0, 0]))
    run.random_blocks(3, 16)


@FORMS
@pytest.mark.parametrize("decay", [0.0, 0.02, 80.0, 1e43])
def test_repeated_keys_and_strong_decays(decay: float, form: str | None) -> None:
    """A key that repeats makes the rows' system of equations as ill-conditioned as it gets."""
    sizes = Sizes(pending=15)
    rng = np.random.default_rng(3)
    weights = random_weights(rng, sizes)
    weights["a_log"][:] = np.log(decay) if decay else -50.0
    weights["dt_bias"][:] = 0.0
    rows = np.repeat(rng.normal(size=(1, 1, sizes.window[2])), 64, axis=1).astype(np.float32)
    rows[..., : sizes.channels] += 1e-3 * rng.normal(size=(1, 64, sizes.channels))
    rows[..., sizes.channels :] = 4.0  # beta .98
    rows[..., -sizes.value_heads :] = np.log(np.e - 1)  # softplus of it is 1
    rows[:, ::5, -sizes.value_heads :] = -9.0  # and here hardly any decay
    outs, states = twin(rows[0], weights, sizes)
    slots = Slots(sizes, weights, 1, form=form)
    out, state = slots.step(rows, 64)
    _close(out[0], outs, "out")
    _close(state[0], states[-1], "state")


@pytest.mark.slow
def test_every_width_gives_the_same_bits_row_by_row() -> None:
    """Plain decoding, blocks with rejected drafts and prompts of any cut: no bit of difference."""
    sizes = Sizes(key_heads=2, value_heads=6, key_dim=11, value_dim=13, pending=7)
    length = 90
    plain = _Run(replace(sizes, pending=0), length, form="row_order")
    outs, states = [], []
    for position in range(length):
        out, state = plain.slots.step(plain.rows[:, position : position + 1], 1)
        outs.append(out[:, 0])
        states.append(state)
    for cut in ([90], [1], [7, 31, 2]):
        prompts = _Run(sizes, length, form="row_order")
        turn = 0
        while (past := int(prompts.slots.past[0])) < length:
            part = prompts.rows[:, past : past + cut[turn % len(cut)]]
            out, state = prompts.slots.step(part, part.shape[1])
            np.testing.assert_array_equal(
                out, np.stack(outs[past : past + part.shape[1]], axis=1)
            )
            np.testing.assert_array_equal(state, states[past + part.shape[1] - 1])
            turn += 1
    blocks = _Run(sizes, length, form="row_order")
    rejected = 0
    while blocks.slots.past.max() < length - 8:
        past = blocks.slots.past.copy()
        width = int(blocks.rng.integers(1, 9))
        accepted = blocks.rng.integers(0, width, SLOTS)
        block = blocks._random(SLOTS, width)
        for slot, count in enumerate(accepted + 1):
            block[slot, :count] = blocks.rows[slot, past[slot] : past[slot] + count]
        out, state = blocks.slots.step(block, 1)
        for slot, (start, count) in enumerate(zip(past, accepted + 1, strict=True)):
            want = [outs[position][slot] for position in range(start, start + count)]
            np.testing.assert_array_equal(out[slot, :count], want)
            np.testing.assert_array_equal(state[slot], states[start][slot])
        blocks.slots.accept(accepted)
        rejected += int((width - 1 - accepted).sum())
    assert rejected > 30


def test_a_kernel_has_no_field_for_the_order() -> None:
    assert {ROW_ORDER, FOR_CPU} < set(GATED_DELTA.attributes)
    assert not {ROW_ORDER.name, FOR_CPU.name} & set(GATED_DELTA.plugin_fields)


@FORMS
def test_memory_in_place_gives_the_same_bits(form: str | None) -> None:
    """One buffer as input and output, as in a session, and apart."""
    sizes = Sizes()
    run = _Run(sizes, 40, form=form)
    for slot in range(SLOTS):
        run.prompt(slot, 9 + slot, [9])
    arrays = run.slots._arrays(run.rows[:, 20:25], 2)
    attributes = {"num_key_heads": sizes.key_heads} | ({form: 1} if form else {})
    apart = run_op("DFlashGatedDelta", arrays, **attributes)
    out, state = run.slots.step(run.rows[:, 20:25], 2)
    np.testing.assert_array_equal(out, apart["out"])
    np.testing.assert_array_equal(state, apart["state_out"])
    np.testing.assert_array_equal(run.slots.memory["window"], apart["window_out"])


@pytest.mark.slow
def test_the_twin_is_transformers_layer() -> None:
    """A whole layer of Qwen3.5: its linears and norm around the twin."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    sizes, hidden = Sizes(), 20
    config = Qwen3_5TextConfig(
        hidden_size=hidden,
        linear_num_key_heads=sizes.key_heads,
        linear_num_value_heads=sizes.value_heads,
        linear_key_head_dim=sizes.key_dim,
        linear_value_head_dim=sizes.value_dim,
        linear_conv_kernel_dim=sizes.taps,
        layer_types=["linear_attention"],
        num_hidden_layers=1,
    )
    torch.manual_seed(0)
    layer = Qwen3_5GatedDeltaNet(config, 0).double().eval()
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if name != "A_log":
                weight.copy_(torch.randn_like(weight) * 0.6)
        x = torch.randn(1, 30, hidden, dtype=torch.float64)
        want = layer(x).numpy()[0]
    held = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    given = x.numpy()[0]
    rows = [given @ held[f"in_proj_{part}.weight"].T for part in ("qkv", "b", "a", "z")]
    names = {"conv_weight": "conv1d.weight", "a_log": "A_log", "dt_bias": "dt_bias"}
    weights = {name: held[stored] for name, stored in names.items()}
    outs, _ = twin(np.concatenate(rows[:3], axis=1), weights, sizes)
    z = rows[3].reshape(outs.shape)
    scale = np.sqrt((outs**2).mean(-1, keepdims=True) + config.rms_norm_eps)
    gated = outs / scale * held["norm.weight"] * z / (1 + np.exp(-z))
    got = gated.reshape(len(given), -1) @ held["out_proj.weight"].T
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
