"""One check, the list of all checks, and a function that runs them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camlib.errors import CamlibError
from camlib.testing.networks import NETWORKS, images
from camlib.testing.properties import PROPERTIES
from camlib.testing.subject import MethodFactory, Subject


@dataclass(frozen=True)
class Check:
    """One check of one method; call it without arguments.

    Example:
        >>> import camlib, camlib.testing
        >>> check = camlib.testing.checks(camlib.GradCAM)[0]
        >>> check()  # passes
        >>> print(check)
        has_a_name_and_tags
    """

    run: Callable[[Subject], None]
    """The function that makes the check; its docstring states the property."""
    subject: Subject
    """The method, with the network and the images for the check."""

    @property
    def name(self) -> str:
        """The name of the property."""
        return self.run.__name__

    def __call__(self) -> None:
        """Run the check.

        Raises:
            AssertionError: with the method, the check and what is wrong.
        """
        failed = f"{self.subject.kind.__name__} fails the check {self.name!r}"
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            try:
                self.run(self.subject)
            except AssertionError as problem:
                raise AssertionError(f"{failed}: {problem}") from problem
            except Exception as error:
                raise AssertionError(f"{failed}: it raised {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.name


def check_method(method: MethodFactory, *, model: nn.Module | None = None, inputs: Tensor | None = None) -> None:
    """Run every check that applies to the method by its tags; a method that passes behaves like those of camlib.

    A call must leave the model, the inputs and the process unchanged, whether it succeeds or fails; a batch must give
    the maps of its single images, and many classes those of each class; maps must have the documented precision,
    device, shape and range; several layers, degenerate and non-finite inputs, target objects, autocast, threads, copies
    and pickles must work; forward passes, random numbers and the need of gradients must be as declared.

    Args:
        method: the class; or a function with the arguments of one, ``(model, layer=None, **options)``, such as
            ``functools.partial(camlib.SmoothGradCAMPlusPlus, samples=2)``.
        model: takes ``inputs`` and returns logits (N, C) of at least two classes; only copies of it run. By default
            the first network that the method accepts: a small CNN, a small CNN with global pooling and a linear head,
            or a small vision transformer.
        inputs: images (N, C, H, W), signals or volumes, at least two of them; by default pictures (3, 3, 12, 10).

    Raises:
        AssertionError: a check fails; with its name and what is wrong.
        CamlibTypeError, CamlibValueError: the method is not one, or model and inputs cannot be used.

    Example:
        >>> import camlib, camlib.testing
        >>> class Elementwise(camlib.methods.GradientMethod):
        ...     name = "elementwise"
        ...     def maps(self, activations, gradients):
        ...         return (activations * gradients).relu().sum(1)
        >>> camlib.testing.check_method(Elementwise)

        A method that mixes the images of a batch fails:

        >>> class Leaky(Elementwise):
        ...     name = "leaky"
        ...     def maps(self, activations, gradients):
        ...         return super().maps(activations, gradients - gradients.mean(0))
        >>> camlib.testing.check_method(Leaky)
        Traceback (most recent call last):
        AssertionError: Leaky fails the check 'a_batch_equals_its_images': ...
    """
    for check in checks(method, model=model, inputs=inputs):
        check()


def checks(method: MethodFactory, *, model: nn.Module | None = None, inputs: Tensor | None = None) -> list[Check]:
    """List the checks that apply to the method by its tags; call each without arguments.

    Args:
        method: as for :func:`check_method`.
        model: as for :func:`check_method`.
        inputs: as for :func:`check_method`.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`check_method`.

    Example:
        >>> import camlib, camlib.testing
        >>> [str(check) for check in camlib.testing.checks(camlib.EigenCAM)][:2]
        ['has_a_name_and_tags', 'needs_gradients_as_declared']
    """
    subject = Subject(
        method, _suitable_network(method) if model is None else model, images() if inputs is None else inputs
    )
    return [Check(run, subject) for run, applies in PROPERTIES if applies(subject.kind)]


def _suitable_network(method: MethodFactory) -> nn.Module:
    """The first network that the method accepts, or the first of all if it accepts none."""
    for network in (make() for make in NETWORKS):
        try:
            method(network)(images())
        except CamlibError:
            continue
        except Exception:  # the checks will report it
            break
        return network
    return NETWORKS[0]()
