"""Dependencies that call home or write into HOME are told not to, before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ELSEWHERE, import_or_fail
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


def test_a_package_that_we_install_must_be_there() -> None:
    assert import_or_fail("json").loads("1") == 1
    with pytest.raises(ModuleNotFoundError, match="no_package_of_ours"):
        import_or_fail("no_package_of_ours.part")
    for name in ELSEWHERE:
        assert import_or_fail(name, skip=str.upper) == name.upper()


def test_all_tests_want_what_the_extras_bring() -> None:
    script = "import pytest; pytest.importorskip('no_package_of_ours')"
    for required, error in (("1", "ModuleNotFoundError"), ("0", "Skipped")):
        done = subprocess.run(
            [sys.executable, "-c", f"import tests.conftest; {script}"],
            env={**os.environ, "DFLASH_REQUIRE_ALL": required},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 1
        assert error in done.stderr
