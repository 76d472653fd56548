"""An answer that is printed as it comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trtllm_dflash.cli.live_answer import print_live
from trtllm_dflash.runtime.outputs import Chunk


def test_interrupt_ends_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> Iterator[Chunk]:
        yield Chunk(0, [1], "Once upon")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        print_live(interrupted(), show_reasoning=False)
    assert capsys.readouterr().out == "Once upon\n"
