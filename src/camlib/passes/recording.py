"""A function of tensors as a graph of tensor operations, for shapes of which some axes are symbols."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from camlib.errors import CamlibError


class CannotRecordError(Exception):
    """Why a call is no fixed sequence of tensor operations."""


def recorded(
    call: Callable[..., Any],
    model: nn.Module,
    tensors: Sequence[Tensor],
    dynamic: Sequence[Collection[int]],
    decompositions: Mapping[Any, Callable[..., Any]],
) -> fx.GraphModule:
    """Record a call as a graph.

    Args:
        call: from tensors to a tuple of tensors.
        model: the model that it calls; its parameters and buffers keep their names in the graph, and are shared.
        tensors: what it is called with. Their numbers are not used.
        dynamic: for each of them the axes of any length. Their lengths here must be at least 2.
        decompositions: by operation, the function that the graph holds instead of it.

    Raises:
        CannotRecordError: the call reads numbers of tensors, draws random numbers or changes the model, or depends on
            the length of a dynamic axis in another way than by operations on shapes.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shapes = ShapeEnv(duck_shape=False)  # two axes of the same length are not the same symbol
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    given = []
    for number, (tensor, axes) in enumerate(zip(tensors, dynamic, strict=True)):
        kinds = [DimDynamic.DYNAMIC if axis in axes else DimDynamic.STATIC for axis in range(tensor.dim())]
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        given.append(mode.from_tensor(tensor, symbolic_context=context, source=ConstantSource(f"input{number}")))
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            mode,
            enable_python_dispatcher(),  # kernels in C++ would fix the lengths of axes
            sdpa_kernel(SDPBackend.MATH),
            _AsOperations(),
        ):
            graph = make_fx(call, decomposition_table=dict(decompositions))(*given)
    except (CamlibError, CannotRecordError):
        raise
    except Exception as error:  # what a model does in Python can fail in any way
        why = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        raise CannotRecordError(f"it is not a fixed sequence of tensor operations: {why}") from error
    for number, (tensor, axes) in enumerate(zip(given, dynamic, strict=True)):
        for axis in axes:
            side = tensor.shape[axis]
            if not isinstance(side, SymInt) or side.node.maybe_as_int() is not None:
                raise CannotRecordError(
                    f"it works only for inputs whose axis {axis} has length {tensors[number].shape[axis]}"
                )
    _refuse_operations(graph)
    return _named(graph, model)


class _AsOperations(TorchFunctionMode):
    """Refuses functions that hand numbers of tensors to Python, which a recorded graph would repeat.

    A mean over the whole grid stays a mean: as a pooling, it would set the strides of its result by hand.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _TO_PYTHON:
            raise CannotRecordError(f"numbers of tensors are read into Python, by {function.__name__}")
        if function is F.adaptive_avg_pool2d and len(args) == 2 and args[1] in (1, (1, 1), [1, 1]):
            return args[0].mean((-2, -1), keepdim=True)
        return function(*args, **kwargs)


_TO_PYTHON = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.item})


def _refuse_operations(graph: fx.GraphModule) -> None:
    """Refuse operations whose results are no function of their arguments, or that change the model."""
    for node in graph.graph.nodes:
        operation = node.target
        if not isinstance(operation, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in operation.tags:
            raise CannotRecordError(f"it draws random numbers ({operation})")
        if torch.Tag.data_dependent_output in operation.tags:
            raise CannotRecordError(f"numbers of tensors are read into Python ({operation})")
        if operation._schema.is_mutable and node.args and getattr(node.args[0], "op", "") == "get_attr":
            raise CannotRecordError(f"the model changes its own state ({operation})")


def _named(graph: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """The graph, whose tensors have the names that they have in the model."""
    names: dict[int, str] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names.setdefault(id(tensor), name)
    graph.graph.eliminate_dead_code()
    held: dict[str, Tensor] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            tensor = getattr(graph, node.target)
            node.target = names.get(id(tensor), f"constants.{node.target.strip('_')}")
            held[node.target] = tensor
    return fx.GraphModule(held, graph.graph, type(model).__name__)
