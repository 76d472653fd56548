"""README.md and docs/: their commands run, their links lead somewhere, their tables are current."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from tests.doc_tables import TABLES, rendered, visible_options
from tests.house.rules import FLOORS, floor_of
from trtllm_dflash import __version__
from trtllm_dflash.hardware.archs import ARCHS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MATRIX = (ROOT / "docs" / "support-matrix.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
MAX_README_WORDS = 1000
LABELS = {"gpu", "built", "cpu", "paper", "no"}
# What installs or tests everything cannot be run by the tests that it runs; CI runs it on a clean
# checkout. tests/examples starts the server that `make triton-demo` starts.
RUN_ELSEWHERE = ("make ", "pip install ", "dflash-trt serve")
NEEDS = {"dflash-trt quantize": "modelopt"}
TRITON_OPTIONS = {"--model-control-mode"}
# The modules that an extra of pyproject.toml brings.
MODULES = {
    "bounds": set(),  # a program, nvdisasm
    "browser": {"axe_playwright_python", "PIL", "playwright"},
    "demo": {"gguf"},
    "profile": {"matplotlib", "PIL"},
    "quantize": {"modelopt", "torch"},
    "rtx": {"tensorrt_rtx", "cuda"},
    "serve": {"fastapi", "httptools", "prometheus_client", "pydantic", "starlette", "uvicorn"},
    "run": {"tensorrt_rtx", "cuda"},
    "run-tensorrt": {"tensorrt", "cuda"},
    "tensorrt": {"tensorrt", "cuda"},
    "test": {"hypothesis", "pytest", "torch"},
}
_HIDE = """
import sys
from importlib.machinery import PathFinder

class Finder:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden!r}
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Finder if one is PathFinder else one for one in sys.meta_path]
"""
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    found = _BLOCK.findall((ROOT / page).read_text())
    return [body for name, body in found if name == language]


def commands_in(block: str) -> list[str]:
    """Return the command lines of a block, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [
        line.split("  #")[0].strip()
        for line in lines
        if line.strip() and not line.startswith("#")
    ]


def commands(page: str) -> list[str]:
    """Return the command lines of a page in order."""
    return [command for block in blocks(page, "bash") for command in commands_in(block)]


def runnable(page: str) -> list[str]:
    """Return the command lines of a page that a test can run."""
    return [command for command in commands(page) if not command.startswith(RUN_ELSEWHERE)]


def shown_outputs(page: str) -> dict[str, str]:
    """Return the output that a page shows for the last command of a block, by command."""
    found = list(_BLOCK.finditer((ROOT / page).read_text()))
    shown = {}
    for block, after in pairwise(found):
        between = block.string[block.end() : after.start()]
        if (block[1], after[1]) == ("bash", "text") and not between.strip():
            shown[commands_in(block[2])[-1]] = after[2]
    return shown


def without_figures(text: str) -> list[str]:
    """Return the lines of a text without what differs from run to run: figures, bars, spaces."""
    bare = (re.sub(r"[\d.]+|[━╸╺]+", "#", line) for line in text.splitlines())
    return ["".join(line.split()) for line in bare if line.strip()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make a folder that looks like the checkout, so that commands write nothing into that."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "demo").mkdir()
    for engine in (ROOT / "demo").iterdir():
        (tmp_path / "demo" / engine.name).symlink_to(engine)
    return tmp_path


def extras_of_make_demo() -> set[str]:
    """Return the extras that `make demo` installs, which is all that a reader has."""
    rule = (ROOT / "Makefile").read_text().split(".venv/.demo:")[1].split("\n\n")[0]
    found = re.search(r"--editable '\.\[([\w,]+)\]'", rule)
    assert found is not None
    return set(found[1].split(","))


def modules_hidden_from(page: str) -> set[str]:
    """Return what `make demo` does not install, but for what a command of the page asks for."""
    installed = extras_of_make_demo()
    for start, module in NEEDS.items():
        if any(command.startswith(start) for command in commands(page)):
            installed |= {extra for extra, modules in MODULES.items() if module in modules}
    missing = set().union(*(MODULES[extra] for extra in MODULES.keys() - installed))
    return missing - set().union(*(MODULES[extra] for extra in installed))


def run_commands(page: str, place: Path) -> None:
    """Run the commands of a page in order, and compare what it shows of their output.

    Packages are hidden from them that the reader does not have.
    """
    for command in runnable(page):
        for start, module in NEEDS.items():
            if command.startswith(start):
                pytest.importorskip(module)
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    hiding = place / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(_HIDE.format(hidden=modules_hidden_from(page)))
    environment["PYTHONPATH"] = str(hiding)
    shown = shown_outputs(page)
    for command in runnable(page):
        done = subprocess.run(
            shlex.split(command), cwd=place, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed = without_figures(done.stdout + done.stderr)
        for line in without_figures(shown.get(command, "")):
            assert line in printed, f"{command}\n{done.stdout}\n{done.stderr}"


def test_every_extra_has_its_modules() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"].keys() == MODULES.keys()
    assert {"torch", "modelopt"} <= modules_hidden_from("README.md")
    assert "matplotlib" not in modules_hidden_from("docs/cli.md")


@pytest.mark.demo
def test_readme_commands_run(place: Path) -> None:
    run_commands("README.md", place)


@pytest.mark.slow
@pytest.mark.demo("sm120")
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if runnable(page)])
def test_docs_commands_run(page: str, place: Path) -> None:
    run_commands(page, place)


@pytest.mark.demo
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page == "README.md" else pytest.mark.slow)
        for page in PAGES
        if blocks(page, "python")
    ],
)
def test_python_runs(page: str, place: Path) -> None:
    for block in blocks(page, "python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=place, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_readme_sets_up_with_two_commands() -> None:
    assert [c for c in commands("README.md") if c.startswith("make")] == [
        "make demo",
        "make test",
    ]


def test_readme_shows_an_output() -> None:
    assert shown_outputs("README.md")


def test_readme_is_short() -> None:
    assert len(README.split()) <= MAX_README_WORDS


@pytest.mark.parametrize("page", PAGES[1:])
def test_readme_links_every_page(page: str) -> None:
    assert f"]({page})" in README


def _anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def _markdown_files() -> list[str]:
    pages = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return sorted(str(page) for page in pages if not page.parts[0].startswith((".", "demo")))


@pytest.mark.parametrize("page", _markdown_files())
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        if "://" in target:
            continue
        linked = path.parent / target if target else path
        assert linked.exists(), f"{page}: {target}"
        assert not anchor or anchor in _anchors(linked), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", TABLES)
def test_generated_parts_are_current(page: str) -> None:
    """`python -m tests.doc_tables` rewrites them."""
    assert rendered(page) == (ROOT / page).read_text()


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_named_options_exist(page: str) -> None:
    """Old spellings, which stay as hidden aliases, are not in the documentation.

    Commands of other programs stand in blocks of `sh`, with options of their own.
    """
    text = (ROOT / page).read_text()
    for block in blocks(page, "sh"):
        ours = [line for line in commands_in(block) if line.startswith("dflash-trt ")]
        text = text.replace(block, "\n".join(ours))
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    assert used - TRITON_OPTIONS <= visible_options()


def test_arch_table_matches_the_code() -> None:
    rows = dict(re.findall(r"^\| `(cpu|sm\d+)` \| (\w+) \|", MATRIX, re.MULTILINE))
    assert rows == {name: arch.backend for name, arch in ARCHS.items()}


def test_readme_table_names_every_arch() -> None:
    section = README.split("## Supported models and GPUs")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(ARCHS)


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "tests/README.md"])
def test_named_files_exist(page: str) -> None:
    bases = (
        ROOT,
        ROOT / "trtllm_dflash",
        (ROOT / page).parent,
        ROOT / "trtllm_dflash" / "graph",
    )
    for name in re.findall(r"`([\w./-]+(?:\.py|/))`", (ROOT / page).read_text()):
        assert any((base / name).exists() for base in bases), f"{page}: {name}"


def test_map_lists_every_room_from_the_bottom_up() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("| room of `trtllm_dflash/`")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    rooms = [name for cell in cells for name in re.findall(r"`(\w+)(?:/|\.py)`", cell)]
    floors = [floor for floor in map(floor_of, rooms) if floor is not None]
    assert sorted(rooms) == sorted(room for row in FLOORS for room in row)
    assert floors == sorted(floors)


def test_architecture_explains_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "architecture.md").read_text().split("## Dependencies")[1]
    names = [re.split(r"[<>=~\[]", wanted)[0] for wanted in project["dependencies"]]
    assert [name for name in names if not re.search(rf"\b{re.escape(name)}\b", page)] == []


def _labels() -> list[str]:
    tables = MATRIX.split("| capability | label |")[1:]
    rows = [row for table in tables for row in table.split("\n\n")[0].strip().splitlines()[1:]]
    labels = [re.search(r"\| \*\*(\w+)\*\* \|$", row) for row in rows]
    assert all(labels), rows
    return [label[1] for label in labels if label]


def test_every_capability_has_a_label() -> None:
    assert set(_labels()) <= LABELS
    assert len(_labels()) >= 30


def test_status_line_agrees_with_the_labels() -> None:
    """While no capability is proved on a GPU, README and matrix say so."""
    status = "**No GPU has run an engine yet.**"
    assert (status in README) == ("gpu" not in _labels())


def test_speedups_are_the_measured_ones() -> None:
    """Compare README.md and docs/performance.md with speed.json of `make bench`."""
    totals = json.loads((ROOT / "examples" / "benchmark" / "speed.json").read_text())["totals"]
    ratios = {
        name: systems["plain"]["seconds"] / systems["draft 3"]["seconds"]
        for name, systems in totals.items()
    }
    assert f"{ratios['heldout']:.2f} times as fast" in README
    assert f"**{ratios['heldout']:.2f}×**" in PERFORMANCE
    assert f"**{ratios['unseen']:.2f}×**" in PERFORMANCE
    for name, ratio in ratios.items():
        if name.startswith("heldout/"):
            assert f"{name.removeprefix('heldout/')} {ratio:.2f}" in PERFORMANCE
    assert all(
        systems["plain"]["prompts"] == systems["draft 3"]["same_text"]
        for systems in totals.values()
    )


def test_version_has_a_changelog_entry() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(
        rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE
    )


def test_package_is_typed() -> None:
    assert (ROOT / "trtllm_dflash" / "py.typed").exists()


def _tracked_texts() -> dict[str, str]:
    """Return the tracked text files by name, without this one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    suffixes = {".py", ".md", ".j2", ".json", ".jsonl", ".toml", ".txt", ".yml", ".yaml", ""}
    names = [name for name in listed.stdout.split("\0") if Path(name).suffix in suffixes]
    files = {name: ROOT / name for name in names if name}
    return {
        name: path.read_text(errors="ignore")
        for name, path in files.items()
        if path.is_file() and path != Path(__file__)
    }


def test_tree_names_no_machine_path() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:work|root|tmp|home)/\w")
    assert [name for name, text in _tracked_texts().items() if pattern.search(text)] == []


def test_tree_installs_from_the_repository_only() -> None:
    """The package is on no index, so `pip install dflash-trt` must stand nowhere."""
    pattern = re.compile(r"pip install [\"']?dflash-trt|dflash-trt\[\w")
    assert [name for name, text in _tracked_texts().items() if pattern.search(text)] == []
