"""The tables of the documentation, made from the results in ``benchmarks/results``; no number in them is typed by hand.

The pages show them by ``.. measured:: NAME``. ``python -m benchmarks.tables NAME`` prints one as Markdown.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import camlib
from benchmarks import results, truth_tables
from benchmarks.results import load
from benchmarks.zoo import FAILURES, verdict_of
from benchmarks.zoo_networks import NETWORKS
from camlib.metrics import METRICS

Lines = list[list[str]]
"""A table; the first line is its head."""
Record = dict[str, Any]
NOT_MEASURED = "not measured"


def flat(nested: dict[str, Any], *keys: str) -> Iterator[Record]:
    """One record for each inner dictionary, so many levels down; the path to it stands under the given keys."""
    for name, inner in nested.items():
        for record in flat(inner, *keys[1:]) if keys[1:] else [inner]:
            yield {keys[0]: name} | record


def pivot(
    records: Iterable[Record], rows: dict[str, str], column: str, cell: Callable[[Record], str], expected: Any = ()
) -> Lines:
    """A line for each combination of the row keys (by heading), a column for each value of another key.

    Lines of the first row key's ``expected`` values of which there is no record read "not measured".
    """
    found: dict[tuple[Any, ...], dict[Any, str]] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in rows.values()), {})[record[column]] = cell(record)
    heads = list(dict.fromkeys(head for line in found.values() for head in line))
    missing = [name for name in expected if name not in {key[0] for key in found}]
    lines = [[*map(str, key), *(line.get(head, "") for head in heads)] for key, line in found.items()]
    return [[*rows, *heads], *lines, *([name, *[NOT_MEASURED] * len(heads)] for name in missing)]


NETWORK, IMAGES, METHOD = {"network": "model"}, {"images": "images"}, {"method": "method"}


def listing(name: str, what: str, columns: str) -> Lines:
    """A line for each record of a result, by columns like ``heading = {key:.2f} | heading = {key}``."""
    heads, cells = zip(*(column.split(" = ") for column in columns.split(" | ")), strict=True)
    return [[*heads], *([cell.format_map(one) for cell in cells] for one in load(name)[what])]


def batches(name: str, cell: str) -> Lines:
    """Time and memory relative to a bare forward pass."""
    cells = [one for one in load(name)["cells"] if one["subject"] != ("naive cut" if name == "price" else "forward")]
    return pivot(cells, NETWORK | IMAGES, "subject", cell.format_map)


def suite(rows: dict[str, str], column: str, expected: Iterable[str] = (), **wanted: Any) -> Lines:
    """The suite's cells with the wanted values: time, memory in brackets and passes, or why there are none."""

    def cell(one: Record) -> str:
        if reason := one.get("left out"):
            return re.split(r" \(" if reason.startswith("not run") else ":", reason)[0]
        passes = one["images through the network"] / one["images"]
        return f"{one['time']:.2f} ({one['memory']:.2f}), {passes:.3g}"

    cells = [one for one in load("suite")["cells"] if wanted.items() <= one.items()]
    return pivot(cells, rows, column, cell, expected)


def coverage(method: str) -> list[Record]:
    """What a method says of each network, if it was measured."""
    models = load("coverage")["models"]
    return [{"model": model} | of["methods"][method] for model, of in models.items() if method in of["methods"]]


def coverage_models() -> Lines:
    """The layer that is found in each network, and the methods that refuse some networks."""
    refusing = [name for name in camlib.METHODS if any("refused" in cell for cell in coverage(name))]
    lines = [["network", "picture", "layer found", "grid", *refusing]]
    for name, model in load("coverage")["models"].items():
        grid = " x ".join(map(str, model["methods"]["grad_cam"]["grid"]))
        says = ["refused" if "refused" in model["methods"][method] else "yes" for method in refusing]
        lines.append([name, f"{model['side']} px", model["layer"], grid, *says])
    return lines


def coverage_methods() -> Lines:
    """How many networks each method explains, and its forward passes."""
    rows = [[name, explained(coverage(name)), passes(coverage(name))] for name in camlib.METHODS]
    return [["method", "networks", "passes of an image"], *rows]


def coverage_refusals() -> Lines:
    """Why methods refuse networks."""
    networks: dict[tuple[str, str], list[str]] = {}
    for name in camlib.METHODS:
        for cell in (cell for cell in coverage(name) if "refused" in cell):
            networks.setdefault((name, reason(cell["refused"])), []).append(cell["model"])
    rows = [[name, why, ", ".join(names)] for (name, why), names in networks.items()]
    return [["method", "refuses because", "networks"], *rows]


def exporting() -> Lines:
    """Whether each network was exported with Grad-CAM, and how far it is from float64."""
    lines = [["network", "picture", "layer", "nodes", "error, ONNX Runtime", "error, eager"]]
    for name, of in load("exporting")["networks"].items():
        if "refused" in of:
            lines.append([name, "", "", "", f"refused: {escaped(of['refused'])}", ""])
        else:
            errors = [f"{of[key]:.0e}" for key in ("error", "eager_error")]
            lines.append([name, f"{of['side']} px", of["layer"], str(of["nodes"]), *errors])
    return lines


def reason(refusal: str) -> str:
    """What an error says, without the numbers, names and shapes of one network."""
    clause = re.split(r"; |: (?:of|for image) | \(as autograd|, and guided", refusal)[0]
    clause = re.sub(r"^[A-Z]\w+ calls no", "the network calls no", clause)
    clause = re.sub(r" layer '[^']*', shape \([^)]*\)", " the layer", clause)
    clause = re.sub(r" (met|found) \(.*", r" \1 windows", clause)
    return re.sub(r": neither .*|: something lies .*", "", clause)


def explained(cells: list[Record]) -> str:
    """How many of its networks a method explains."""
    return f"{sum('refused' not in cell for cell in cells)} of {len(cells)}" if cells else NOT_MEASURED


def passes(cells: list[Record]) -> str:
    """How many passes, the most common number first, and which networks need another number."""
    found: dict[int, list[str]] = {}
    for cell in cells:
        if "refused" not in cell:
            found.setdefault(cell["passes"], []).append(cell["model"])
    if not found:
        return NOT_MEASURED
    (most, _), *others = sorted(found.items(), key=lambda item: -len(item[1]))
    return "; ".join([str(most), *(f"{count} ({', '.join(names)})" for count, names in others)])


def zoo() -> list[Record]:
    """One record for each network of the zoo with its name and verdict, whether it was measured or not."""
    measured = load("zoo")["networks"] if (results.FOLDER / "zoo.json").exists() else {}
    records = []
    for name, network in NETWORKS.items():
        found = measured.get(name)
        says = NOT_MEASURED if found is None else verdict_of(found)
        records.append({"network": name, "source": network.source, "input": "", "verdict": says} | (found or {}))
    return records


def zoo_sources() -> Lines:
    """How many networks of each source are explained, and what became of the others."""
    cells: dict[str, dict[str, int]] = {}
    for record in [*zoo(), *({**record, "source": "all"} for record in zoo())]:
        of_source = cells.setdefault(record["source"], {})
        of_source[record["verdict"]] = of_source.get(record["verdict"], 0) + 1
    heads = list(dict.fromkeys(["proved", "refused", *(head for of_source in cells.values() for head in of_source)]))
    rows = [
        [name, str(sum(of_source.values())), *(str(of_source.get(head, 0)) for head in heads)]
        for name, of_source in cells.items()
    ]
    return [["source", "networks", *heads], *rows]


def zoo_networks() -> Lines:
    """Layer, grid, checks of each network that is explained; what went wrong where something did."""
    lines = [["network", "input", "layer", "grid", "read own place", "get own place", "difference", "remark"]]
    for record in zoo():
        if record["verdict"] == "refused":
            continue
        layers = record.get("layers", [])
        columns = [
            (f"``{layer['layer']}``" for layer in layers),
            (" x ".join(map(str, layer["grid"])) for layer in layers),
            *((f"{layer[count]} of {layer['cells']}" for layer in layers) for count in ("own", "shared out")),
            ("none fits" if layer["difference"] is None else f"{layer['difference']:.0e}" for layer in layers),
        ]
        remarks = [] if record["verdict"] == "proved" else [record["verdict"]]
        remarks += [escaped(record[key]) for key in FAILURES if key in record]
        remarks += ["float32"] if record.get("precision") == "float32" else []
        remarks += [escaped(warning) for warning in record.get("warnings", [])]
        lines.append([record["network"], record["input"], *map("; ".join, columns), ": ".join(remarks)])
    return lines


def zoo_refusals() -> Lines:
    """Why networks are refused."""
    rows = [
        [record["network"], record["input"], escaped(record["refused"].partition(": ")[2])]
        for record in zoo()
        if "refused" in record
    ]
    return [["network", "input", "refused because"], *(rows or [["none", "", ""]])]


def escaped(text: str) -> str:
    """Text without markup of reStructuredText."""
    return re.sub(r"([*`|\\]|_(?!\w))", r"\\\1", " ".join(text.split()))


def evaluated(result: str) -> list[Record]:
    """One record for each data set, method and metric."""
    records = flat(load(result)["found"], "data", "method", "metric")
    return [record | {"column": f"{record['data']}: {record['metric']}"} for record in records]


def faithfulness() -> Lines:
    """By how much each metric ranks Grad-CAM above the baselines."""
    lines: dict[str, list[str]] = {}
    head = ["metric", "better"]
    for record in evaluated("faithfulness"):
        if record["method"] == "grad_cam":
            line = lines.setdefault(record["metric"], [record["metric"], METRICS[record["metric"]].better])
            line += [f"{one['difference']:+.3g} ({interval(one, '.3g')})" for one in record["over"].values()]
            line += [verdict(record["over"])]
    for data in load("faithfulness")["found"]:
        head += [f"{data}: Grad-CAM over random", "over the centre Gaussian", "verdict"]
    return [head, *lines.values()]


def interval(one: Record, digits: str) -> str:
    """The ends of a confidence interval."""
    return " to ".join(f"{end:+{digits}}" for end in one["interval"])


def verdict(over: dict[str, Record]) -> str:
    """What the intervals of a metric say."""
    names = {"random_cam": "random", "center_gaussian": "Gaussian"}
    above = [names[other] for other, one in over.items() if one["interval"][0] > 0]
    below = [names[other] for other, one in over.items() if one["interval"][1] < 0]
    parts = [f"{word} {' and '.join(those)}" for word, those in (("above", above), ("below", below)) if those]
    return "; ".join(parts) or "inconclusive"


def applicable() -> list[str]:
    """The methods that can explain the network of the photographs."""
    return [name for name in camlib.METHODS if name not in load("photographs")["left out"]]


def methods() -> Lines:
    """Each method's mean, and by how much it is better than random weights, with the interval over images."""

    def cell(record: Record) -> str:
        over = record["over"]["random_cam"]
        better = f"; {over['difference']:+.3f} ({interval(over, '.3f')})"
        return f"{record['mean']:.3f}" + (better if record["method"] != "random_cam" else "")

    return pivot(evaluated("methods"), METHOD, "column", cell, applicable())


def photographs() -> Lines:
    """The share of each heatmap's energy in the box."""
    found = load("photographs")
    areas = [one["area of the box"] for one in found["photographs"]]
    shares = {"(the box's share of the picture)": areas} | found["energy inside the box"]
    lines = [["method", *(one["label"] for one in found["photographs"])]]
    lines += [[name, *("none" if one is None else f"{one:.3f}" for one in row)] for name, row in shares.items()]
    return lines + [[name, *[NOT_MEASURED] * len(areas)] for name in applicable() if name not in shares]


def parity_cells() -> list[Record]:
    """One record for each network and method."""
    models = load("parity")["models"]
    return list(flat({name: model["methods"] for name, model in models.items()}, "network", "method"))


def parity_reasons() -> Lines:
    """The reasons for differences that are no rounding, numbered."""
    reasons = dict.fromkeys(why for cell in parity_cells() for why in cell.get("why", []))
    return [["why", "difference"], *([str(number), why] for number, why in enumerate(reasons, 1))]


def parity() -> Lines:
    """Differences between maps, by network, method and peer."""
    numbers = {why: number for number, why in parity_reasons()}
    lines = [["network", "method", "camlib to equation", "captum", "torchcam", "grad-cam", "why"]]
    for cell in parity_cells():
        differences = [cell.get(of) for of in ("equation", "captum", "torchcam", "grad-cam")]
        line = ["" if difference is None else f"{difference:.0e}" for difference in differences]
        why = ", ".join(numbers[why] for why in cell.get("why", []))
        lines.append([cell["network"], cell["method"], *line, why])
    return lines


def choice() -> Lines:
    """What separates the methods when one is to be chosen: what they need and cost, and how much better than random.

    Bold where the whole interval is above zero, italic where it is below.
    """
    wanted = {"model": "resnet50", "library": "camlib", "images": 1, "classes": 1}
    cells = [cell for cell in load("suite")["cells"] if wanted.items() <= cell.items() and "time" in cell]
    times = {cell["method"]: f"{cell['time']:.3g}" for cell in cells}
    scores = {(record["method"], record["column"]): record for record in evaluated("methods")}
    columns = list(dict.fromkeys(column for _, column in scores))
    lines = [["method", "of a class", "gradients", "forwards of time", "networks"]]
    lines[0] += [column.partition("_")[0] for column in columns]
    for name, method in camlib.METHODS.items():
        line = [f":class:`~camlib.{method.__name__}`", "no" if method.class_agnostic else "yes"]
        line += ["yes" if method.needs_gradients else "no", times.get(name, NOT_MEASURED), explained(coverage(name))]
        lines.append([*line, *(marked(name, scores.get((name, column))) for column in columns)])
    return lines


def marked(method: str, record: Record | None) -> str:
    """A difference, bold or italic where its interval does not hold zero."""
    if record is None:
        return NOT_MEASURED if method in applicable() else "not here"
    over = record["over"]["random_cam"]
    (low, high), shown = over["interval"], f"{over['difference']:+.2f}"
    return "0" if method == "random_cam" else f"**{shown}**" if low > 0 else f"*{shown}*" if high < 0 else shown


def peers() -> Lines:
    """How many tests of each other library have a counterpart here, and what became of them."""
    tests = load("peers")["tests"]
    verdicts = list(dict.fromkeys(["pass", "by design", "cannot", *(test["verdict"] for test in tests)]))
    lines = [["tests of", "commit", "counterpart", *verdicts]]
    for peer in dict.fromkeys(test["peer"] for test in tests):
        found = [test["verdict"] for test in tests if test["peer"] == peer]
        lines.append([*peer.split(), str(len(found)), *(str(found.count(verdict)) for verdict in verdicts)])
    every = [test["verdict"] for test in tests]
    return [*lines, ["all", "", str(len(every)), *(str(every.count(verdict)) for verdict in verdicts)]]


def peers_reasons() -> Lines:
    """Why camlib does not do what some of these tests expect."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for test in load("peers")["tests"]:
        if test["verdict"] != "pass":
            reasons.setdefault((test["peer"].split()[0], test["verdict"], test["why"]), []).append(test["test"])
    lines = [
        [peer, verdict, str(len(tests)), escaped(why), escaped(", ".join(tests))]
        for (peer, verdict, why), tests in reasons.items()
    ]
    return [["tests of", "verdict", "tests", "reason", "which"], *lines]


def provenance() -> Lines:
    """When each result was made (or, if it has no date, committed), with what, and where."""
    lines = [["result", "date", "versions", "machine"]]
    for path in sorted(results.FOLDER.glob("*.json")):
        result = load(path.stem)
        versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
        date = result.get("date") or f"committed {result['committed']}"
        lines.append([path.stem, date, versions, result.get("machine", "")])
    return lines


GOALS = "goal = {what} | asked = {bound} {asked:g} | seen = {seen:.3g} | met = {met}"
PRECISIONS = (
    "network = {model} | precision = {precision} | subject = {subject} | seconds per image = {seconds an image:.4f} | "
    "forwards of time = {forwards of time:.2f} | seconds of the first call = {seconds of the first call:.1f}"
)
METRICS_APART = "metric = {metric} | peer = {peer} | on = {on} | largest difference = {difference:.0e} | why = {why}"
FUNCTIONS = (
    choice,
    coverage_methods,
    coverage_models,
    coverage_refusals,
    exporting,
    faithfulness,
    methods,
    parity,
    parity_reasons,
    peers,
    peers_reasons,
    zoo_networks,
    zoo_refusals,
    zoo_sources,
)
TABLES: dict[str, Callable[[], Lines]] = {made.__name__: made for made in (*FUNCTIONS, photographs, provenance)} | {
    "grad_cam": lambda: batches("grad_cam", "{time:.2f} ({memory:.2f})"),
    "compare": lambda: batches("compare", "{time:.2f}"),
    "price": lambda: batches("price", "{over the cut:.2f}"),
    "suite_methods": lambda: suite(METHOD, "model", camlib.METHODS, library="camlib", images=1, classes=1),
    "suite_grad_cam": lambda: suite(IMAGES | NETWORK, "library", method="grad_cam", classes=1),
    "suite_1_image": lambda: suite(NETWORK | METHOD, "library", images=1, classes=1),
    "suite_10_classes": lambda: suite(NETWORK | METHOD, "library", images=1, classes=10),
    "suite_8_images": lambda: suite(NETWORK | METHOD, "library", images=8, classes=1),
    "suite_32_images": lambda: suite(NETWORK | METHOD, "library", images=32, classes=1),
    "goals": lambda: listing("suite", "goals", GOALS),
    "precisions": lambda: listing("suite", "variants", PRECISIONS),
    "overlays": lambda: listing("suite", "overlays", "subject = {subject} | overlays per second = {per second:.0f}"),
    "truth_subjects": lambda: truth_tables.subjects(load("truth")),
    "truth_energy": lambda: truth_tables.by_method(truth_tables.named(load("truth"), tetris=False), "energy"),
    "truth_pointing": lambda: truth_tables.by_method(truth_tables.named(load("truth"), tetris=False), "pointing"),
    "truth_tetris": lambda: truth_tables.by_method(truth_tables.named(load("truth"), tetris=True), "rank"),
    "truth_advice": lambda: truth_tables.advice(load("truth")),
    "truth_marks": lambda: truth_tables.marks(load("marks")),
    "layer_scan": lambda: truth_tables.layers(load("layer_scan")),
    "metric_parity": lambda: listing("metric_parity", "rows", METRICS_APART),
}
"""What makes each table, by name."""


def markdown(lines: Lines) -> str:
    """A table as Markdown."""
    head, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


if __name__ == "__main__":
    print(*(markdown(TABLES[name]()) for name in sys.argv[1:] or TABLES), sep="\n\n")
