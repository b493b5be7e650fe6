"""The diagram of the layout in CONTRIBUTING.md agrees with the imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from pathlib import Path

import networkx

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "camlib"


def drawn() -> tuple[dict[str, str], set[tuple[str, str]]]:
    """The node of each package, and the arrows, of the diagram."""
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    nodes = {
        module.strip(" /"): node
        for node, modules in re.findall(r'(\w+)\["([^"]+)"\]', diagram)
        for module in modules.split(",")
    }
    return nodes, set(re.findall(r"(\w+) --> (\w+)", diagram))


def imported(path: Path) -> set[str]:
    """The names below camlib that a file imports, wherever in it that is, for types too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name for name in names if name.startswith("camlib.")} - {"camlib.__version__"}


def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name."""
    paths = {path.relative_to(SOURCES.parent).with_suffix(""): path for path in SOURCES.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


def owner(name: str, known: Collection[str]) -> str:
    """The module that a dotted name is, or is defined in."""
    while name not in known:
        name = name.rpartition(".")[0]
    return name


def test_the_diagram_of_the_layout_agrees_with_the_imports():
    nodes, arrows = drawn()
    assert set(nodes) == {path.stem for path in SOURCES.iterdir() if path.stem[0] != "_" and path.suffix in ("", ".py")}
    imports = networkx.DiGraph()
    imports.add_nodes_from(nodes.values())
    for module, path in modules().items():
        if module in ("camlib", "camlib._public", "camlib.__main__"):  # the public names of all packages, the command
            continue
        node = nodes[module.split(".")[1]]
        used = {nodes[name.split(".")[1]] for name in imported(path)}
        imports.add_edges_from((node, other) for other in used if other != node)
    assert networkx.is_directed_acyclic_graph(imports), networkx.find_cycle(imports)
    assert arrows == set(networkx.transitive_reduction(imports).edges)


def test_no_two_files_import_each_other_by_any_way():
    known = modules()
    imports = networkx.DiGraph()
    for module, path in known.items():
        imports.add_edges_from((module, owner(name, known)) for name in imported(path))
    imports.remove_edges_from(list(networkx.selfloop_edges(imports)))
    assert networkx.is_directed_acyclic_graph(imports), networkx.find_cycle(imports)


def table(head: str) -> set[str]:
    """What stands between backticks in the first column of the table with a head."""
    rows = (ROOT / "CONTRIBUTING.md").read_text().split(f"| {head} |")[1].split("\n\n")[0]
    return {
        name for row in re.findall(r"^\| (`[^|]+) \|", rows, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    }


def test_the_table_of_the_layout_has_every_package():
    assert {name.strip("/") for name in table("package | what it holds")} == set(drawn()[0])


def test_the_map_of_the_tests_has_all_of_them():
    there = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py")}
    there -= {Path("__init__.py"), Path("conftest.py")}
    mapped = table("tests | claims")
    for name in mapped - {"methods/test_NAME.py"}:
        assert (ROOT / "tests" / name).exists(), name
    there = {path for path in there if path.parts[0] != "methods"}
    folders = {path: {f"{parent.as_posix()}/" for parent in path.parents} for path in there}
    assert {path for path in there if not mapped & {path.as_posix(), *folders[path]}} == set()
