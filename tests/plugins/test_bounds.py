"""The bounds from the disassembly: what is read, which way a turn takes, its cycles."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.plugins.library import PLUGINS
from trtllm_dflash.graph.kernel_specs import KernelVariant

BENCH = PLUGINS / "bench"
STALL_1 = 0x000FE200000E0000  # no scoreboards: 7, 7, none waited for; one cycle


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Import the modules of the bounds, which lie beside each other."""
    monkeypatch.syspath_prepend(str(BENCH))
    names = ("sass", "turn", "issue", "machines", "bounds")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def listing(text: str) -> str:
    """Return instructions and labels, one a line, as nvdisasm prints them."""
    lines = [".text.kernel:"]
    for number, line in enumerate(text.split("\n")):
        line = line.strip()
        if line.endswith(":"):
            lines.append(line)
        elif line:
            lines.append(f"        /*{16 * number:04x}*/   {line} ;   /* 0x{number:016x} */")
            lines.append(f"                             /* 0x{STALL_1:016x} */")
    return "\n".join(lines)


def function(sass: ModuleType, text: str) -> object:
    items = sass._functions(listing(text))["kernel"]
    return sass.Function(sass._blocks(items))


KERNEL = """
  MOV R0, RZ
.L_main:
  ISETP.GE P0, R0, R1
  @P0 BRA `(.L_products)
  @P1 BRA `(.L_products)
.L_copy:
  @P2 BRA `(.L_absent)
  IMAD.WIDE R2, R3, R4, R5
  IMAD.WIDE R6, R7, R8, R9
  BRA `(.L_read)
.L_absent:
  MOV R2, RZ
.L_read:
  LDGSTS.E.BYPASS.128 [R0], [R2.64]
  ISETP.GE P3, R10, R11
  @P3 BRA `(.L_copy)
.L_products:
  @!P4 BRA `(.L_unmasked)
  FSEL R12, R13, R14
.L_unmasked:
  HMMA.16816.F32.BF16 R16, R20, R22, R16
  @P5 BRA `(.L_main)
  EXIT
"""


def test_a_turn_reads_its_tile_and_passes_masks(bench: SimpleNamespace) -> None:
    """The copies that a tile needs are made, with their addresses; what is rare is passed by."""
    turn = bench.turn.usual_turn(
        function(bench.sass, KERNEL), [bench.turn.Accesses("LDGSTS", 4)]
    )
    count = bench.sass.count(turn)
    assert (count["LDGSTS"], count["IMAD"], count["HMMA"], count["FSEL"]) == (4, 8, 1, 0)
    assert count["EXIT"] == 0


def test_a_turn_that_reads_nothing_is_the_shortest(bench: SimpleNamespace) -> None:
    turn = bench.turn.usual_turn(
        function(bench.sass, KERNEL), [bench.turn.Accesses("LDGSTS", 0)]
    )
    assert [one.name for one in turn] == ["ISETP", "BRA", "BRA", "HMMA", "BRA"]


def test_reads_that_no_turn_has_are_an_error(bench: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"no turn .* has 3 LDG of 16 bytes, only \[0\]"):
        bench.turn.usual_turn(function(bench.sass, KERNEL), [bench.turn.Accesses("LDG", 3)])


def test_code_without_products_has_no_turn(bench: SimpleNamespace) -> None:
    text = KERNEL.replace("HMMA.16816.F32.BF16 R16, R20, R22, R16", "FADD R1, R2, R3")
    assert (
        bench.turn.usual_turn(function(bench.sass, text), [bench.turn.Accesses("LDG")]) is None
    )


def test_a_jump_backwards_is_no_loop_by_itself(bench: SimpleNamespace) -> None:
    """Rare code stands behind the function's end, and jumps back into it."""
    text = """
      @P0 BRA `(.L_rare)
    .L_on:
      FADD R1, R2, R3
      EXIT
    .L_rare:
      MOV R2, RZ
      BRA `(.L_on)
    """
    assert function(bench.sass, text).loops == []


def test_a_call_within_the_function_is_a_jump(bench: SimpleNamespace) -> None:
    text = KERNEL.replace("@P3 BRA", "@P4 CALL.REL.NOINC `(.L_products)\n  BRA")
    turn = bench.turn.usual_turn(function(bench.sass, text), [bench.turn.Accesses("LDGSTS", 4)])
    assert bench.sass.count(turn)["HMMA"] == 1


def test_control_bits(bench: SimpleNamespace) -> None:
    control = 3 | 2 << 5 | 7 << 8 | 0b10001 << 11
    one = bench.sass._decoded("@!P0 LDS.128 R4, [R2]", control)
    assert (one.stall, one.result_board, one.read_board, one.wait_mask) == (3, 2, 7, 0b10001)
    assert (one.opcode, one.name, one.is_conditional) == ("LDS.128", "LDS", True)


def instruction(bench: SimpleNamespace, text: str, **control: int) -> object:
    given = {"stall": 1, "result_board": 7, "read_board": 7, "wait_mask": 0} | control
    return bench.sass.Instruction(text, **given)


@pytest.mark.parametrize(
    ("code", "warps", "cycles"),
    [
        (["FADD R1, R2, R3"] * 10, 1, 10),
        (["FADD R1, R2, R3"] * 10, 3, 30),
        (["HMMA.16816.F32.BF16 R1, R2, R3"] * 4, 1, 128),
        (["HMMA.16816.F32.BF16 R1, R2, R3"] * 4, 2, 256),
        (["LDSM.16.M88.4 R1, [R2]"] * 8, 2, 256),  # 512 bytes each, at 32 a cycle
    ],
)
def test_cycles_of_one_unit(
    bench: SimpleNamespace, code: list[str], warps: int, cycles: int
) -> None:
    turn = tuple(instruction(bench, text) for text in code)
    found = bench.issue.cycles_a_turn(turn, warps, product_cycles=32, turns=20)
    assert found == pytest.approx(cycles, rel=0.06)


def test_another_warp_fills_what_one_waits_for(bench: SimpleNamespace) -> None:
    load = instruction(bench, "LDS R1, [R2]", result_board=0)
    use = instruction(bench, "FADD R3, R1, R1", wait_mask=1)
    one, two = (bench.issue.cycles_a_turn((load, use), warps, 6) for warps in (1, 2))
    assert 30 <= one <= two <= one + 3


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared_bytes", "ctas"),
    [
        ("sm90", 249, 128, 87040, 2),  # 256 registers a thread
        ("sm120", 249, 128, 87040, 1),
        ("sm90", 161, 128, 1024, 3),  # 168 registers a thread
        ("sm90", 129, 256, 32768, 1),  # one register too many for a second
        ("sm89", 16, 1024, 0, 1),
    ],
)
def test_ctas_that_fit(
    bench: SimpleNamespace,
    arch: str,
    registers: int,
    threads: int,
    shared_bytes: int,
    ctas: int,
) -> None:
    assert bench.machines.resident_ctas(arch, registers, threads, shared_bytes) == ctas


def test_clocks_are_those_of_the_data_sheets(bench: SimpleNamespace) -> None:
    clocks = {one.name: one.cycles_a_second / 1e9 for one in bench.machines.MACHINES}
    assert clocks == pytest.approx(
        {"H200": 1.83, "B200": 1.856, "RTX 5090": 2.407, "GB10": 2.543}, abs=0.01
    )


def test_every_variant_of_every_operator_is_there(bench: SimpleNamespace) -> None:
    names = {str(variant) for variant in bench.bounds.variants("sm90")}
    assert {"accept", "attention, head_dim 64", "attention, head_dim 64, fp8_cache 1"} <= names
    assert not any("fp8_cache" in str(variant) for variant in bench.bounds.variants("sm80"))


@pytest.mark.slow
def test_bounds_of_a_kernel(
    bench: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each tile of one head_dim has a bound, and both files say the same."""
    pytest.importorskip("cuda.bindings.nvrtc")
    try:
        bench.bounds.find_nvdisasm()
    except SystemExit as missing:
        pytest.skip(str(missing))
    made = {name: tmp_path / f"bounds.{name}" for name in ("json", "markdown")}
    files = [text for name, path in made.items() for text in (f"--{name}", str(path))]
    monkeypatch.setattr(
        sys, "argv", ["bounds.py", "--archs", "sm90", "--sources", "attention", *files]
    )
    variant = KernelVariant("attention", (("head_dim", 128),))
    monkeypatch.setattr(bench.bounds, "variants", lambda _: [variant])
    bench.bounds.main()
    found = json.loads(made["json"].read_text())
    kernels = {one["kernel"] for one in found["bounds"]}
    assert kernels == {f"dflash_attention_d128_r{rows}" for rows in (16, 32, 64, 128)}
    for one in found["bounds"]:
        assert one["bytes"] == 2 * 2 * 128 * (32 if one["kernel"].endswith("r128") else 64)
        assert 0.1 < one["share_of_copy_bandwidth"] < 3
    text = made["markdown"].read_text()
    assert text == capsys.readouterr().out
    assert re.search(r"\| attention_d128_r64 \| \d+ instructions, [\d.]+ B, \d+ %", text)
