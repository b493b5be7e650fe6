"""The tables and the figure of what :mod:`benchmarks.suite` measured.

``python -m benchmarks.report`` makes them again from ``benchmarks/results/suite.json``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- suite: begin -->", "<!-- suite: end -->"
LIBRARIES = ("camlib", "torchcam", "captum", "grad-cam")
AXES = {
    "images": "Grad-CAM, ResNet-18: images",
    "channels": "Ablation-CAM, synthetic network: channels",
    "classes": "Grad-CAM, ResNet-18, one image: classes",
}


def places(output: Path | None) -> tuple[Path, Path, Path]:
    """The folder of results, that of the figure, and the page with the tables; all in ``output`` if it is given."""
    if output is None:
        return ROOT / "benchmarks" / "results", ROOT / "docs" / "_static", ROOT / "benchmarks" / "README.md"
    output.mkdir(parents=True, exist_ok=True)
    return output, output, output / "README.md"


def table(lines: Iterable[Iterable[str]]) -> str:
    """Lines, the first of which is the head, as Markdown."""
    head, *body = ([str(cell) for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def shown(cell: dict[str, Any] | None) -> str:
    """Time, memory in brackets, and the forwards; or why there is nothing."""
    if cell is None:
        return ""
    if "left out" in cell:
        reason: str = cell["left out"]
        return reason.partition(" (")[0] if reason.startswith("not run") else reason.partition(":")[0]
    passes = cell["images through the network"] / cell["images"]
    return f"{cell['time']:.2f} ({cell['memory']:.2f}), {passes:.3g}"


def goals(results: dict[str, Any]) -> str:
    """The goals, and what was seen."""
    lines = [("goal", "asked", "seen", "met")]
    for line in results["goals"]:
        sign = "at most" if line["at most"] else "at least"
        lines.append(
            (line["what"], f"{sign} {line['asked']:g}", f"{line['seen']:.3g}", "yes" if line["met"] else "**no**")
        )
    return table(lines)


def cells(results: dict[str, Any], images: int, classes: int) -> str:
    """A table of methods by library for each model."""
    of_size = [cell for cell in results["cells"] if (cell["images"], cell["classes"]) == (images, classes)]
    parts = []
    for model in dict.fromkeys(cell["model"] for cell in of_size):
        found = {(cell["method"], cell["library"]): cell for cell in of_size if cell["model"] == model}
        libraries = [library for library in LIBRARIES if any(library == of for _, of in found)]
        methods = dict.fromkeys(method for method, _ in found)
        body = [[f"`{method}`", *(shown(found.get((method, library))) for library in libraries)] for method in methods]
        parts.append(f"**{model}**\n\n" + table([["method", *libraries], *body]))
    return "\n\n".join(parts)


def variants(results: dict[str, Any]) -> str:
    """Seconds for each image in both precisions, eager and compiled."""
    body = [
        (
            line["model"],
            line["precision"],
            line["subject"],
            f"{1000 * line['seconds an image']:.1f}",
            f"{line['forwards of time']:.2f}",
            f"{line['seconds of the first call']:.1f}",
        )
        for line in results["variants"]
    ]
    head = ("model", "precision", "subject", "ms an image", "forwards of time", "first call, s")
    return table([head, *body])


def markdown(results: dict[str, Any]) -> str:
    """All tables."""
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    side, overlay = results["plan"]["side"], results["overlays per second"]
    parts = [
        f"{results['machine']}; {versions}; plan `{results['plan']['name']}`, {results['minutes']:.0f} minutes.\n\n"
        "Left out: " + "; ".join(results["left out"]) + ".",
    ]
    if results["goals"]:
        parts.append("### Goals\n\n" + goals(results))
    parts.append(
        "### Methods\n\nEach cell: time (and peak memory of live tensors) relative to a bare `inference_mode` forward "
        "pass of the same images, then the forward passes of the whole network. What a call leaves behind counts as "
        f"memory too: grad-cam makes gradients of all parameters. Images of {side} x {side}."
    )
    for images, classes in dict.fromkeys((cell["images"], cell["classes"]) for cell in results["cells"]):
        title = f"{images} image{'s' * (images > 1)}, {classes} class{'es' * (classes > 1)}"
        parts.append(f"#### {title}\n\n" + cells(results, images, classes))
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in overlay.items())
    parts.append(f"### Overlays\n\nPictures of {side} x {side} per second: {rates}.")
    if results["variants"]:
        parts.append(
            "### Precisions and torch.compile\n\nRelative to the eager forward pass of the same precision, 16 images "
            "at a time; Ablation-CAM and Score-CAM explain one image. Compiling is in the first call of `forward, "
            "compiled`.\n\n" + variants(results)
        )
    parts.append("### Growth\n\n![Time against images, channels and classes](../docs/_static/benchmarks.png)")
    return "\n\n".join(parts)


def tables_of_docs(results: dict[str, Any]) -> dict[str, list[list[str]]]:
    """By file name the tables that the documentation shows: the goals, every method, and Grad-CAM beside the peers."""
    of_one = [cell for cell in results["cells"] if (cell["images"], cell["classes"]) == (1, 1)]
    models = list(dict.fromkeys(cell["model"] for cell in of_one))
    ours = {(cell["method"], cell["model"]): cell for cell in of_one if cell["library"] == "camlib"}
    theirs = {
        (cell["library"], cell["model"], cell["images"]): cell
        for cell in results["cells"]
        if cell["method"] == "grad_cam" and cell["classes"] == 1
    }
    sizes = list(dict.fromkeys(images for _, _, images in theirs))
    return {
        "suite_goals.csv": [
            ["goal", "asked", "seen", "met"],
            *(
                [
                    line["what"],
                    f"{'at most' if line['at most'] else 'at least'} {line['asked']:g}",
                    f"{line['seen']:.3g}",
                    "yes" if line["met"] else "no",
                ]
                for line in results["goals"]
            ),
        ],
        "suite_methods.csv": [
            ["method", *models],
            *(
                [method, *(shown(ours.get((method, model))) for model in models)]
                for method in dict.fromkeys(method for method, _ in ours)
            ),
        ],
        "suite_grad_cam.csv": [
            ["images", "model", *LIBRARIES],
            *(
                [str(images), model, *(shown(theirs.get((library, model, images))) for library in LIBRARIES)]
                for images in sizes
                for model in models
            ),
        ],
    }


def figure(results: dict[str, Any], path: Path) -> None:
    """Draw the growth of time, on log axes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (what, label) in zip(drawn.subplots(1, len(AXES)), AXES.items(), strict=True):
        points = [point for point in results["growth"] if point["of"] == what]
        for name, style in (("camlib", "o-"), ("grad-cam", "s--"), ("forward", "k:")):
            axes.loglog(
                [point["number"] for point in points],
                [point["seconds"][name] for point in points],
                style,
                label="bare forward pass" if name == "forward" else name,
            )
        axes.set(xlabel=label, ylabel="time (s)")
        axes.grid(alpha=0.3)
    axes.legend()
    drawn.savefig(path, dpi=100)


def write(results: dict[str, Any], page: Path, folder: Path, data: Path) -> None:
    """Put the tables between the markers of a page, or into a new one, and into CSV files; draw the figure."""
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}")
    figure(results, folder / "benchmarks.png")
    for name, lines in tables_of_docs(results).items():
        with (data / name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    results_folder, figures, tables = places(None)
    write(json.loads((results_folder / "suite.json").read_text()), tables, figures, results_folder)
