"""What a call does where numbers are not finite for some images: it explains the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch

from camlib.errors import CamlibError, CamlibTypeError, NotFiniteError
from camlib.explanation import Explanation
from camlib.explanation.joining import spread
from camlib.inputs import Inputs
from camlib.passes.network import Network
from camlib.passes.rows import with_known_rows
from camlib.targets import BoundTarget


class Learning(Protocol):
    """A method, which keeps the layers that it has found."""

    network: Network
    _found: dict[Any, Any]


@contextlib.contextmanager
def forgotten_after_errors(methods: Iterable[Learning]) -> Iterator[None]:
    """Forget what an attempt that fails has found, and take back the random numbers that it has drawn.

    Layers that were found from images with NaN may be wrong.
    """
    before = [(one, dict(one._found), one.network.located.copy()) for one in methods]
    generators = [getattr(one, "generator", None) for one, *_ in before]
    drawn = [(one, one.get_state()) for one in generators if isinstance(one, torch.Generator)]
    try:
        yield
    except CamlibError:
        for method, found, located in before:
            method._found = found
            method.network.located.become(located)
        for generator, state in drawn:
            generator.set_state(state)
        raise


def explained_where_finite(
    explain: Callable[[Inputs, Any], Explanation],
    network: Network,
    inputs: Inputs,
    target: Any,
    bound: BoundTarget | None,
    count: int | None,
    error: CamlibError,
) -> Explanation:
    """Explain the images whose numbers are finite, after an attempt to explain all of them has failed.

    If numbers are not finite for further images among them, it tries again without these.

    Args:
        explain: explains some of the inputs, for a target.
        network: the network.
        inputs: all inputs.
        target: what the caller gave as the target.
        bound: the target, bound to the outputs of all images; None if the attempt failed before.
        count: the number of images; None if the attempt failed before it was known.
        error: the error of the attempt.

    Returns:
        The explanation of all images, with NaN for those that are not finite.

    Raises:
        CamlibError: ``error``, if it is not known which images are not finite, none is left, or the inputs or the
            target cannot be restricted to the others; a note says which.
    """
    last = error
    try:
        count = inputs.count if count is None else count
        kept, picked = list(range(count)), inputs
        while True:
            bad = _not_finite(last, picked, len(kept))
            left = [image for place, image in enumerate(kept) if place not in bad]
            if not left or left == kept:
                break
            kept, index = left, torch.tensor(left, device=inputs.tensors[0].device if inputs.tensors else None)
            picked = with_known_rows(network, inputs, kept[-1]).pick(index, count)
            try:
                found = explain(picked, target if bound is None else bound.pick(index))
            except CamlibError as later:
                last = without_frames(later)
                continue
            fields = spread(vars(found), kept, count)
            if bound is not None:
                fields["target"] = bound.explained
            return Explanation(**fields)
        why = "no image is left whose numbers are finite" if not left else "it is not known which images to leave out"
        if left and not isinstance(last, NotFiniteError):
            why = ""  # the error has another cause
    except CamlibError as later:
        last = later
    if last is not error and not isinstance(last, NotFiniteError):
        why = f"the other images cannot be explained without them: {last}"
    if why:
        error.add_note(f'on_nonfinite="nan" has no effect here: {why}')
    raise error


def without_frames(error: CamlibError) -> CamlibError:
    """Return an error without the frames that it came through, which keep the tensors of a pass in memory."""
    error.__context__ = None
    return error.with_traceback(None)


def _not_finite(error: CamlibError, inputs: Inputs, count: int) -> set[int]:
    """The images that an error names; where it names none or all, those that are not finite among the inputs."""
    named = set(error.images) if isinstance(error, NotFiniteError) else set()
    if 0 < len(named) < count:
        return named
    try:
        images = inputs.images
    except CamlibTypeError:  # there are none
        return named
    given = set((~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist())
    return given if 0 < len(given) < count else named
