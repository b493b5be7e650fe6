"""Whether a network ends in a softmax or a sigmoid, and the logits that this last function was given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from camlib.inputs import Outputs, links
from camlib.inputs.outputs import CLASSES

_FUNCTIONS: dict[Any, links.Ending] = {
    torch.ops.aten.sigmoid.default: "sigmoid",
    torch.ops.aten.sigmoid_.default: "sigmoid",
    torch.ops.aten.log_sigmoid_forward.default: "log_sigmoid",
    torch.ops.aten._softmax.default: "softmax",
    torch.ops.aten._log_softmax.default: "log_softmax",
}
_BOUNDED = frozenset({"hardsigmoid", "special_ndtr", "bounded"})
"""Functions that return nothing outside [0, 1], so that outputs are probabilities."""
_CLAMPS = frozenset({"clamp", "clamp_", "hardtanh", "hardtanh_"})
"""Functions that do so if their own bounds, the second and the third argument, lie in [0, 1]."""
_DOUBTFUL = frozenset({"div", "div_", "reciprocal", "rsub", "pow", "exp", "with a number"})
"""Functions that may compute a probability by hand, or divide a logit by a temperature."""
_JOINED = frozenset({"cat", "stack"})
"""Functions that join the outputs of several heads."""
_WITH_A_NUMBER = frozenset({"add", "add_", "sub", "sub_", "mul", "mul_"})
"""Functions that count as doubtful if one argument is a number."""
_ROUNDING = 1e-2
"""How far a copy in half precision may be from the probabilities."""


class _Call(NamedTuple):
    """A call of a softmax over the second axis, or of a sigmoid."""

    ending: links.Ending
    given: Tensor | None
    """The logits; None if the call overwrote them."""
    returned: Tensor


class _LastCalls(TorchDispatchMode):
    """Records the last calls of a softmax over the second axis or of a sigmoid, the latest first.

    It works below autograd, where the tensors still are those of the graph: above, a mode would switch off the fast
    paths of torch's transformer layers, which round differently.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: deque[_Call] = deque(maxlen=3)
        self.last: deque[str] = deque(["", ""], maxlen=2)
        """The names of the last two functions that are no views."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        if not function.is_view:
            name = function.name().removeprefix("aten::").split(".")[0]
            with_number = name in _WITH_A_NUMBER and not all(isinstance(one, Tensor) for one in args)
            bounds = args[1:3] if name in _CLAMPS else ()
            bounded = len(bounds) == 2 and all(isinstance(one, (int, float)) and 0 <= one <= 1 for one in bounds)
            self.last.append("with a number" if with_number else "bounded" if bounded else name)
        ending = _FUNCTIONS.get(function)
        if ending:
            first = returned[0] if isinstance(returned, tuple) else returned
            if "softmax" not in ending or (first.dim() > 1 and args[1] in (1, 1 - first.dim())):
                overwritten = function is torch.ops.aten.sigmoid_.default
                self.calls.appendleft(_Call(ending, None if overwritten else args[0], first))
        return returned


class Ending:
    """How a network ends. The first run shows it, and later runs look only where there is something to find."""

    def __init__(self) -> None:
        self._kind: Literal["unknown", "logits", "view", "copy", "values"] = "unknown"
        self._of_values: links.Ending = "softmax"
        self._doubtful = False

    @property
    def shows_logits(self) -> bool:
        """Whether a run has shown that the outputs are logits."""
        return self._kind == "logits" and not self._doubtful

    def noted(self, run: Callable[[], Any]) -> Any:
        """Run the network; note on its class scores which function returned them, and the logits.

        The function is found where the outputs are what it returned, in whole or in part, or a copy of that. Where
        they were computed from it otherwise, and where each row sums to one, only the function is noted.

        Args:
            run: runs the network and returns its outputs.
        """
        watch = _LastCalls() if self._kind in ("unknown", "view", "copy") else None
        if watch is None:
            raw = run()
        else:
            with watch:
                raw = run()
        outputs = raw if isinstance(raw, Tensor) else Outputs(raw).named(CLASSES)
        if outputs is None or not outputs.is_floating_point() or not outputs.dim():
            return raw
        calls = () if watch is None else tuple(watch.calls)
        if self._kind == "unknown":
            self._learn(outputs, calls, ("", "") if watch is None else tuple(watch.last))
        if self._kind in ("unknown", "logits"):
            links.note(outputs, None, doubtful=self._doubtful)
        elif self._kind == "values":
            links.note(outputs, self._of_values)
        else:
            found = _as_view if self._kind == "view" else _as_copy
            ending, logits = next(filter(None, (found(outputs, call) for call in calls)), (self._of_values, None))
            single = links.has_one_column(outputs) and ending in ("softmax", "log_softmax")
            links.note(outputs, ending, None if single else logits)
        return raw

    def _learn(self, outputs: Tensor, calls: tuple[_Call, ...], functions: tuple[str, ...]) -> None:
        """Learn the kind of ending from the outputs of the first run, and the names of the last two functions."""
        self._kind = "logits"
        if not outputs.numel():
            return
        for call in calls:
            if _as_view(outputs, call):
                self._kind, self._of_values = "view", call.ending
                return
        low, high = outputs.detach().aminmax()
        if not bool((low + high).isfinite()):
            self._kind = "unknown"  # the next run may show it
            return
        if not bool((low >= 0) & (high <= 1)):
            return
        for call in calls:
            if _as_copy(outputs, call):
                if _equal(outputs, call.returned):
                    self._kind, self._of_values = "copy", call.ending
                elif not _equal(outputs, call.given) and call.ending in ("sigmoid", "log_sigmoid"):
                    self._kind, self._of_values = "values", "sigmoid"
                break
        if self._kind == "logits" and links.sums_to_one(outputs):
            self._kind, self._of_values = "values", "softmax"
        if self._kind == "logits":
            last = functions[-1]
            joined = bool(calls) and last in _JOINED and _ends_with(outputs, calls[0])
            by_hand = last in _DOUBTFUL if links.has_one_column(outputs) else "reciprocal" in functions
            if last in _BOUNDED or (joined and calls[0].ending == "sigmoid"):
                self._kind, self._of_values = "values", "sigmoid"
            self._doubtful = by_hand or joined


def _as_view(outputs: Tensor, call: _Call) -> tuple[links.Ending, Tensor | None] | None:
    """The logits of outputs that are a view of what a call returned."""
    given, returned = call.given, call.returned
    same = outputs is returned or outputs.untyped_storage().data_ptr() == returned.untyped_storage().data_ptr()
    if not same or not outputs.numel():
        return None
    if given is None:
        return call.ending, None
    if given.stride() != returned.stride():
        given = torch.empty_like(returned).copy_(given)
    offset = outputs.storage_offset() - returned.storage_offset() + given.storage_offset()
    return call.ending, given.as_strided(outputs.shape, outputs.stride(), offset)


def _as_copy(outputs: Tensor, call: _Call) -> tuple[links.Ending, Tensor | None] | None:
    """The logits of outputs that have as many entries as a call returned, in the same order."""
    if outputs.numel() != call.returned.numel() or len(outputs) != len(call.returned):
        return None
    return call.ending, None if call.given is None else call.given.reshape(outputs.shape).to(outputs.dtype)


def _ends_with(outputs: Tensor, call: _Call) -> bool:
    """Whether the last columns of outputs are what a function returned, as where a head for each label has its own."""
    last = call.returned.reshape(len(call.returned), -1) if call.returned.numel() else call.returned
    if call.ending not in ("sigmoid", "softmax") or last.dim() != 2 or outputs.dim() != 2 or len(last) != len(outputs):
        return False
    return last.shape[1] < outputs.shape[1] and _equal(outputs[:, -last.shape[1] :], last)


def _equal(one: Tensor, other: Tensor | None) -> bool:
    if other is None:
        return False
    return torch.allclose(one.detach().flatten().double(), other.detach().flatten().double(), rtol=0, atol=_ROUNDING)
