"""What each tensor of a forward pass was computed from: the inputs, the model's state, and other tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from camlib.inputs.nested import tensors_in


class Origins:
    """The origins of tensors: those that no noted function returned, such as the inputs. Parameters are left out.

    Example:
        >>> import torch
        >>> image, origins = torch.rand(2), Origins()
        >>> doubled = image * 2
        >>> origins.note(torch.mul, (image, 2), {}, doubled)
        >>> [one is image for one in origins.of([doubled])]
        [True]
    """

    def __init__(self) -> None:
        self._of: Any = WeakTensorKeyDictionary()  # tensor -> numbers of its origins
        self._origins: dict[int, Tensor] = {}  # they are kept, so that their numbers stay theirs

    def of(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the origins of tensors, together."""
        return [self._origins[number] for number in sorted(self._numbers(tensors))]

    def _numbers(self, tensors: Iterable[Tensor]) -> frozenset[int]:
        found: frozenset[int] = frozenset()
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                continue
            if tensor not in self._of:
                self._origins[id(tensor)] = tensor
                self._of[tensor] = frozenset([id(tensor)])
            found |= self._of[tensor]
        return found

    def note(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Note that a function returned ``output``, or changed its first argument in place."""
        changed = args[:1] if func is Tensor.__setitem__ or (args and output is args[0]) else ()
        results = [*tensors_in(output), *_with_bases(changed)]
        if results:
            numbers = self._numbers([*tensors_in(list(args)), *tensors_in(list(kwargs.values()))])
            for result in results:
                self._of[result] = numbers | self._of.get(result, frozenset())


def _with_bases(changed: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors that change in place, and those that they are views of."""
    for tensor in changed:
        if isinstance(tensor, Tensor):
            yield tensor
            if tensor._base is not None:
                yield tensor._base
