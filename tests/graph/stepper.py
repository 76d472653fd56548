"""Steps of a graph in ONNX Runtime on the caches of a few sequences, driven as a session drives
them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.fixtures.sampling import no_adjustments, sampling_arrays
from trtllm_dflash.engine_dir.io_tensors import KEY_WORDS


class Stepper:
    """Greedy decoding in `slots` sequences by the graph of `build_step`; all shapes are the graph's
    own.

    Caches are full of 1e3 at first, windows and states of NaN: what nobody has written must not be
    seen.
    """

    def __init__(self, model: ir.Model, slots: int, sources: int = 1) -> None:
        import onnxruntime

        self.sources = sources  # of drafts; 1: the drafter
        for initializer in model.graph.initializers.values():
            initializer.const_value = ir.Tensor(
                np.ascontiguousarray(initializer.const_value.numpy())
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # caches are copied here, which it would warn about
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options
        )
        self._names = [output.name for output in self._session.get_outputs()]
        shapes = {port.name: port.shape for port in self._session.get_inputs()}
        self.caches: dict[str, np.ndarray] = {}
        self.caches["history"] = np.full([slots, *shapes["history"][1:]], 1e3, np.float32)
        if "tally" in shapes:  # what the first step finds in a slot
            self.tally: np.ndarray | None = np.zeros([slots, *shapes["tally"][1:]], np.int32)
        else:
            self.tally = None
        fills = {"key": 1e3, "value": 1e3, "window": np.nan, "state": np.nan}
        for name, shape in shapes.items():
            fill = fills.get(name.split(".")[0].rpartition("_")[2]) if "." in name else None
            if fill is not None:
                self.caches[name] = np.full([slots, *shape[1:]], fill, np.float32)
        self.past = np.zeros(slots, np.int32)
        block = self._session.get_outputs()[0].shape[1]
        self._block_rows = {"block_rows": np.arange(block)} if "block_rows" in shapes else {}
        self.state_len = np.zeros(slots, np.int32) if "state_len" in shapes else None
        self._mask_words = shapes["token_mask"][2]
        self._next = [np.zeros(0, np.int64)] * slots

    def prompt(self, slot: int, tokens: np.ndarray, chunk: int) -> int:
        """Feed a slot's prompt in chunks; its first new token."""
        for first in range(0, len(tokens), chunk):
            part = tokens[first : first + chunk]
            found = self.step(slice(slot, slot + 1), part[None], known=len(part), rows=1)
        self._next[slot] = found["next_ids"][0]
        return int(found["new_ids"][0, 0])

    def generate(self, width: int) -> list[list[int]]:
        """Run one step of all slots and return the new tokens of each."""
        blocks = np.stack([block[:width] for block in self._next])
        found = self.step(slice(None), blocks, known=1, rows=width)
        self._next = list(found["next_ids"])
        return [
            ids[:count].tolist()
            for ids, count in zip(found["new_ids"], found["num_new"], strict=True)
        ]

    def step(
        self, slots: slice, tokens: np.ndarray, *, known: int, rows: int
    ) -> dict[str, np.ndarray]:
        """Run one step, keep its caches and return its other outputs."""
        past = self.past[slots]
        batch, block = len(past), self._session.get_outputs()[0].shape[1]
        feeds = {
            "input_ids": tokens,
            "num_known": np.full(batch, known, np.int32),
            "past_len": past,
            "kv_positions": np.arange(past.max() + tokens.shape[1] + block),
            "decided": np.arange(rows),
            **self._block_rows,
            **sampling_arrays(batch),
            **no_adjustments(batch, rows, self._mask_words),
            "noise_key": np.zeros((batch, KEY_WORDS), np.int64),
        }
        if self.state_len is not None:
            feeds["state_len"] = self.state_len[slots]
        if self.tally is not None:
            feeds["tally"] = self.tally[slots]
            feeds["draft_sources"] = np.full(batch, self.sources, np.int32)
        feeds |= {name: cache[slots] for name, cache in self.caches.items()}
        found = dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        for name, cache in self.caches.items():
            cache[slots] = found.pop(f"{name}.out")
        self.past[slots] = found["next_len"]
        if self.state_len is not None:
            self.state_len[slots] = found["next_state_len"]
        if self.tally is not None:
            self.tally[slots] = found["next_tally"]
        return found


def decode(
    model: ir.Model, prompts: list[np.ndarray], *, count: int, chunk: int, widths: list[int]
) -> list[list[int]]:
    """`count` greedy tokens for each prompt, all generating together; widths of the steps go
    round.
    """
    run = Stepper(model, len(prompts))
    answers = [[run.prompt(slot, prompt, chunk)] for slot, prompt in enumerate(prompts)]
    turn = 0
    while min(map(len, answers)) < count:
        for answer, new in zip(answers, run.generate(widths[turn % len(widths)]), strict=True):
            answer += new
        turn += 1
    return [answer[:count] for answer in answers]
