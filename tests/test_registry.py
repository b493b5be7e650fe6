"""Every method is in the places that CONTRIBUTING.md lists, and these are all the places that a new method needs."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import camlib

ROOT = Path(__file__).parents[1]


def classes(root: Path) -> Iterator[tuple[Path, str, ast.ClassDef]]:
    """The file, name and class of each method in a copy of the repository."""
    for path in sorted((root / "src/camlib/methods").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            for line in node.body if isinstance(node, ast.ClassDef) else ():
                match line:
                    case ast.AnnAssign(ast.Name("name"), value=ast.Constant(str(name))):
                        yield path, name, node


def missing(root: Path) -> dict[str, str]:
    """What the methods of a copy of the repository still need, by the place where it should be written."""
    found = {}

    def expect(place: str, pattern: str, what: str) -> None:
        if not re.search(pattern, (root / place).read_text(), re.MULTILINE):
            found[place] = f"{place}: {what}"

    for path, name, kind in classes(root):
        functions = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        line = f"from camlib.methods.{path.stem} import {kind.name} as {kind.name}"
        expect("src/camlib/methods/catalogue.py", f"^{line}$", f"add the line: {line}")
        if name in functions:
            line = f"from camlib.methods.{path.stem} import {name} as {name}"
            expect("src/camlib/functional.py", f"^{line}$", f"add the line: {line}")
        if not re.search(":math:|math::", ast.get_docstring(functions.get(name, kind)) or ""):
            place = path.relative_to(root).as_posix()
            found[place] = f"{place}: the docstring of {name if name in functions else kind.name} lacks the equation"
        expect("tests/equations.py", rf"^def {name}\(", f"restate the equation in a function {name}, from the paper")
        expect("CHANGELOG.md", rf"`(camlib\.)?{kind.name}`", f"add a line that names `{kind.name}`")
    return found


def steps() -> list[tuple[str, str]]:
    """The places of "Adding a method" in CONTRIBUTING.md, and the code that the example method has there."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Adding a method")[1].split("\n## ")[0]
    found = re.findall(r"^\d\. `([^`]+)`.*?```\w+\n(.*?)\n *```", section, re.DOTALL | re.MULTILINE)
    assert len(found) == len(re.findall(r"^\d\. ", section, re.MULTILINE))
    return [(place, textwrap.dedent(code) + "\n") for place, code in found]


def copied(root: Path) -> Path:
    """A copy of what the places and the tests of methods are in."""
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for file in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / file, root / file)
    return root


def write(root: Path, place: str, code: str) -> None:
    with (root / place).open("a") as opened:
        opened.write(f"\n\n{code}" if place == "tests/equations.py" else code)


def test_every_method_is_in_every_place() -> None:
    needed = missing(ROOT)
    assert not needed, "\n".join(needed.values())
    assert {name for _, name, _ in classes(ROOT)} == set(camlib.METHODS)


def test_a_new_method_is_missing_in_the_places_that_contributing_lists_and_in_no_other(tmp_path: Path) -> None:
    (file, code), *others = steps()
    write(copied(tmp_path), file, code)
    assert list(missing(tmp_path)) == [place for place, _ in others]
    for place, code in others:
        assert place in missing(tmp_path)
        write(tmp_path, place, code)
        assert place not in missing(tmp_path)
    assert missing(tmp_path) == {}


def test_the_readme_links_the_equation_of_each_method_that_it_names() -> None:
    rows = re.findall(
        r"^\| \[.*?\]\((docs/mathematics/\w+\.rst)\) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 3
    for page, methods in rows:
        text = (ROOT / page).read_text()
        assert ".. math::" in text
        for name in methods.removesuffix(", ...").split(", "):
            assert name.lower() in text.lower(), f"{page} does not have {name}"


@pytest.mark.slow
def test_a_method_that_is_in_these_places_passes_the_tests_of_methods(tmp_path: Path) -> None:
    copied(tmp_path)
    for place, code in steps():
        write(tmp_path, place, code)
    tests = [
        "methods/test_laws.py",
        "methods/test_methods.py",
        "test_testing.py",
        "test_quantised.py",
        "test_import.py",
    ]
    (file, _), *_ = steps()
    for style in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *style, file], cwd=tmp_path, check=True)
    command = ["-m", "pytest", "-q", "--doctest-modules", file]
    done = subprocess.run(
        [sys.executable, *command, *(f"tests/{name}" for name in tests), "-k", "squared_cam or every_method or face"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 30
