"""The README keeps its word: its commands run, its links lead somewhere, its tables say what the
code says.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trtllm_dflash import __version__
from trtllm_dflash.builder.pair_support import list_support, markdown_table
from trtllm_dflash.hardware.archs import ARCHS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LABELS = {"gpu", "built", "cpu", "paper", "no"}
# What installs and tests everything cannot be run by the tests it runs; CI runs it, on a clean
# checkout.
RUN_ELSEWHERE = {
    "make demo",
    "make test",
    "make bench",
    "make bench-build",
    "make bench-quantization",
}


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every command line of the README, comments cut, continuation lines joined."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [
        line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout, so that what the commands write stays out of it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "demo").mkdir()
    for engine in (ROOT / "demo").iterdir():
        (folder / "demo" / engine.name).symlink_to(engine)
    return folder


@pytest.mark.demo
def test_commands_run(place: Path) -> None:
    """In order, as a reader would type them."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    typed = [command for command in commands() if command not in RUN_ELSEWHERE]
    assert typed
    for command in typed:
        done = subprocess.run(
            shlex.split(command), cwd=place, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.demo
def test_python_runs(place: Path) -> None:
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=place, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_first_two_commands_do_everything() -> None:
    assert commands()[:2] == ["make demo", "make test"]


def _pages() -> list[str]:
    pages = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return sorted(str(page) for page in pages if not page.parts[0].startswith((".", "demo")))


@pytest.mark.parametrize("page", _pages())
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page}: {target}"


def test_arch_table_is_the_code_s() -> None:
    rows = dict(re.findall(r"^\| `(cpu|sm\d+)` \| (\w+) \|", README, re.MULTILINE))
    assert rows == {name: arch.backend for name, arch in ARCHS.items()}


def test_table_of_pairs_is_the_code_s() -> None:
    """The pairs that can be built; all others are in config/README.md."""
    buildable = [row for row in list_support() if row.archs]
    counts = (
        f"{len(list_support())} of the published pairs, why {len(list_support()) - len(buildable)} of them"
        " are refused"
    )
    assert counts in README
    assert markdown_table(buildable) in README


def test_every_capability_has_a_label() -> None:
    table = README.split("| capability | label |")[1].split("\n\n")[0]
    labels = re.findall(r"\| \*\*(\w+)\*\*", table)
    assert len(labels) == table.strip().count("\n")
    assert set(labels) <= LABELS


def test_the_version_has_a_changelog_entry() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_no_machine_paths() -> None:
    """The tree speaks of no machine that it was made on."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    pattern = re.compile(r"(?<![\w.])/(?:work|root|tmp|home)/\w")
    found = []
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".json", ".jsonl", ".toml", ".txt", ".yml", ""}
            and path.is_file()
        ):
            text = path.read_text(errors="ignore")
            found += [name] if pattern.search(text) and path != Path(__file__) else []
    assert found == []
