"""Follow positions through a forward pass: which place in the inputs every element of every tensor belongs to.

Each element of an input has a coordinate along each axis. Every operation of the pass passes coordinates on: a
rearrangement moves them, a convolution or a pooling computes those of its windows' centres, a product or a mean over an
axis averages them along that axis, and an element-wise operation joins those of its operands. The rows of an attention
are its queries. Coordinates that an operation mixes beyond recognition, or that this module does not know how to
follow, are dropped, so what is left is proved by the network's own operations, not inferred from shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from camlib.discovery.coordinates import Coordinate, Place, aligned, along, compact, full
from camlib.discovery.rules import LOCAL, Call, rule_of, tensors_in_arguments


class Positions(TorchDispatchMode):
    """A context that follows the positions of the elements of some tensors through all operations of this thread.

    Args:
        inputs: the tensors to follow.

    Example:
        >>> import torch
        >>> image, patches = torch.rand(1, 3, 32, 48), torch.nn.Conv2d(3, 8, 16, 16)
        >>> with torch.no_grad(), Positions([image]) as positions:
        ...     tokens = patches(image).flatten(2).mT
        >>> [coordinate.values.flatten().tolist() for coordinate in positions.of(tokens).values()]
        [[0.0], [7.5, 7.5, 7.5, 23.5, 23.5, 23.5], [7.5, 23.5, 39.5, 7.5, 23.5, 39.5]]
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, tuple[StorageWeakRef, dict[Any, Place]]] = {}
        self.not_followed: set[str] = set()
        """The operations that were met, and that no rule follows, or that lost places."""
        self.met_norms_of_maps = False
        """Whether the pass called a batch norm on maps."""
        self.met_transpositions = False
        """Whether the pass transposed tensors of three or more axes, as between tokens and maps."""
        for number, tensor in enumerate(inputs):
            self._set(tensor, {(number, axis): along(tensor.shape, axis) for axis in range(tensor.dim())})

    def of(self, tensor: Tensor) -> Place:
        """Return the coordinates that are known of a tensor's elements; empty if none are."""
        key = _storage(tensor)
        known = None if key is None else self._known.get(key)
        return {} if known is None else known[1].get(_geometry(tensor), {})

    def _set(self, tensor: Tensor, place: Place) -> None:
        key = _storage(tensor)
        if key is None:
            return
        if key not in self._known:
            if not place:
                return
            # a weak reference keeps the address from being used again for another storage
            self._known[key] = StorageWeakRef(tensor.untyped_storage()), {}
        if place:
            self._known[key][1][_geometry(tensor)] = place
        else:
            self._known[key][1].pop(_geometry(tensor), None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation, and pass on the positions."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if not any(self.of(tensor) for tensor in tensors_in_arguments((*args, *kwargs.values()))) and name != "copy_":
            if name.endswith("_") and isinstance(output, Tensor):
                return output
            for tensor in tensors_in_arguments(output if isinstance(output, (tuple, list)) else (output,)):
                self._set(tensor, {})  # not that of a freed tensor
            return output
        self.met_norms_of_maps |= "batch_norm" in name and args[0].dim() > 3
        self.met_transpositions |= name in ("transpose", "permute") and args[0].dim() > 2
        call = Call(self.of, func, args, kwargs, output)
        try:
            if name in ("copy_", "index_put_", "masked_scatter_", "scatter_"):
                self._write(name, call)
                return output
            rule = rule_of(name, func)
            places = rule(call) if rule else []
        except Exception:  # arguments that the rule does not expect: the places are unknown, and the pass goes on
            rule, places = None, []
        if rule is None or (rule in LOCAL and any(one is None for place in places for one in place.values())):
            self.not_followed.add(name)
        if rule is None and name.endswith("_") and isinstance(args[0], Tensor):
            self._forget(args[0])  # a change in place that is not followed, also of the tensor that this is a view of
        places += [{}] * (len(call.results) - len(places))
        for result, place in zip(call.results, places, strict=False):
            self._set(result, {axis: one for axis, one in place.items() if one is not None and one.is_known})
        return output

    def _forget(self, tensor: Tensor) -> None:
        """Drop what is known of a tensor and of all views of the same values."""
        key = _storage(tensor)
        if key in self._known:
            self._known[key][1].clear()

    def _write(self, name: str, call: Call) -> None:
        """A write into a tensor or a view of one: into the coordinates of the whole."""
        target = call.args[0]
        source = call.args[2] if name in ("index_put_", "masked_scatter_") else call.args[1 if name == "copy_" else 3]
        written = self.of(source) if isinstance(source, Tensor) else {}
        whole = target if target._base is None else target._base
        if name == "copy_" and whole is target:
            self._set(target, {axis: aligned(one, target) for axis, one in written.items()})
            return
        place, was = {}, self.of(whole)
        for axis in {*was, *written}:
            values = torch.full(tuple(whole.shape), math.nan)
            if axis in was:
                values.copy_(was[axis].values)
            stored = torch.empty_strided(tuple(whole.shape), whole.stride()).copy_(values)
            part = stored.as_strided(target.shape, target.stride(), target.storage_offset() - whole.storage_offset())
            new = full(written.get(axis), source) if isinstance(source, Tensor) else torch.tensor(math.nan)
            if name == "copy_":
                part.copy_(new)
            elif name == "index_put_":
                part.index_put_([i if i is None else i.cpu() for i in call.args[1]], new)
            elif name == "masked_scatter_":
                part.masked_scatter_(call.args[1].cpu(), new)
            else:
                part.scatter_(call.args[1], call.args[2].cpu(), new)
            place[axis] = compact(Coordinate(stored, (written.get(axis) or was[axis]).pitch))
        self._forget(target)
        self._set(whole, place)
        if whole is not target:
            self._set(target, self._seen_by(target, whole, place))

    @staticmethod
    def _seen_by(view: Tensor, whole: Tensor, place: Place) -> Place:
        seen = {}
        for axis, one in place.items():
            stored = torch.empty_strided(tuple(whole.shape), whole.stride()).copy_(one.values.expand(whole.shape))
            part = stored.as_strided(view.shape, view.stride(), view.storage_offset() - whole.storage_offset())
            seen[axis] = compact(Coordinate(part, one.pitch))
        return seen


def _storage(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata) if tensor.numel() else None
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without storage
        return None


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
