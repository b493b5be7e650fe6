"""The blocks of a transformer: the modules that call attention, and what they return."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError
from camlib.methods.attention import Attention
from camlib.passes.hooks import hooked, pre_hooked, with_first


@dataclass(frozen=True)
class Block:
    """The outermost module that calls an attention and no other."""

    name: str
    """Its name as a layer."""
    output: Tensor
    """The (first) tensor that it returned, in the autograd graph."""


class AttentionInBlocks(Attention):
    """Also records the blocks. Made by :func:`attention_in_blocks`.

    Args:
        names: the names of the modules.
    """

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self._names = names
        self._began: list[int] = []
        """For each module that is running, how many calls of attention came before it."""
        self._calls = Counter[str]()
        self._found: dict[int, tuple[str, int, Tensor]] = {}
        """By the number of the attention: the block's name, its call, and its output."""

    def block_of(self, weights: Tensor) -> Block:
        """Return the block that called an attention.

        Raises:
            CamlibRuntimeError: no module called this attention alone.
        """
        number = next(number for number, one in enumerate(self.seen) if one is weights)
        if number not in self._found:
            raise CamlibRuntimeError(
                f"attention {tuple(weights.shape)} is not called in a block that calls no other and returns a tensor, "
                'as score="block" needs; use score="final", which needs no blocks'
            )
        name, call, output = self._found[number]
        return Block(name if self._calls[name] == 1 else f"{name}#{call}", output)

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note that a module begins."""
        self._began.append(len(self.seen))

    def end(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Note the output of a module that called one attention; pass on a copy, which may change in place."""
        name, began = self._names[module], self._began.pop()
        self._calls[name] += 1
        tensor = output[0] if isinstance(output, (tuple, list)) and output else output
        if len(self.seen) != began + 1 or not isinstance(tensor, Tensor):
            return None
        self._found[began] = name, self._calls[name], tensor
        return with_first(output, tensor.clone())


@contextlib.contextmanager
def attention_in_blocks(model: nn.Module) -> Iterator[AttentionInBlocks]:
    """Record the attention that this thread computes in a model, and the model's blocks, inside the context."""
    names = {module: name for name, module in model.named_modules() if name}
    recorded = AttentionInBlocks(names)
    before, after = [(module, recorded.begin) for module in names], [(module, recorded.end) for module in names]
    with recorded, pre_hooked(before), hooked(after):
        yield recorded
