"""The positions of layers' cells in the images, as found in a network's first passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from camlib.imaging.extent import Covered
from camlib.inputs import ImageAxes, Inputs
from camlib.layers.layouts import Layout, Size, Tokens


@dataclass
class Located:
    """Where the cells of a layer lie, for inputs of one kind."""

    axes: ImageAxes
    """The axes of the images that the layer is a map of."""
    covered: Covered | None
    """Which part of the images it covers; None for the whole."""
    of_several: bool
    """Whether a batch of two or more images confirmed it, which proves the order of the rows."""
    layouts: dict[Size, Layout] = field(default_factory=dict)
    """Its layouts, by its shape without the images."""

    def holds_for(self, inputs: Inputs) -> bool:
        """Return whether this holds for inputs with this number of images.

        A token order found with a single image may depend on that image, so it is not reused.
        """
        in_own_order = any(isinstance(one, Tokens) and one.order is not None for one in self.layouts.values())
        return self.of_several or (count(inputs, self.axes) == 1 and not in_own_order)


def count(inputs: Inputs, axes: ImageAxes) -> int:
    """Return the number of images."""
    if inputs.is_list:
        return len(inputs.tensors)
    return len(inputs.tensors[axes.tensor]) if inputs.tensors else 1


def without_images(shape: Size, images: int) -> Size:
    """Return the shape of a layer's output without the axis of the images, which is the second one in (T, N, C)."""
    return shape[:1] + shape[2:] if len(shape) == 3 and shape[0] != images == shape[1] else shape[1:]


class LocatedLayers:
    """All layers of a network that were located, by name and kind of the inputs."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Any], Located] = {}
        self.misread_norms: bool | None = None
        """Whether PyTorch may compute a batch norm's gradient wrongly; None until a first pass was followed."""

    def copy(self) -> LocatedLayers:
        """Return a copy, which later passes do not change."""
        other = LocatedLayers()
        other.become(self)
        return other

    def become(self, other: LocatedLayers) -> None:
        """Know what the other knows, and nothing else."""
        self._known, self.misread_norms = dict(other._known), other.misread_norms

    def of(self, layer: str, inputs: Inputs) -> Located | None:
        """Return what is known about a layer, or None if it was not located for inputs of this kind."""
        return self._known.get((layer, inputs.kind))

    def layout(self, layer: str, shape: Size, inputs: Inputs) -> Layout | None:
        """Return the layout of a layer's output of this shape; None if it is not known."""
        found = self.of(layer, inputs)
        return None if found is None else found.layouts.get(without_images(shape, count(inputs, found.axes)))

    def covered(self, layer: str, inputs: Inputs) -> Covered | None:
        """Return which part of the images a layer covers; None for the whole, or if it is not known."""
        found = self.of(layer, inputs)
        return None if found is None else found.covered

    def add(
        self,
        layer: str,
        inputs: Inputs,
        axes: ImageAxes,
        layout: Layout | None = None,
        shape: Size = (),
        covered: Covered | None = None,
    ) -> None:
        """Store what a pass showed about a layer.

        Args:
            layer: its name.
            inputs: the inputs of the pass.
            axes: where the images are that it is a map of.
            layout: its layout; None behind ``reshape=``.
            shape: the shape of its output.
            covered: which part of the images it covers; None for the whole.
        """
        images, before = count(inputs, axes), self.of(layer, inputs)
        found = Located(axes, covered, images > 1)
        if before is not None and (before.axes, before.covered) == (axes, covered):
            found.of_several |= before.of_several
            found.layouts |= before.layouts
        if layout is not None:
            found.layouts[without_images(shape, images)] = layout
        self._known[layer, inputs.kind] = found

    def note_norms(self, misread: bool) -> None:
        """Store whether PyTorch may compute a batch norm's gradient wrongly, as a pass showed."""
        self.misread_norms = bool(self.misread_norms) or misread

    def learn(self, other: LocatedLayers) -> None:
        """Merge what another method knows about the same network."""
        if other.misread_norms is not None:
            self.note_norms(other.misread_norms)
        for key, theirs in other._known.items():
            mine = self._known.get(key)
            if mine is None or (theirs.of_several and not mine.of_several):
                self._known[key] = theirs
