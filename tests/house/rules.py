"""House rules that a program can check; each function returns one line per violation.

`python -m tests.house.rules trtllm_dflash/graph README.md` lists the violations of some paths.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trtllm_dflash"
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_COLUMNS = 400, 60, 100
MAX_TEST_NAME, MAX_WORDS = 60, 25

# From the bottom up: a room imports from rooms of lower rows only.
FLOORS = (
    ("environment", "errors", "log", "templates", "termination", "unique_keys"),
    ("atomic", "utf8_path"),
    ("catalog",),
    ("hardware", "trt", "tokenizing"),
    ("models",),
    ("checkpoint",),
    ("options",),
    ("engine_dir",),  # config.json records the sizes that options resolve to
    ("graph",),
    ("trt_plugins", "trtllm_export"),
    ("builder",),
    ("runtime",),
    ("evaluate", "profile", "quantize"),
    ("estimate", "http_server", "triton_server"),
    ("cli",),
)
# The runtime reads engine directories, not how they come to be.
NEVER = {"runtime": {"builder", "checkpoint", "graph", "models"}}
BACKEND_IMPORTERS = {
    "tensorrt_rtx": {"trt", "builder", "trt_plugins", "runtime"},
    "tensorrt": {"trt"},
    "onnxruntime": {"builder", "runtime", "evaluate"},
    "transformers": {"tokenizing", "quantize", "profile"},
    "fastapi": {"http_server"},
    "matplotlib": {"profile"},
    "starlette": {"http_server"},
    "torch": {"quantize", "profile"},
    "uvicorn": {"http_server"},
    "modelopt": {"quantize"},
}
NEVER_IMPORTED = {"pickle"}

# Words that only this project used, or used for many things at once; the glossary has the field's.
PRIVATE_WORDS = {
    "codes": "packed",
    "dialect": "unsupported drafter, or variant",
    "door": "loader",
    "fifteen": "the claim it stands for",
    "kind": "the thing itself: category, flavor, role, type",
    "kinds": "the thing itself",
    "numbers": "dequantized, or fields",
    "outliers": "explanations",
    "peers": "external systems",
    "sides": "systems",
    "tau": "acceptance_length",
    "underway": "in flight",
    "vain": "discarded",
}
_NOT_A_VERB = re.compile(
    r"(?i)(?:a|all|an|and|any|as|at|by|each|every|everything|for|from|how|if|in|it|its|most|no|none"
    r"|of|on|one|only|our|some|that|the|their|them|these|they|this|those|to|two|what|when|where"
    r"|whether|which|who|why|with)\b"
)


def sources(folder: Path) -> list[Path]:
    """Return the Python files below `folder`."""
    return sorted(path for path in folder.rglob("*.py") if ".venv" not in path.parts)


def floor_of(part: str) -> int | None:
    """Return the row of FLOORS that holds a room, None for none of them."""
    return next((row for row, rooms in enumerate(FLOORS) if part in rooms), None)


def room_of(path: Path) -> str:
    """Return the room of the package that a file stands in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of everything that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def misdirected(path: Path, text: str) -> list[str]:
    """List imports in `text`, taken as the file `path`, that go upwards or are not the room's."""
    part, found = room_of(path), []
    floor = floor_of(part)
    if floor is None:
        return []
    for name in imports(ast.parse(text)):
        top, _, rest = name.partition(".")
        if top in NEVER_IMPORTED or part not in BACKEND_IMPORTERS.get(top, {part}):
            found.append(f"{path.name}: {name}")
        other = rest.split(".")[0]
        if top != "trtllm_dflash" or other == part or floor_of(other) is None:
            continue
        if (floor_of(other) or 0) >= floor or other in NEVER.get(part, ()):
            found.append(f"{path.name}: {name}")
    return found


def oversized(path: Path) -> list[str]:
    """List what in a file is longer or wider than the house allows."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = []
    if len(lines) > MAX_FILE_LINES:
        found.append(f"{path.name}: {len(lines)} lines")
    found += wide_lines(path)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{path.name}: {node.name} has {length} lines")
    return found


def wide_lines(path: Path) -> list[str]:
    """List the lines of a file that have more columns than the house allows."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if len(line) > MAX_COLUMNS:
            found.append(f"{path.name}:{number}: {len(line)} columns")
    return found


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def dense_comprehensions(path: Path) -> list[str]:
    """List nested comprehensions of four lines and more: a loop with a name reads better."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, _COMPREHENSIONS):
            continue
        inner = [other for other in ast.walk(node) if isinstance(other, _COMPREHENSIONS)]
        nested = len(inner) > 1 or len(node.generators) > 1
        if nested and (node.end_lineno or node.lineno) - node.lineno >= 3:
            found.append(f"{path.name}:{node.lineno}: a nested comprehension of four lines")
    return found


def _defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr


def private_words(path: Path) -> list[str]:
    """List names defined in a file, and the file's own, that use one of PRIVATE_WORDS."""
    found = []
    for line, name in [
        (0, path.stem),
        *_defined_names(ast.parse(path.read_text(encoding="utf-8"))),
    ]:
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        words = set(spaced.split("_")) & PRIVATE_WORDS.keys()
        found += [f"{path.name}:{line}: {name}: say {PRIVATE_WORDS[word]!r}" for word in words]
    return found


def long_test_names(path: Path) -> list[str]:
    """List test functions whose name has more than MAX_TEST_NAME characters."""
    return [
        f"{path.name}: {node.name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and len(node.name) > MAX_TEST_NAME
    ]


def repeated_class_names(folder: Path) -> list[str]:
    """List class names that stand for two things in a folder."""
    places = defaultdict(list)
    for path in sources(folder):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path.relative_to(folder).as_posix())
    return [f"{name}: {', '.join(where)}" for name, where in places.items() if len(where) > 1]


def repeated_file_names(folder: Path) -> list[str]:
    """List file names that stand in more than two rooms."""
    rooms = defaultdict(set)
    for path in sources(folder):
        if not path.name.startswith("__"):
            rooms[path.name].add(path.parent.relative_to(folder).as_posix())
    return [f"{name}: {', '.join(sorted(w))}" for name, w in rooms.items() if len(w) > 2]


def shadowing_files(folder: Path) -> list[str]:
    """List files named like a module of the standard library or a builtin."""
    taken = sys.stdlib_module_names | set(dir(builtins))
    files = [path for path in sources(folder) if not path.name.startswith("__")]
    return [path.relative_to(folder).as_posix() for path in files if path.stem in taken]


def _docstrings(tree: ast.AST) -> Iterator[tuple[ast.AST, int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node, getattr(node, "lineno", 1), text


def passive_docstrings(path: Path) -> list[str]:
    """List functions whose docstring does not begin with a verb."""
    found = []
    for node, line, text in _docstrings(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("test_"):
            continue
        if _NOT_A_VERB.match(text):
            found.append(f"{path.name}:{line}: {node.name}: {text.splitlines()[0][:60]!r}")
    return found


def _paragraphs(text: str) -> Iterator[str]:
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "\n\n", text, flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#>]|\d+\.)\s)", text):
        lines = block.strip().splitlines()
        # Tables, diagrams and aligned lists are not sentences.
        if lines and not any(re.search(r"\S {2,}\S|[│─┬┴├└]|^\s*\|", line) for line in lines):
            yield " ".join(line.strip() for line in lines)


def long_sentences_in(text: str) -> list[str]:
    """List the sentences of a text that have more than MAX_WORDS words, counted without code."""
    found = []
    for paragraph in _paragraphs(text):
        plain = re.sub(r"`[^`]*`", "X", re.sub(r"\]\([^)]*\)", "]", paragraph))
        for sentence in re.split(r"(?<=[.!?;:])\s+(?=[A-Z\"'(`\[*X])", plain):
            words = [word for word in sentence.split() if re.search(r"[A-Za-z0-9]", word)]
            if len(words) > MAX_WORDS:
                found.append(f"{len(words)} words: {sentence[:90]}")
    return found


def long_sentences(path: Path) -> list[str]:
    """List the sentences that are too long in a page, or in a Python file's docstrings."""
    if path.suffix == ".md":
        return [
            f"{path.name}: {found}"
            for found in long_sentences_in(path.read_text(encoding="utf-8"))
        ]
    lines = []
    for _, line, text in _docstrings(ast.parse(path.read_text(encoding="utf-8"))):
        lines += [f"{path.name}:{line}: {found}" for found in long_sentences_in(text)]
    return lines


def violations(paths: Iterable[Path]) -> Iterator[str]:
    """Yield every violation in some files and folders."""
    for given in paths:
        files = [given] if given.is_file() else [*sources(given), *sorted(given.rglob("*.md"))]
        for path in files:
            if path.suffix not in (".py", ".md"):
                continue
            yield from long_sentences(path)
            if path.suffix != ".py":
                continue
            checks = [oversized, dense_comprehensions, passive_docstrings, long_test_names]
            if path.resolve().is_relative_to(PACKAGE):
                checks.append(private_words)
                yield from misdirected(path.resolve(), path.read_text())
            for check in checks:
                yield from check(path)
    yield from repeated_class_names(PACKAGE)
    yield from repeated_file_names(PACKAGE)
    yield from shadowing_files(PACKAGE)


if __name__ == "__main__":
    print("\n".join(violations(Path(name) for name in sys.argv[1:])))
