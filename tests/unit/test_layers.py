"""A folder of the package imports from the folders below it; no modules import each other."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python/pgnet"
# From the top down. The last two are the ground: they import nothing of the package but its name.
FLOORS = ["__main__", "sql_v1", "cli", "worker", "outbox", "wire", "secret", "request", "server"]
GROUND = {"request", "server"}
MODULES = {
    ".".join(["pgnet", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
}


def imports(module: str) -> set[str]:
    """The modules of the package that one imports, wherever it does, for its types alone too."""
    path = ROOT / "python" / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pgnet"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES
            found |= {node.module or ""} if names - MODULES else set()
    return found - {"pgnet"}


def test_no_import_leads_upward() -> None:
    faults = []
    for module in sorted(MODULES - {"pgnet"}):
        floor = module.split(".")[1]
        allowed = {floor} if floor in GROUND else set(FLOORS[FLOORS.index(floor) :])
        above = [name for name in sorted(imports(module)) if name.split(".")[1] not in allowed]
        faults += [f"{module} imports {name}" for name in above]
    assert faults == []


def test_no_modules_import_each_other() -> None:
    """graphlib raises CycleError, with the circle, where there is one."""
    graph = {module: imports(module) for module in MODULES}
    TopologicalSorter(graph).prepare()


def test_the_folders_import_nothing_by_the_way() -> None:
    """An import of a module imports that module and those that it names, and no others."""
    for path in PACKAGE.rglob("*/__init__.py"):
        assert path.parent.name == "outbox" or path.read_text() == "", path
