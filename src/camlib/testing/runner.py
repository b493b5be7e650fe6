"""One check, all of them as a list, and all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camlib.errors import CamlibError
from camlib.testing.networks import NETWORKS, images
from camlib.testing.properties import PROPERTIES
from camlib.testing.subject import Bind, Subject


@dataclass(frozen=True)
class Check:
    """One check of one method, to be called without arguments.

    Example:
        >>> import camlib, camlib.testing
        >>> check = camlib.testing.checks(camlib.GradCAM)[0]
        >>> check()  # passes
        >>> print(check)
        declares_what_it_is
    """

    run: Callable[[Subject], None]
    """The function that makes the check; its docstring says what is claimed."""
    subject: Subject
    """The method, and what it is checked on."""

    @property
    def name(self) -> str:
        """What is claimed."""
        return self.run.__name__

    def __call__(self) -> None:
        """Make the check.

        Raises:
            AssertionError: naming the method, the check and what was seen.
        """
        failed = f"{self.subject.kind.__name__} fails the check {self.name!r}"
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            try:
                self.run(self.subject)
            except AssertionError as seen:
                raise AssertionError(f"{failed}: {seen}") from seen
            except Exception as error:
                raise AssertionError(f"{failed}: it raised {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.name


def check_method(method: Bind, *, model: nn.Module | None = None, inputs: Tensor | None = None) -> None:
    """Run every check that the method's tags call for; a method that passes behaves as camlib's own do.

    A call leaves the model, the inputs and the process as they were, whether it succeeds or fails; a batch gives what
    its images give one by one, and many classes what each gives; maps have the precision, device, shape and range that
    the contract says; several layers, degenerate and non-finite inputs, target objects, autocast, threads, copies and
    pickles work; forward passes, random numbers and the need of gradients are as declared.

    Args:
        method: the class; or a function that is called as one is, ``(model, layer=None, **options)``, such as
            ``functools.partial(camlib.SmoothGradCAMPlusPlus, samples=2)``.
        model: takes ``inputs`` and returns logits (N, C) of at least two classes; only copies of it are run. By default
            the first that the method does not refuse of a CNN, a CNN with global pooling and a linear head, and a
            vision transformer, all of them small.
        inputs: images (N, C, H, W), signals or volumes, at least two of them; by default pictures (3, 3, 12, 10).

    Raises:
        AssertionError: the first check that fails, its name and what was seen.
        CamlibTypeError, CamlibValueError: the method is none, or model and inputs cannot be used.

    Example:
        >>> import camlib, camlib.testing
        >>> class Elementwise(camlib.methods.GradientMethod):
        ...     name = "elementwise"
        ...     def maps(self, activations, gradients):
        ...         return (activations * gradients).relu().sum(1)
        >>> camlib.testing.check_method(Elementwise)

        A method that lets the images of a batch see each other is caught:

        >>> class Leaky(Elementwise):
        ...     name = "leaky"
        ...     def maps(self, activations, gradients):
        ...         return super().maps(activations, gradients - gradients.mean(0))
        >>> camlib.testing.check_method(Leaky)
        Traceback (most recent call last):
        AssertionError: Leaky fails the check 'batch_is_one_image_at_a_time': ...
    """
    for check in checks(method, model=model, inputs=inputs):
        check()


def checks(method: Bind, *, model: nn.Module | None = None, inputs: Tensor | None = None) -> list[Check]:
    """List the checks that the method's tags call for, each to be called without arguments.

    Args:
        method: as for :func:`check_method`.
        model: as for :func:`check_method`.
        inputs: as for :func:`check_method`.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`check_method`.

    Example:
        >>> import camlib, camlib.testing
        >>> [str(check) for check in camlib.testing.checks(camlib.EigenCAM)][:2]
        ['declares_what_it_is', 'needs_gradients_as_declared']
    """
    subject = Subject(
        method, _suitable_network(method) if model is None else model, images() if inputs is None else inputs
    )
    return [Check(run, subject) for run, applies in PROPERTIES if applies(subject.kind)]


def _suitable_network(method: Bind) -> nn.Module:
    """The first of the networks that the method does not refuse; the first of all if it refuses them all."""
    for network in (make() for make in NETWORKS):
        try:
            method(network)(images())
        except CamlibError:
            continue
        except Exception:  # the checks will tell
            break
        return network
    return NETWORKS[0]()
