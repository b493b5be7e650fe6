"""A declared metric looks like the function that it stands for: signature, documentation, pickle, method."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc

import pytest
import torch
from torch import Tensor

from camlib import metrics
from camlib.metrics import METRICS, deletion
from camlib.metrics.declaration import after, measure, metric
from camlib.metrics.readings import Heatmaps, LocatedHeatmaps


@metric(LocatedHeatmaps, "higher", "in [0, 1]", share=0.5)
def covered(heatmaps: LocatedHeatmaps, *, share: float = 1) -> Tensor:
    """Share of the object that is covered.

    Args:
        share: of the highest value
            that counts.

    Raises:
        CamlibValueError: no share.

    Example:
        >>> 1 + 1
        2
    """
    least = share * heatmaps.values.amax((1, 2), keepdim=True)
    return ((heatmaps.values >= least) & heatmaps.inside).sum((1, 2)) / heatmaps.inside.sum((1, 2))


@metric(LocatedHeatmaps, "lower", like=covered)
def uncovered(heatmaps: LocatedHeatmaps, *, share: float = 1) -> Tensor:
    """Share of the object that is not covered."""
    return 1 - covered.of(heatmaps, share=share)


def test_the_signature_has_the_public_arguments_then_the_options() -> None:
    assert str(inspect.signature(covered)) == (
        "(heatmaps: 'Any', masks: 'Any', *, share: 'float' = 1, empty: 'str' = 'error') -> 'Tensor'"
    )
    assert list(inspect.signature(deletion).parameters) == [
        "model", "inputs", "heatmaps", "target", "steps", "baseline", "generator", "options",
    ]  # fmt: skip


def test_what_metrics_share_is_documented_for_each() -> None:
    titles, arguments = ["Args", "Returns", "Raises"], ["heatmaps", "masks", "share", "empty"]
    for one in (covered, uncovered):
        doc = inspect.getdoc(one)
        assert [line[:-1] for line in doc.splitlines() if line[:1].isupper() and line.endswith(":")][:3] == titles
        assert [line.split(":")[0].strip() for line in doc.splitlines() if line[:4] == "    " != line[4:8]][
            :4
        ] == arguments
        assert "of the highest value\n        that counts" in doc
        assert doc.index("no share") < doc.index("not tensors or arrays")
    assert "Returns:\n    (N,), in [0, 1].\n" in inspect.getdoc(covered)
    assert "Returns:\n    (N,).\n" in inspect.getdoc(uncovered)
    assert "1 + 1" in inspect.getdoc(covered)
    assert "1 + 1" not in inspect.getdoc(uncovered)


def test_metrics_share_a_step_with_its_options_and_their_documentation() -> None:
    def above(heatmaps: Heatmaps, *, least: float = 0.5) -> Tensor:
        """Find high pixels.

        Args:
            least: the lowest that counts.

        Raises:
            CamlibValueError: never.
        """
        return heatmaps.values >= least

    @metric(Heatmaps, "lower")
    @after(above)
    def some(above: Tensor) -> Tensor:
        """Whether a pixel is high."""
        return above.flatten(1).any(1)

    assert str(inspect.signature(some)) == "(heatmaps: 'Any', *, least: 'float' = 0.5) -> 'Tensor'"
    assert some.name == "some"
    assert [part.__name__ for part in some.parts] == ["above", "some"]
    assert some.parts[0] is above
    assert inspect.getdoc(some).startswith("Whether a pixel is high.\n\nArgs:\n    heatmaps: ")
    assert "    least: the lowest that counts.\n\nReturns:" in inspect.getdoc(some)
    assert "    CamlibValueError: never." in inspect.getdoc(some)
    assert some(torch.tensor([[[0.4]], [[0.6]]])).tolist() == [False, True]
    assert some(torch.tensor([[[0.4]], [[0.6]]]), least=0.3).tolist() == [True, True]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_documents_every_argument_and_has_an_example(name: str) -> None:
    one = METRICS[name]
    doc = inspect.getdoc(one)
    for argument in inspect.signature(one).parameters:
        assert f"\n    {argument}: " in doc.replace("**", ""), argument
    assert "\nReturns:\n" in doc
    assert "\nRaises:\n" in doc
    assert f">>> {name}(" in doc or f"({name}(" in doc
    assert "NAME" not in doc
    assert f"{name}(" in pydoc.render_doc(one, renderer=pydoc.plaintext)


@pytest.mark.parametrize("name", [*METRICS, "deletion_curve", "pearson"])
def test_metrics_are_pickled_by_name_as_functions_are(name: str) -> None:
    one = getattr(metrics, name)
    assert pickle.loads(pickle.dumps(one)) is one
    assert copy.deepcopy(one) is one


def test_a_metric_in_a_class_is_a_method() -> None:
    @measure(Heatmaps)
    def total(heatmaps: Heatmaps) -> Tensor:
        return heatmaps.values.flatten(1).sum(1)

    class Halves(torch.Tensor):
        total_ = total

    assert Halves.total_ is total
    assert torch.ones(2, 3, 4).as_subclass(Halves).total_().tolist() == [12, 12]


def test_options_and_public_arguments_find_their_way() -> None:
    heatmaps = torch.tensor([[[0.0, 1.0, 0.5]], [[1.0, 0.0, 0.0]]])
    masks = torch.tensor([[[True, False, True]], [[False] * 3]])
    found = covered(heatmaps, masks, share=0.5, empty="nan")
    assert found.tolist()[0] == 0.5
    assert found.isnan().tolist() == [False, True]
    assert uncovered(heatmaps, masks=masks, empty="nan", share=0.5)[0] == 0.5
    with pytest.raises(TypeError, match="unexpected keyword argument 'shares'"):
        covered(heatmaps, masks, shares=0.5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'masks'"):
        covered(heatmaps)
