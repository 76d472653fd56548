"""python -m trtllm_dflash: the same as the dflash-trt command."""

from __future__ import annotations

from trtllm_dflash.cli import main

main(prog_name="dflash-trt")
