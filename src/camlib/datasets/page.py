"""A page about a whole run: mean heatmaps by class, the maps to look at first, groups of maps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camlib.datasets.rows import Row
from camlib.datasets.source import reason
from camlib.datasets.views import clusters, least_certain, mean_heatmap, most_degenerate
from camlib.errors import CamlibError, CamlibValueError, positive_int
from camlib.explanation import Explanation
from camlib.imaging import colorize, read_image
from camlib.imaging.geometry import Window
from camlib.reporting import Chart, Headline, Report, Section, Table
from camlib.reporting.page import report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEAN = (112, 112)
"""The size of a mean heatmap on the page."""
SIDE = 224
"""The size at which the gallery shows what the network saw."""
MOST_CLASSES = 24
"""The most classes whose means are shown; those of the most rows."""


def page(
    run: Sequence[Row],
    errors: Sequence[tuple[str, str]],
    count: int = 4,
    class_names: Any = None,
    title: str = "A whole run",
) -> Report:
    """Make the page of a run.

    Args:
        run: the rows of the run; its pictures are read from their paths.
        errors: the path of each image that failed, and why.
        count: how many rows of each kind, and how many groups.
        class_names: names of the classes.
        title: the page's title.

    Raises:
        CamlibValueError: the run has no rows, or none whose picture can be read.
        CamlibRuntimeError: jinja2 or scikit-learn is not installed.
    """
    count = positive_int("count", count)
    kinds: list[tuple[str, Sequence[Row]]] = [
        ("lowest contrast", most_degenerate(run, count)),
        ("least certain", least_certain(run, count)),
    ]
    sections = [_means(run, class_names)]
    groups = clusters(run, count) if _are_enough(run, count) else []
    if groups:
        figures = [(f"group {place}: {len(group.rows)} maps", group.mean) for place, group in enumerate(groups, 1)]
        about = "A group in which the network looks at one place whatever the object may be a shortcut."
        sections.append(Section("Groups of maps that are alike", [about, _chart("Means of the groups", figures)]))
        kinds += [(f"closest to the mean of group {place}", group.rows[:1]) for place, group in enumerate(groups, 1)]
    if errors:
        sections.append(Section("Images that failed", [Table(["path", "reason"], errors[:100])]))
    notes: dict[int, tuple[Row, list[str]]] = {}
    for note, rows in kinds:
        for row in rows:
            notes.setdefault(row.number, (row, []))[1].append(note)
    shown, pictures, kept = [], [], []
    for row, why in notes.values():
        try:
            pictures.append(_seen(row))
        except CamlibError as error:
            sections.append(Section(f"Picture {row.number}", [f"cannot be shown: {reason(error)}"]))
            continue
        shown.append(_first_map(row))
        kept.append((row, why))
    if not shown:
        raise CamlibValueError("none of the run's pictures can be read; a page needs them where they were")
    rows = [row for row, _ in kept]
    known = [row.confidence for row in rows]
    return report(
        Explanation.cat(shown),
        pictures,
        names=[row.path for row in rows],
        notes=["; ".join(why) for _, why in kept],
        confidences=None if any(map(math.isnan, known)) else known,
        class_names=class_names,
        title=title,
        summary=[
            Headline("images", str(len(run))),
            Headline("failed", str(len(errors))),
            Headline("without evidence", str(sum(any(row.degenerate) for row in run))),
        ],
        sections=sections,
    )


def _are_enough(run: Sequence[Row], count: int) -> bool:
    return sum(not row.degenerate[0] for row in run) > count


def _means(run: Sequence[Row], class_names: Any) -> Section:
    found = mean_heatmap(run, "class", MEAN)
    sizes: dict[int | str, int] = {}
    for row in run:
        key = row.classes[0] if row.classes else row.frame["target"]
        sizes[key] = sizes.get(key, 0) + 1
    assert isinstance(found, dict)
    most = sorted(found, key=lambda key: -sizes[key])[:MOST_CLASSES]
    figures = [(f"{_named(class_names, key)}: {sizes[key]} images", found[key]) for key in most]
    return Section("Mean heatmaps by class", [_chart("Where the network looked on average", figures)])


def _named(class_names: Any, key: int | str) -> str:
    if isinstance(key, str):
        return key
    return f"class {key}" if class_names is None else str(class_names[key])


def _chart(title: str, heatmaps: Sequence[tuple[str, Tensor]]) -> Chart:
    from matplotlib.figure import Figure

    columns = min(6, len(heatmaps))
    lines = -(-len(heatmaps) // columns)
    figure = Figure((1.8 * columns, 2.1 * lines), layout="constrained")
    for place, (name, heatmap) in enumerate(heatmaps, 1):
        axes = figure.add_subplot(lines, columns, place)
        axes.imshow(colorize(heatmap.clamp(0, 1)))
        axes.set_title(name[:28], fontsize=8)
        axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Chart(title, file.getvalue(), "; ".join(name for name, _ in heatmaps))


def _first_map(row: Row) -> Explanation:
    """The explanation of the first class, over the whole of a square input."""
    one = row.explanation
    target = one.target[:, :1] if isinstance(one.target, Tensor) and one.has_class_axis else one.target
    maps = one.heatmaps((SIDE, SIDE), "none")
    maps, scores = (maps[:, 0], one.scores[:, 0]) if one.has_class_axis else (maps, one.scores)
    if isinstance(target, Tensor):
        target = target.flatten()
    return Explanation(
        maps=maps,
        scores=scores,
        outputs=None,
        target=target,
        method=one.method,
        layer=one.layer,
        input_size=(SIDE, SIDE),
        class_agnostic=one.class_agnostic,
        quantity=one.quantity,
        relu=one.relu,
    )


def _seen(row: Row) -> NDArray[np.uint8]:
    """What the network saw of the picture of a row."""
    import numpy as np

    picture = read_image(row.path)
    if row.window is None:
        return np.ascontiguousarray(picture)
    window = Window(row.window.original, (SIDE, SIDE), row.window.box)
    seen = window.apply(torch.from_numpy(picture.copy()).movedim(-1, 0).float())
    return seen.round().clamp(0, 255).byte().movedim(0, -1).contiguous().numpy()
