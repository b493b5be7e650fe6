"""The tables that the documentation shows, each made of a JSON file in ``benchmarks/results``.

``python -m benchmarks.tables`` makes them all again; nothing in them is typed by hand.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import camlib
from benchmarks import report
from camlib.metrics import METRICS

RESULTS = Path(__file__).parent / "results"
Lines = list[list[str]]
"""A table; the first line is its head."""


def parity(results: dict[str, Any]) -> dict[str, Lines]:
    """Differences between maps, by network, method and peer, and the reasons for those that are no rounding."""
    rows = [
        (name, method, row) for name, model in results["models"].items() for method, row in model["methods"].items()
    ]
    reasons = list(dict.fromkeys(reason for _, _, row in rows for reason in row.get("why", [])))
    columns = ("equation", "captum", "torchcam", "grad-cam")
    lines = [["network", "method", "camlib to equation", *columns[1:], "why"]]
    for name, method, row in rows:
        cells = ["" if row.get(column) is None else f"{row[column]:.0e}" for column in columns]
        lines.append([name, method, *cells, ", ".join(str(1 + reasons.index(why)) for why in row.get("why", []))])
    return {
        "parity.csv": lines,
        "parity_reasons.csv": [["why", "difference"], *([str(n), why] for n, why in enumerate(reasons, 1))],
    }


def metric_parity(results: dict[str, Any]) -> dict[str, Lines]:
    """Differences between metrics, and why."""
    return {
        "metric_parity.csv": [
            ["metric", "peer", "on", "largest difference", "why"],
            *(
                [row["metric"], row["peer"], row["on"], f"{row['difference']:.0e}", row.get("why", "")]
                for row in results["rows"]
            ),
        ]
    }


def faithfulness(results: dict[str, Any]) -> dict[str, Lines]:
    """By how much each metric puts Grad-CAM above the touchstones."""
    head = ["metric", "better"]
    for data in results["found"]:
        head += [f"{data}: Grad-CAM over random", "over the centre Gaussian", "says"]
    lines = [head]
    for name in next(iter(results["found"].values())):
        line = [name, METRICS[name].better]
        for of_data in results["found"].values():
            better_than = of_data[name]["better than"]
            line += [*(_difference(one) for one in better_than.values()), _verdict(better_than)]
        lines.append(line)
    return {"faithfulness.csv": lines}


def _difference(one: dict[str, Any]) -> str:
    """A difference with its interval."""
    low, high = one["interval"]
    return f"{one['difference']:+.3g} ({low:+.3g} to {high:+.3g})"


def _verdict(better_than: dict[str, Any]) -> str:
    """What the intervals of a metric say."""
    names = {"random_cam": "random", "center_gaussian": "Gaussian"}
    better = [names[other] for other, one in better_than.items() if one["interval"][0] > 0]
    worse = [names[other] for other, one in better_than.items() if one["interval"][1] < 0]
    parts = [f"{word} {' and '.join(those)}" for word, those in (("above", better), ("below", worse)) if those]
    return "; ".join(parts) or "does not tell"


def photographs(results: dict[str, Any]) -> dict[str, Lines]:
    """The share of each heatmap's energy in the box."""
    shares: dict[str, list[float | None]] = {
        "(the box's share of the picture)": [one["area of the box"] for one in results["photographs"]],
        **results["energy inside the box"],
    }
    return {
        "photographs.csv": [
            ["method", *(one["label"] for one in results["photographs"])],
            *([name, *("none" if one is None else f"{one:.3f}" for one in row)] for name, row in shares.items()),
        ]
    }


def methods(results: dict[str, Any]) -> dict[str, Lines]:
    """Each method's means, and by how much it is better than random weights, with the interval over images."""
    found: dict[str, dict[str, Any]] = results["found"]
    columns = [(data, metric) for data in found for metric in results["metrics"]]
    lines = [["method", *(f"{data}: {metric}" for data, metric in columns)]]
    for name in next(iter(found.values())):
        cells = [found[data][name][metric] for data, metric in columns]
        lines.append([name, *(_judged(cell, name) for cell in cells)])
    return {"methods.csv": lines}


def _judged(cell: dict[str, Any], name: str) -> str:
    """A mean and, but for random weights themselves, how much better it is than theirs."""
    if name == "random_cam":
        return f"{cell['mean']:.3f}"
    low, high = cell["interval"]
    return f"{cell['mean']:.3f}; {cell['over random']:+.3f} ({low:+.3f} to {high:+.3f})"


def choice(folder: Path = RESULTS) -> Lines:
    """What tells the methods apart when one is to be chosen: what they need and cost, and how much better than random.

    Bold where the whole interval is above zero, italic where it is below.
    """
    judged, suite, covered = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("methods", "suite", "coverage")
    )
    found = judged["found"]
    columns = [(data, metric) for data in found for metric in judged["metrics"]]
    times = {
        cell["method"]: f"{cell['time']:.3g}"
        for cell in suite["cells"]
        if (cell["model"], cell["library"], cell["images"], cell["classes"]) == ("resnet50", "camlib", 1, 1)
        and "time" in cell
    }
    head = ["method", "of a class", "gradients", "forwards of time", "networks"]
    lines = [[*head, *(f"{of}: {what.split('_')[0]}" for of, what in columns)]]
    for name, method in camlib.METHODS.items():
        explained = [cells["methods"][name] for cells in covered["models"].values()]
        lines.append(
            [
                f":class:`~camlib.{method.__name__}`",
                "no" if method.class_agnostic else "yes",
                "yes" if method.needs_gradients else "no",
                times.get(name, "not measured"),
                f"{sum('refused' not in cell for cell in explained)} of {len(explained)}",
                *(_marked(found[data].get(name, {}).get(metric), name) for data, metric in columns),
            ]
        )
    return lines


def _marked(cell: dict[str, Any] | None, name: str) -> str:
    """A difference, bold or italic where its interval does not hold zero."""
    if cell is None or name == "random_cam":
        return "0" if cell else "not here"
    (low, high), shown = cell["interval"], f"{cell['over random']:+.2f}"
    return f"**{shown}**" if low > 0 else f"*{shown}*" if high < 0 else shown


def grad_cam(results: dict[str, Any]) -> dict[str, Lines]:
    """Grad-CAM's time and, in brackets, peak memory beside the peers, relative to a bare forward pass."""
    models: dict[str, Any] = results["models"]
    subjects = [name for name in next(iter(models.values()))["subjects"] if name != "forward"]
    lines = [["network", "images", *subjects]]
    for name, model in models.items():
        cells = [f"{cell['time']:.2f} ({cell['memory']:.2f})" for cell in map(model["subjects"].get, subjects)]
        lines.append([name, str(model["batch"]), *cells])
    return {"grad_cam.csv": lines}


def compare(results: dict[str, Any]) -> dict[str, Lines]:
    """The time of several methods, together and one by one, relative to a bare forward pass."""
    models: dict[str, Any] = results["models"]
    subjects = [name for name in next(iter(models.values()))["time"] if name != "forward"]
    lines = [["network", "images", *subjects]]
    for name, model in models.items():
        lines.append([name, str(model["batch"]), *(f"{model['time'][subject]:.2f}" for subject in subjects)])
    return {"compare.csv": lines}


def coverage(results: dict[str, Any]) -> dict[str, Lines]:
    """Which networks each method explains, the layers found, the passes, and the reasons of refusals."""
    models: dict[str, dict[str, Any]] = results["models"]
    rows = {
        method: {name: of_model["methods"][method] for name, of_model in models.items()} for method in camlib.METHODS
    }
    picky = [method for method, row in rows.items() if any("refused" in cell for cell in row.values())]
    refusals: dict[tuple[str, str], list[str]] = {}
    for method in picky:
        for name, cell in rows[method].items():
            if "refused" in cell:
                refusals.setdefault((method, _reason(cell["refused"])), []).append(name)
    return {
        "coverage_models.csv": [
            ["network", "picture", "layer found", "grid", *picky],
            *(
                [
                    name,
                    f"{of_model['side']} px",
                    of_model["layer"],
                    " x ".join(map(str, of_model["methods"]["grad_cam"]["grid"])),
                    *("refused" if "refused" in of_model["methods"][method] else "yes" for method in picky),
                ]
                for name, of_model in models.items()
            ),
        ],
        "coverage_methods.csv": [
            ["method", "networks", "passes of an image"],
            *([method, _share(row), _passes(row)] for method, row in rows.items()),
        ],
        "coverage_refusals.csv": [
            ["method", "refuses because", "networks"],
            *([method, why, ", ".join(names)] for (method, why), names in refusals.items()),
        ],
    }


def _reason(refusal: str) -> str:
    """What an error says, without the numbers, names and shapes of one network."""
    clause = re.split(r"; |: of | \(as autograd|, and guided", refusal)[0]
    clause = re.sub(r"^[A-Z]\w+ calls no", "the network calls no", clause)
    clause = re.sub(r" layer '[^']*', shape \([^)]*\)", " the layer", clause)
    clause = re.sub(r" met \(.*", " met windows", clause)
    return re.sub(r": neither .*|: something lies .*", "", clause)


def _share(row: dict[str, dict[str, Any]]) -> str:
    return f"{sum('refused' not in cell for cell in row.values())} of {len(row)}"


def _passes(row: dict[str, dict[str, Any]]) -> str:
    """How many, the commonest first; and on which networks another number."""
    found: dict[int, list[str]] = {}
    for name, cell in row.items():
        if "refused" not in cell:
            found.setdefault(cell["passes"], []).append(name)
    (most, _), *others = sorted(found.items(), key=lambda item: -len(item[1]))
    return "; ".join([str(most), *(f"{count} ({', '.join(names)})" for count, names in others)])


TABLES: dict[str, Callable[[dict[str, Any]], dict[str, Lines]]] = {
    "compare": compare,
    "coverage": coverage,
    "faithfulness": faithfulness,
    "grad_cam": grad_cam,
    "methods": methods,
    "metric_parity": metric_parity,
    "parity": parity,
    "photographs": photographs,
    "suite": report.tables_of_docs,
}
"""By the name of a result, the tables that are made of it, by file name."""


def provenances(folder: Path = RESULTS) -> Lines:
    """A line for each result: when it was made (or, of those without a date, committed), with what, and where."""
    lines = [["result", "date", "versions", "machine"]]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
        date = result.get("date") or f"committed {result['committed']}"
        lines.append([path.stem, date, versions, result.get("machine", "")])
    return lines


OF_SEVERAL: dict[str, Callable[[Path], Lines]] = {"choice.csv": choice, "provenance.csv": provenances}
"""By file name, the tables that are made of several results."""


def made(name: str, folder: Path = RESULTS) -> dict[str, Lines]:
    """The tables of a result, by file name."""
    return TABLES[name](json.loads((folder / f"{name}.json").read_text()))


def write(*names: str, folder: Path = RESULTS) -> None:
    """Write the tables of results as CSV, and those that are made of several."""
    of_all = {file: lines for name in names for file, lines in made(name, folder).items()}
    of_several = {file: make(folder) for file, make in OF_SEVERAL.items()}
    for file, lines in (of_all | of_several).items():
        with (folder / file).open("w", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    write(*TABLES)
