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
    "training": 7,
    "evaluation": 6,
    "mbrl": 8,
    "planning": 8,
    "posttrain": 8,
    "wmrl": 9,
    "reports": 9,
    "configs": 10,
    "serve": 11,
    "commands": 12,
    "scaling": 11,
    "cli": 14,
    "__main__": 15,
}
NEVER_IMPORTED = {"torchvision", "diffusers", "pickle", "transformers"}
#: A file is as long as its idea.
MOST_LINES = 600

#: Public names that occur more than once: commands are called as what they do, and importers of one form are called by
#: name.
SAME_NAMES = {
    "evaluate",  # the command, and the evaluation of a model
    "train_tokenizer",
    "train_transformer",
    "tasks",  # the shards of each importer
    "facts",  # the dataset of each importer
}
LEAST_LINES = 60
#: Shorter modules with a single importer that stay.
SMALL_MODULES = {
    "models/token_forecast.py",  # a network of its own
    "configs/metaworld.py",  # presets of one world
    "data/convert/importers.py",  # the registry of importers
    "configs/registry.py",  # the registry of presets
    "policies/registry.py",  # the registry of policies
    "envs/record/moving_square.py",  # recording of one world
}

PACKAGE = Path(__file__).parents[1] / "src" / "ivideogpt"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def package_of(path: Path) -> str:
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
    importer = package_of(path)
    assert importer in FLOORS, f"{importer} has no floor; give it one in FLOORS and in docs/architecture.md"
    for name in imported_modules(path):
        parts = name.split(".")
        assert parts[0] not in NEVER_IMPORTED, f"{path.name} imports {parts[0]}"
        if parts[0] != "ivideogpt" or len(parts) < 2 or parts[1] in (importer, "__version__"):
            continue
        imported = parts[1]
        assert imported in FLOORS, f"{path.name} imports {name}: import from the module that defines it"
        assert FLOORS[imported] < FLOORS[importer], f"{path.name} ({importer}) imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_file_is_called_utils() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc")]


def module_name(path: Path) -> str:
    return ".".join(("ivideogpt", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imports_of_files() -> dict[str, set[str]]:
    """The modules of the package that each module imports, type-only imports included."""
    modules = {module_name(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for name in imported_modules(path):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module:
                graph[module].add(name)
    return graph


def test_no_two_files_import_each_other_even_for_types() -> None:
    graph, finished = imports_of_files(), set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join((*path[path.index(module) :], module))
        if module not in finished:
            for imported in sorted(graph[module]):
                visit(imported, (*path, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    questions = {"What", "How", "Where", "Whether", "Of", "From", "Who", "Which", "If", "When"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                place = f"{path.name}:{getattr(node, 'lineno', 1)}"
                assert text.split()[0].strip(",.:") not in questions, f"{place} begins with {text.split()[0]}"


def test_no_variable_is_a_pronoun_or_a_participle() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else ""
            name = node.arg if isinstance(node, ast.arg) else name
            assert name not in {"found", "some", "one", "known", "said", "told"}, f"{path.name}:{node.lineno} {name}"


def test_a_public_name_occurs_once() -> None:
    files: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                files.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    repeated = {name: paths for name, paths in files.items() if len(paths) > 1 and name not in SAME_NAMES}
    assert not repeated, "a public name has one meaning; rename all but one of them"


def test_a_short_module_with_one_importer_joins_it() -> None:
    importers: dict[str, list[str]] = {}
    for module, imported in imports_of_files().items():
        for name in imported:
            importers.setdefault(name, []).append(module)
    short = {
        path.relative_to(PACKAGE).as_posix(): importers[module_name(path)]
        for path in FILES
        if 0 < len(path.read_text(encoding="utf-8").splitlines()) < LEAST_LINES
        and len(importers.get(module_name(path), [])) == 1
    }
    assert not {name: users for name, users in short.items() if name not in SMALL_MODULES}
