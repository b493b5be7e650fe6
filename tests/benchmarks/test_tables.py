"""The tables of the documentation are made from the committed results and all shown; methods may lack results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import camlib
from benchmarks import results, tables

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_has_a_head_and_lines_of_its_length(name):
    head, *lines = tables.TABLES[name]()
    assert lines
    assert {len(line) for line in lines} == {len(head)}


def test_every_table_is_shown():
    pages = [path.read_text() for path in (ROOT / "docs").rglob("*.rst")]
    assert {name for page in pages for name in re.findall(r"\.\. measured:: (\w+)", page)} == set(tables.TABLES)


def test_every_result_is_shown(monkeypatch):
    read = set()
    monkeypatch.setattr(tables, "load", lambda name: read.add(name) or results.load(name))
    for name in set(tables.TABLES) - {"provenance"}:
        tables.TABLES[name]()
    assert read == {path.stem for path in results.FOLDER.glob("*.json")}


@pytest.mark.parametrize("name", ["grad_cam", "compare"])
def test_the_tables_of_the_readme_are_those_of_the_results(name):
    assert tables.markdown(tables.TABLES[name]()) in (ROOT / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("choice", 3),
        ("coverage_methods", 1),
        ("methods", 1),
        ("photographs", 1),
        ("suite_methods", 1),
    ],
)
def test_a_method_without_results_reads_not_measured(name, measured, monkeypatch):
    """From the given column on: those before it say what the method declares."""

    class MadeUpCAM(camlib.GradCAM):
        name = "made_up_cam"

    before = tables.TABLES[name]()
    monkeypatch.setitem(camlib.METHODS, "made_up_cam", MadeUpCAM)
    lines = tables.TABLES[name]()
    (line,) = [line for line in lines if line not in before]
    assert "made_up_cam" in line[0] or "MadeUpCAM" in line[0]
    assert set(line[measured:]) == {"not measured"}


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_method_without_results_changes_no_other_line(name, monkeypatch):
    before = tables.TABLES[name]()
    monkeypatch.setitem(camlib.METHODS, "made_up_cam", camlib.GradCAM)
    assert [line for line in tables.TABLES[name]() if "not measured" not in line[1:]] == [
        line for line in before if "not measured" not in line[1:]
    ]


def test_pivot_leaves_a_cell_without_a_record_empty():
    records = [{"a": 1, "b": "x", "value": 5}, {"a": 2, "b": "y", "value": 6}]
    lines = tables.pivot(records, {"A": "a"}, "b", lambda record: str(record["value"]), [1, 2, 3])
    assert lines == [["A", "x", "y"], ["1", "5", ""], ["2", "", "6"], [3, "not measured", "not measured"]]


def test_flat_makes_a_record_of_each_inner_dictionary():
    nested = {"a": {"x": {"value": 1}}, "b": {"y": {"value": 2}}}
    assert list(tables.flat(nested, "outer", "inner")) == [
        {"outer": "a", "inner": "x", "value": 1},
        {"outer": "b", "inner": "y", "value": 2},
    ]
