"""Structures are read from the kernels' headers, and others than those of plain fields refused."""

from __future__ import annotations

import re

import pytest

from trtllm_dflash.errors import BuildError
from trtllm_dflash.trt_plugins import kernel_sources


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("struct Other {\n  int a;\n};\n", "x.h has no struct Made"),
        ("struct Made {\n  int a, b;\n};\n", "expected one field a line, got 'int a, b;'"),
        ("struct Made {\n  double a;\n};\n", "a is double, expected a pointer, int or float"),
        ("struct Made {\n  float a[2];\n};\n", "expected one field a line, got 'float a"),
    ],
)
def test_structure_refuses_other_fields(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_sources, "kernel_sources", lambda: {"x.h": text.encode()})
    with pytest.raises(BuildError, match=re.escape(words)):
        kernel_sources.structure("x.h", "Made")


def test_structure_refuses_unknown_header() -> None:
    with pytest.raises(BuildError, match=r"there is no kernel header x\.h, only accept\.cu, "):
        kernel_sources.structure("x.h", "Made")
