"""Tables of ``truth.json``, ``marks.json`` and ``layer_scan.json`` for the documentation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import camlib
from benchmarks.advice import ADVICE

Record = dict[str, Any]
Lines = list[list[str]]
NOT_MEASURED = "not measured"
TETRIS = "XAI-TRIS"
BASELINES = ("random_cam", "center_gaussian", "sobel")


def in_top_group(record: Record) -> bool:
    """Whether a method is not significantly worse than the best one for a metric, in a paired comparison of images."""
    low: float = record["behind the best"]["interval"][0]
    return low <= 0


def top_group(subject: Record, metric: str) -> list[str]:
    """The methods of a subject that are not significantly worse than the best one, the best first."""
    methods = subject["methods"]
    found = [name for name, of in methods.items() if in_top_group(of[metric])]
    return sorted(found, key=lambda name: -methods[name][metric]["mean"])


def named(result: Record, tetris: bool) -> dict[str, Record]:
    """The subjects, those of XAI-TRIS or the others."""
    return {name: of for name, of in result["subjects"].items() if name.startswith(TETRIS) is tetris}


def names(subjects: dict[str, Record]) -> Iterator[str]:
    """Every method of the library, each followed by its variants."""
    measured = {name for subject in subjects.values() for name in subject["methods"]}
    for name in camlib.METHODS:
        yield name
        yield from sorted(one for one in measured if one in (f"{name} of the probability", f"balanced {name}"))


def short(value: float) -> str:
    """A share with two digits."""
    return f"{value:.2f}".replace("0.", ".") if 0 <= value < 1 else f"{value:.2f}"


def with_interval(record: Record) -> str:
    """A mean with its interval; bold in the top group."""
    low, high = record["interval"]
    mean = f"**{short(record['mean'])}**" if in_top_group(record) else short(record["mean"])
    return f"{mean} ({short(low)} to {short(high)})"


def by_method(subjects: dict[str, Record], metric: str) -> Lines:
    """A line for each method, a column for each subject."""
    lines = [["method", *(name.removeprefix(f"{TETRIS} ") for name in subjects)]]
    for name in names(subjects):
        cells = []
        for subject in subjects.values():
            if name in subject["methods"]:
                cells.append(with_interval(subject["methods"][name][metric]))
            else:
                cells.append("" if name in subject["left out"] or name not in camlib.METHODS else NOT_MEASURED)
        if any(cells) or all(cell == NOT_MEASURED for cell in cells):
            lines.append([name, *cells])
    return lines


def subjects(result: Record) -> Lines:
    """What each subject is, and which methods are in its top groups."""
    lines = [["subject", "what is explained", "maps", "seeds", "truth", "layer", "top group: energy", "pointing game"]]
    for name, of in result["subjects"].items():
        groups = [", ".join(top_group(of, metric)) for metric in ("energy", "pointing")]
        layer = f"``{of['layer']}``"
        lines.append(
            [name, of["about"], str(of["maps"]), str(of["seeds"]), short(of["share of the truth"]), layer, *groups]
        )
    return lines


def advice(result: Record) -> Lines:
    """What to use for what is explained, with the numbers."""
    lines = [["You explain", "method", "target", "layer", "energy", "pointing game", "above every baseline"]]
    for one in ADVICE:
        methods = result["subjects"][one.subject]["methods"]
        numbers = [
            ", ".join(short(methods[name][metric]["mean"]) for name in one.methods) for metric in ("energy", "pointing")
        ]
        proved = "yes" if one.proved else "not shown"
        lines.append([one.explained, ", ".join(map(role, one.methods)), one.target, one.layer, *numbers, proved])
    return lines


def for_readme() -> Lines:
    """What to use for what is explained, as Markdown's cells."""
    return [["You explain", "Use"], *([one.explained, " or ".join(map(code, one.methods))] for one in ADVICE)]


def code(name: str) -> str:
    """How a method is written."""
    plain = name.removeprefix("balanced ").removesuffix(" of the probability")
    called = f"camlib.{camlib.METHODS[plain].__name__}(model)"
    if name.startswith("balanced "):
        return f"`camlib.balanced({called})`"
    return f"`{called}` of `camlib.targets.Probability`" if plain != name else f"`{called}`"


def role(name: str) -> str:
    """A link to a method, with its variant."""
    plain = name.removeprefix("balanced ").removesuffix(" of the probability")
    link = f":class:`~camlib.{camlib.METHODS[plain].__name__}`"
    if name.startswith("balanced "):
        return f":func:`~camlib.balanced` {link}"
    return f"{link} of the probability" if plain != name else link


def marks(result: Record) -> Lines:
    """The share of energy on a mark, by what the network learned."""
    settings = ("shortcut", "noise", "absent")
    lines = [["", *settings, "shortcut over noise"]]
    for name, of in result["found"].items():
        low, high = of["shortcut over noise"]["interval"]
        difference = f"{of['shortcut over noise']['mean']:+.2f} ({low:+.2f} to {high:+.2f})"
        title = "what the mark adds to the log odds" if name == "logit" else name
        lines.append([title, *(f"{of[setting]['mean']:.2f}" for setting in settings), difference])
    return lines


def layers(result: Record) -> Lines:
    """Each method at each layer of the scans."""
    methods = list(dict.fromkeys(name for of in result["subjects"].values() for name in of["methods"]))
    lines = [["subject", "layer", "grid", *methods]]
    for subject, of in result["subjects"].items():
        for layer, grid in of["grids"].items():
            cells = [scanned(of["methods"].get(name, {}).get(layer)) for name in methods]
            lines.append([subject, f"``{layer}``", " x ".join(map(str, grid)), *cells])
    return lines


def scanned(record: Record | None) -> str:
    """A mean with its interval, or nothing."""
    if record is None:
        return ""
    low, high = record["interval"]
    return "none" if math.isnan(record["mean"]) else f"{short(record['mean'])} ({short(low)} to {short(high)})"


def above_baselines(subject: Record, metric: str) -> Sequence[str]:
    """The methods whose interval lies above every baseline's."""
    highest = max(subject["methods"][name][metric]["interval"][1] for name in BASELINES if name in subject["methods"])
    return [name for name, of in subject["methods"].items() if of[metric]["interval"][0] > highest]
