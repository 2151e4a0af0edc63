"""The layers of the package: who may import whom, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gnewton

PACKAGE = Path(gnewton.__file__).parent

LAYERS = [
    {"errors", "runfiles"},
    {"options"},
    {"registry", "tasks", "backend", "wrappers", "arguments"},
    {"partition", "cubic"},
    {"summary"},
    {"data", "models", "optim", "loggers"},
    {"training", "inspection", "plugins"},
    {"experiment", "report"},
    {"sweep", "diagnostics", "interactive"},
    {"tuning"},
    {"cli"},
    {"__main__"},
]
"""From the ground up: a part imports parts of lower layers and itself; those within a layer know nothing of
each other."""

RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

FRAMEWORK = {"hydra", "omegaconf"}


def _modules() -> dict[str, ast.Module]:
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


MODULES = _modules()


def _imports(tree: ast.AST, *, for_types: bool = False) -> Iterator[str]:
    """Dotted names imported anywhere in a module, in functions too; ``for_types``: for type checkers too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and not for_types and _checks_types(node.test):
            for other in node.orelse:
                yield from _imports(other)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, ast.expr):
            yield from _imports(node, for_types=for_types)


def _checks_types(test: ast.expr) -> bool:
    return any(
        "TYPE_CHECKING" in (getattr(part, "id", ""), getattr(part, "attr", "")) for part in ast.walk(test)
    )


RUNTIME = {name: frozenset(_imports(tree)) for name, tree in MODULES.items()}
WITH_TYPES = {name: frozenset(_imports(tree, for_types=True)) for name, tree in MODULES.items()}
"""What each module imports, without and with the imports for type checkers."""


def _home(name: str) -> str | None:
    """The module of this package that an imported name comes from."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


def _part(module: str) -> str | None:
    return module.split(".")[1] if "." in module else None


def test_every_part_has_a_layer():
    parts = {_part(module) for module in MODULES} - {None}
    assert parts == set(RANK)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_imports_upwards(module):
    part = _part(module)
    if part is None:
        return  # the package itself offers names of several layers, on first use
    for name in WITH_TYPES[module]:
        other = _part(_home(name) or "")
        if other is not None and other != part:
            assert RANK[other] < RANK[part], f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_shell_knows_hydra(module):
    """Below the experiment nobody reads configurations; what is built takes plain values."""
    if _part(module) in ("experiment", "cli"):
        return
    roots = {name.split(".")[0] for name in WITH_TYPES[module]}
    assert not roots & FRAMEWORK


@pytest.mark.parametrize(
    "module", [name for name in sorted(MODULES) if _part(name) in ("partition", "summary", "cubic")]
)
def test_the_library_needs_neither_recipes_nor_registries_to_compute(module):
    names = RUNTIME[module]
    if module.endswith(("options", "partition")):
        return  # the recipes of the partitions
    assert not any(name.startswith(("gnewton.registry", "gnewton.options.option")) for name in names)


def test_the_optimizer_itself_is_free_of_recipes():
    for module, names in RUNTIME.items():
        if _part(module) == "optim" and not module.startswith("gnewton.optim.options"):
            assert not [
                name for name in names if name.startswith(("gnewton.optim.options", "gnewton.registry"))
            ]


def test_one_module_touches_the_internals_of_hydra():
    touching = [
        module
        for module, names in WITH_TYPES.items()
        if any(name.startswith("hydra._internal") for name in names)
    ]
    assert touching == ["gnewton.cli.composer"]


def test_no_module_imports_itself():
    itself = {module for module, names in WITH_TYPES.items() if module in map(_home, names)}
    assert itself <= {"gnewton"}


def test_there_are_no_cycles():
    edges = {
        module: {home for name in names if (home := _home(name)) not in (None, module, "gnewton")}
        for module, names in WITH_TYPES.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in edges[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_library_loads_without_the_runner(tmp_path):
    program = """
import sys
import gnewton
assert "torch" not in sys.modules
from gnewton import GroupedNewton, Partition, summarize, solve_cubic
parts = ("training", "experiment", "cli", "data", "models")
unwanted = ["hydra", "omegaconf", "pandas", "sklearn", *(f"gnewton.{part}" for part in parts)]
print([name for name in unwanted if name in sys.modules])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_the_report_reads_files_alone(tmp_path):
    """All its modules load without torch and Hydra."""
    names = [module for module in MODULES if _part(module) == "report"]
    program = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
print([name for name in ("torch", "hydra", "omegaconf") if name in sys.modules])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = gnewton.nothing
    assert set(gnewton.__all__) <= set(dir(gnewton))
