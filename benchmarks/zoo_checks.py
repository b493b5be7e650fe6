"""Two checks of a map that share no code with camlib: a restatement by plain hooks, and where its cells come from.

*The restatement* runs the network once with separate hooks, takes the gradient of the score, and computes Grad-CAM's
equation directly. How the layer's axes form the grid is found here as well: every arrangement of its shape into the
map's grid is tried (:func:`arrangements`), and the closest counts. It says that the map belongs to the named layer, and
that one way to read its axes gives this map.

*The own-place check* (:func:`places`) says that this reading is right: the gradient of a cell's features with respect
to the picture must be strongest in the cell's own place. A scrambled order, a wrong number of prefix tokens and an axis
that is no place in the picture cannot pass it. Cells of maps (N, C, H, W) may read coarse maps more than
their own place; they must get it where the places are shared out among the cells.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

Axes = tuple[int | None, ...]
"""For each axis of a grid the axis of the picture that it lies along; None where the picture has none."""
CELLS = 9
PROJECTIONS = 4
MOST_PREFIXES = 16


@dataclass(frozen=True)
class Arrangement:
    """One way to read a layer's axes: which one holds the channels, and how the others form the grid.

    Args:
        name: what it is called in the results.
        features: from the layer's output to features (N, *grid, C).
        pooled: over how many of the grid's last axes Grad-CAM averages the gradient; not over frames that are rows.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    pooled: int

    @property
    def flattened(self) -> bool:
        """Whether the layer's axes don't show the grid themselves."""
        return self.name not in ("channels first", "channels last")

    def grad_cam(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return the signed Grad-CAM (N, *grid): the sum over channels of the mean gradient times the activation."""
        a, g = self.features(activations), self.features(gradients)
        return (g.mean(tuple(range(-self.pooled - 1, -1)), keepdim=True) * a).sum(-1)


def arrangements(shape: tuple[int, ...], maps: tuple[int, ...]) -> Iterator[Arrangement]:
    """All arrangements of a layer's output into maps (N, *grid), the usual ones first.

    Rows are images, or the frames of images (image by image or frame by frame), where the grid's first axis is the
    frames. Channels are any other axis. What remains is flattened into tokens, of which some may be left out in front
    or behind; they run over the grid in the order of its axes or in any other.
    """
    images, *grid = maps
    rows: list[tuple[str, int]] = [("", 0)] if shape[0] == images else []
    if len(grid) > 1 and shape[0] == images * grid[0]:
        rows += [("rows are images x frames, ", 1)] + [("rows are frames x images, ", -1)] * (images > 1)
    for (of_rows, frames), channels in itertools.product(rows, range(1, len(shape))):
        own = grid[1:] if frames else grid
        others = [size for axis, size in enumerate(shape) if axis not in (0, channels)]
        left_out = math.prod(others) - math.prod(own)
        if left_out < 0 or not own:
            continue
        prefixes = dict.fromkeys([*range(min(left_out, MOST_PREFIXES) + 1), left_out])
        for order, prefix in itertools.product(itertools.permutations(range(len(own))), prefixes):
            plain = others == own and order == tuple(range(len(own)))
            name = "channels " + ("first" if channels == 1 else "last" if channels == len(shape) - 1 else "between")
            if not plain and (len(others) == 1 or left_out):
                name = f"tokens, {name}"
            if left_out:
                name += f", {prefix} in front and {left_out - prefix} behind left out"
            if order != tuple(range(len(own))):
                name += f", axes run as {order}"
            function = _features(channels, prefix, own, order, images, frames and frames * grid[0])
            yield Arrangement(of_rows + name, function, len(own))


def _features(
    channels: int, prefix: int, grid: list[int], order: tuple[int, ...], images: int, frames: int
) -> Callable[[Tensor], Tensor]:
    def features(output: Tensor) -> Tensor:
        tokens = output.movedim(channels, -1).flatten(1, -2)[:, prefix : prefix + math.prod(grid)]
        cells: Tensor = tokens.unflatten(1, [grid[axis] for axis in order])
        cells = cells.permute(0, *(1 + order.index(axis) for axis in range(len(grid))), cells.dim() - 1)
        if frames > 0:
            cells = cells.unflatten(0, (images, frames))
        return cells.unflatten(0, (-frames, images)).transpose(0, 1) if frames < 0 else cells

    return features


def differentiable(inputs: Any) -> tuple[Any, list[Tensor]]:
    """Return the inputs with clones of leaves in place of all floating-point tensors, and the leaves."""
    leaves: list[Tensor] = []

    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1].clone()
        if isinstance(value, Mapping):
            return {key: replaced(one) for key, one in value.items()}
        return type(value)(map(replaced, value)) if isinstance(value, (list, tuple)) else value

    return replaced(inputs), leaves


def module_called(model: nn.Module, name: str) -> nn.Module | None:
    """The module of this name, without what a name for display may add ("trunk (call 2)", "trunk#2", "trunk[1]")."""
    modules = dict(model.named_modules())
    return modules.get(name) or modules.get(re.split(r"[\s\[(#@:]", name)[0])


def outputs_at(model: nn.Module, names: list[str], run: Callable[[], Any]) -> tuple[Any, dict[str, list[Tensor]]]:
    """Run the network and keep what the named modules return, each time that they are called.

    Args:
        model: the network.
        names: the modules'; those that do not exist keep nothing.
        run: calls the network.

    Returns:
        What ``run`` returns, and the tensors by name; the network got copies, since it may change them in place.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in names}

    def keeper(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def keep(module: nn.Module, arguments: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                kept[name].append(output.clone())
                return kept[name][-1].clone()
            if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
                kept[name].append(output[0].clone())
                return type(output)([kept[name][-1].clone(), *output[1:]])
            if isinstance(output, Mapping):
                kept[name].append(next(value for value in output.values() if isinstance(value, Tensor)))
            return None

        return keep

    norms = [one for one in model.modules() if re.search(r"(Batch|Instance)Norm", type(one).__name__)]
    hooks = [norm.register_forward_pre_hook(contiguous_input) for norm in norms]
    hooks += [norm.register_forward_hook(contiguous_gradient) for norm in norms]
    modules = {name: module_called(model, name) for name in names}
    hooks += [module.register_forward_hook(keeper(name)) for name, module in modules.items() if module is not None]
    try:
        return run(), kept
    finally:
        for hook in hooks:
            hook.remove()


def contiguous_input(module: nn.Module, arguments: Any) -> Any:
    """A pre-hook for batch and instance norms, with :func:`contiguous_gradient`.

    Their gradients on a CPU are wrong (torch 2.14) for a single image whose features, or whose gradient, were tokens
    just before: strides (C, 1, w C, C) are those of channels last but for the batch's, which does not matter.
    """
    return (arguments[0].contiguous(), *arguments[1:])


def contiguous_gradient(module: nn.Module, arguments: Any, output: Any) -> None:
    """A hook for batch and instance norms, with :func:`contiguous_input`."""
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(lambda gradient: gradient.contiguous())


@dataclass(frozen=True)
class Restated:
    """The closest restatement of a map.

    Args:
        difference: the largest difference of the signed maps, divided by the largest value; infinite if there is no
            arrangement.
        arrangement: which reading of the layer's axes; None if none has the map's shape.
        output: the layer's output.
    """

    difference: float
    arrangement: Arrangement | None
    output: Tensor | None


def restated(
    maps: Tensor, outputs: list[Tensor], score: Tensor, known: Callable[[Tensor], Tensor] | None = None
) -> Restated:
    """Restate a signed Grad-CAM.

    Args:
        maps: (N, *grid), as camlib gives them with ``relu=False``.
        outputs: of the layer, one for each call.
        score: (N,), in the outputs' graph.
        known: the only reading of the layer's axes to try, as :attr:`Arrangement.features`; None for all usual ones.
    """
    best = Restated(math.inf, None, None)
    gradients = torch.autograd.grad(score.sum(), outputs, retain_graph=True, allow_unused=True) if outputs else ()
    largest = float(maps.abs().amax())
    for output, gradient in zip(outputs, gradients, strict=True):
        if gradient is None or not largest:
            continue
        usual = arrangements(tuple(output.shape), tuple(maps.shape))
        for arrangement in usual if known is None else [Arrangement("the network's own order", known, maps.dim() - 1)]:
            expected = arrangement.grad_cam(output.detach(), gradient)
            difference = float((expected - maps).abs().amax()) / largest
            if difference < best.difference:
                best = Restated(difference, arrangement, output)
    return best


@dataclass(frozen=True)
class Places:
    """Where the tried cells of a map come from.

    Args:
        cells: how many were tried.
        own: of how many the strongest place is their own, or :func:`near` it.
        shared_out: how many get their own place where the tried places are shared out: see :func:`in_own_place`.
        shift: for each axis of the grid, 1 or -1 if all cells are shifted to the same side, else 0.
        picture: which of the inputs they read most.
    """

    cells: int
    own: int
    shared_out: int
    shift: tuple[int, ...]
    picture: int

    @property
    def proved(self) -> bool:
        """Whether every cell is in its own place, and they are not all shifted to the same side."""
        return self.cells > 0 and self.own == self.cells and not any(self.shift)


def places(
    features: Tensor, leaves: list[Tensor], axes: Axes | None = None, extent: Any = None, origin: Any = None
) -> Places:
    """Find the place of the picture that cells which are spread over the grid read most.

    What all of these cells read alike, as through a global pooling, is taken away first: of each cell's shares of
    places, the mean of the shares over cells.

    Args:
        features: (N, *grid, C), in the graph of the leaves.
        leaves: the inputs, among them the picture: the one that the cells read most. (N, ...), or (C, H, W) for a
            detector's list of images.
        axes: the picture's axes along the grid; None for its last ones.
        extent: how many of the picture's pixels the grid covers along each axis, if not all.
        origin: at which of the picture's pixels the grid begins along each axis, if not at the first.
    """
    images, grid = len(features), tuple(features.shape[1:-1])
    generator = torch.Generator().manual_seed(0)
    chosen = spread((images, *grid))
    if not leaves:
        return Places(len(chosen), 0, 0, (), 0)
    strengths: list[list[Tensor]] = []
    for place in chosen:
        cell = features[place]
        strengths.append([torch.zeros_like(leaf) for leaf in leaves])
        for _ in range(PROJECTIONS):
            direction = torch.randn(cell.shape, generator=generator).to(cell)
            gradients = torch.autograd.grad(cell @ direction, leaves, retain_graph=True, allow_unused=True)
            for strength, gradient in zip(strengths[-1], gradients, strict=True):
                strength += 0 if gradient is None else gradient.square()
    totals = [sum(float(of_cell[leaf].sum()) for of_cell in strengths) for leaf in range(len(leaves))]
    picture = max(range(len(leaves)), key=totals.__getitem__)
    on_grid = [of_places(of_cell[picture], images, grid, axes, extent, origin) for of_cell in strengths]
    shares = [None if one is None or not one.any() else one / one.sum() for one in on_grid]
    seen = [one for one in shares if one is not None]
    common = torch.stack(seen).mean(0) if len(seen) > 1 else 0
    own, offsets = 0, []
    for place, share in zip(chosen, shares, strict=True):
        if share is None:
            continue
        strongest = [int(at) for at in torch.unravel_index((share - common).argmax(), share.shape)]
        differences = zip(strongest[1:], place[1:], share.shape[1:], strict=True)
        offset = [0 if size == 1 else to - at for to, at, size in differences]
        offsets.append(offset)
        own += strongest[0] == place[0] and all(abs(one) <= near(size) for one, size in zip(offset, grid, strict=True))
    shift = tuple(int(min(along) > 0) - int(max(along) < 0) for along in zip(*offsets, strict=True))
    shared_out = in_own_place(torch.stack(seen), chosen) if len(seen) == len(chosen) else 0
    return Places(len(chosen), own, shared_out, shift, picture)


def in_own_place(shares: Tensor, cells: list[tuple[int, ...]]) -> int:
    """Return how many cells get their own place where the places of all cells are shared out among them.

    Of all ways to give each cell one of the places, this is the one in which the cells read most of what they get (the
    largest product of shares). It doesn't matter that all cells read some places more than others, as the one where a
    max pooling finds its maximum. A place is as large as an eighth of the grid.

    Args:
        shares: (cells, N, *grid), the share of each place in what a cell reads.
        cells: the cells' indices in (N, *grid).
    """
    for axis in range(2, shares.dim()):
        size = max(1, shares.shape[axis] // 8) | 1
        rows = shares.movedim(axis, -1)
        averaged = nn.functional.avg_pool1d(rows.flatten(0, -2), size, 1, size // 2, count_include_pad=False)
        shares = averaged.reshape(rows.shape).movedim(-1, axis)
    indices: list[Any] = [(slice(None), *cell) for cell in cells]
    table = torch.stack([shares[index] for index in indices], 1)
    places_of_cells = linear_sum_assignment(table.double().clamp(min=1e-300).log().numpy(), maximize=True)[1]
    return sum(cell == place and bool(table[cell, place] > 0) for cell, place in enumerate(places_of_cells.tolist()))


def near(size: int) -> int:
    """Up to which distance the strongest place counts as a cell's own, along an axis of so many cells."""
    return 0 if size < 4 else max(1, size // 10)


def of_places(
    strength: Tensor, images: int, grid: tuple[int, ...], axes: Axes | None, extent: Any, origin: Any = None
) -> Tensor | None:
    """Return a picture's strength as the mean in each cell, (N, *grid); None if the picture has no such axes.

    Axes of the grid without an axis of the picture have one place.
    """
    if axes is None:
        strength = strength[None] if strength.dim() == len(grid) + 1 and len(strength) != images else strength
        axes = tuple(range(strength.dim() - len(grid), strength.dim()))
    along = [axis for axis in axes if axis is not None]
    if len(axes) != len(grid) or min(along, default=0) < 1 or len(strength) != images:
        return None
    others = tuple(axis for axis in range(1, strength.dim()) if axis not in along)
    strength = strength.sum(others) if others else strength
    kept = sorted(along)
    strength = strength.permute(0, *(1 + kept.index(axis) for axis in along))
    for position, axis in enumerate(axes, 1):
        if axis is None:
            strength = strength.unsqueeze(position)
            continue
        pixels, cells = strength.shape[position], grid[position - 1]
        covered = pixels if extent is None else extent[position - 1]
        mean = overlaps(pixels, cells, covered, origin[position - 1] if origin else 0.0).to(strength)
        strength = torch.tensordot(strength, mean, ([position], [1])).movedim(-1, position)
    return strength


def overlaps(pixels: int, cells: int, extent: float, origin: float = 0.0) -> Tensor:
    """(cells, pixels): which part of a pixel lies in each of the cells that divide the extent equally."""
    edges = origin + torch.arange(cells + 1, dtype=torch.float64) * extent / cells
    left, right = edges[:-1, None], edges[1:, None]
    pixel = torch.arange(pixels, dtype=torch.float64)
    return (torch.minimum(right, pixel + 1) - torch.maximum(left, pixel)).clamp(min=0)


def spread(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Up to nine places in (N, *grid), spread over all axes, with both ends of each."""
    axes = [sorted({round(part * (size - 1)) for part in (0.0, 0.5, 1.0)}) for size in shape[1:]]
    if len(axes) == 1:
        axes = [sorted({round(part / (CELLS - 1) * (shape[1] - 1)) for part in range(CELLS)})]
    cells = list(itertools.product(*axes))
    if len(cells) > CELLS:  # of a volume, every third of the 27 such that all ends are among them
        cells = [cell for cell in cells if sum(axis.index(at) for axis, at in zip(axes, cell, strict=True)) % 3 == 0]
    return [(number % shape[0], *cell) for number, cell in enumerate(cells)]
