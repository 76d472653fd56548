"""The plugin of DFlashSelect launches what its C library does, and refuses what no kernel takes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
from tests.plugins.emulated_plugin import EmulatedModule, enqueue
from tests.plugins.library import Library
from tests.plugins.select_reference import Case, inputs, run
from trtllm_dflash.errors import EngineError

pytestmark = pytest.mark.slow

SELECT = "DFlashSelect"


@pytest.mark.parametrize("case", [Case(3, 7, 211, 12, 16), Case(1, 2, 20_001, 256, 64)])
def test_the_plugin_launches_what_the_library_does(
    case: Case, module: EmulatedModule, emulated: Library
) -> None:
    given = inputs(case)
    got = enqueue(SELECT, given, {"top_k": case.top_k})["places"]
    np.testing.assert_array_equal(got, run(emulated, given, case.top_k))
    parts = ("scan", "pairs", "walk")
    assert module.launched == [(f"dflash_select_{part}", 77) for part in parts]


@pytest.mark.parametrize(
    ("case", "top_k", "words"),
    [
        (
            Case(1, 2, 100, 8, 16),
            65,
            "a row of 100 places may have 1 to 64 candidates: top_k is 65",
        ),
        (Case(1, 2, 9, 8, 9), 10, "a row of 9 places may have 1 to 9 candidates: top_k is 10"),
        (Case(1, 2, 9, 8, 9), 0, "may have 1 to 9 candidates: top_k is 0"),
    ],
)
def test_a_number_of_candidates_that_no_kernel_takes(
    case: Case, top_k: int, words: str, module: EmulatedModule
) -> None:
    with pytest.raises(EngineError, match=words):
        enqueue(SELECT, inputs(case), {"top_k": top_k})
