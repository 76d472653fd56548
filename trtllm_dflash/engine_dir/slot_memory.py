"""What one slot keeps between steps, from the table of inputs and outputs.

Keys and values grow with the sequence. A layer of linear attention keeps a state and a window. They
do not grow, and every step reads and writes them whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.log import human_bytes


@dataclass(frozen=True)
class SlotMemory:
    """The bytes of one slot's caches by what they hold.

    `key_value_bytes` are of all keys and values; `token_bytes` of one position of them, in those
    caches that hold all positions. `num_states` layers have a state.
    """

    key_value_bytes: int
    token_bytes: int
    state_bytes: int
    window_bytes: int
    num_states: int

    @classmethod
    def of(cls, io: Iterable[IoTensor], *, cache_len: int) -> SlotMemory:
        """Return the memory of a slot whose longest caches have `cache_len` rows."""
        found = Counter[str]()
        for tensor in io:
            if not tensor.cache or tensor.direction != "input":
                continue
            if tensor.recurrent:
                part = "window" if "_window." in tensor.name else "state"
                found[part] += tensor.slot_bytes
                found["states"] += part == "state"
                continue
            found["key and value"] += tensor.slot_bytes
            if tensor.shape[2] == cache_len:
                found["token"] += tensor.slot_bytes // cache_len
        return cls(
            found["key and value"],
            found["token"],
            found["state"],
            found["window"],
            found["states"],
        )

    @property
    def fixed_bytes(self) -> int:
        """Return the bytes of states and windows, however long the sequence is."""
        return self.state_bytes + self.window_bytes

    @property
    def state_traffic(self) -> int:
        """Return the bytes of states and windows that a step reads and writes, a slot.

        Each is read once and written once, however many drafts the step verifies.
        """
        return 2 * self.fixed_bytes

    def describe_states(self) -> str:
        """Return states and windows for people, "" without any."""
        if not self.state_bytes:
            return ""
        return (
            f"{human_bytes(self.state_bytes)} a slot at any length, and"
            f" {human_bytes(self.window_bytes)} of windows; a step reads and writes"
            f" {human_bytes(self.state_traffic)} of both"
        )
