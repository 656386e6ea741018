"""The house rules of docs/architecture.md, read from the source with ast."""

import ast
from pathlib import Path

import pytest

FLOORS = {
    "core": 0,
    "models": 1,
    "data": 1,
    "metrics": 1,
    "policies": 2,
    "decoding": 3,
    "worldmodel": 4,
    "envs": 5,
    "training": 6,
    "evaluation": 6,
    "mbrl": 7,
    "planning": 7,
    "posttrain": 7,
    "reports": 8,
    "configs": 9,
    "serve": 10,
    "commands": 11,
    "scaling": 12,
    "cli": 13,
    "__main__": 14,
}
#: Imports that still go upwards: each is a debt.
SAME_FLOOR = {("decoding", "worldmodel"), ("models", "data")}
NEVER_IMPORTED = {"torchvision", "diffusers", "pickle", "transformers"}
MOST_LINES = 400

PACKAGE = Path(__file__).parents[1] / "src" / "ivideogpt"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Every absolute module name in ``path``, also those imported inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively; write the whole name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards_only(path: Path) -> None:
    here = room(path)
    assert here in FLOORS, f"{here} has no floor; give it one in FLOORS and in docs/architecture.md"
    for name in imported_modules(path):
        parts = name.split(".")
        assert parts[0] not in NEVER_IMPORTED, f"{path.name} imports {parts[0]}"
        if parts[0] != "ivideogpt" or len(parts) < 2 or parts[1] in (here, "__version__"):
            continue
        there = parts[1]
        assert there in FLOORS, f"{path.name} imports {name}: import from the module that defines it"
        assert FLOORS[there] < FLOORS[here] or (here, there) in SAME_FLOOR, f"{path.name} ({here}) imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_file_is_called_utils() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc")]
