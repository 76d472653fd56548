"""Dependencies that call home or write into HOME are told not to, before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trtllm_dflash.environment import DEFAULTS, matplotlib_without_traces, set_defaults


def test_a_variable_that_the_user_has_set_stays() -> None:
    environment = {"ORT_DISABLE_TELEMETRY": "0"}
    set_defaults(environment)
    assert environment == DEFAULTS | {"ORT_DISABLE_TELEMETRY": "0"}


def test_importing_the_package_sets_the_defaults() -> None:
    environment = {name: text for name, text in os.environ.items() if name not in DEFAULTS}
    script = (
        "import os, sys, trtllm_dflash;"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    assert done.stdout.split() == ["1", "False"]


def test_matplotlib_keeps_its_list_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    environment = {"FONTCONFIG_FILE": "mine"}
    with matplotlib_without_traces(environment):
        folder = Path(environment["MPLCONFIGDIR"])
        assert Path(environment["FONTCONFIG_FILE"]).parent == folder
    assert environment == {"FONTCONFIG_FILE": "mine"}
    assert not folder.exists()
    environment = {"MPLCONFIGDIR": "mine"}
    with matplotlib_without_traces(environment):
        assert environment == {"MPLCONFIGDIR": "mine"}
