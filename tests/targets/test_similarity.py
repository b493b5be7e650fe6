"""Embeddings: the cosine similarity to a reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import camlib
from camlib import targets
from tests.networks import Network


def scores(reference: object, outputs: object, rows: int) -> Tensor:
    target = targets.bind(targets.Similarity(reference), outputs)
    return targets.score(target, outputs, torch.arange(rows))


def naive_cosine(one: Tensor, other: Tensor) -> float:
    dot = sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))
    return dot / math.sqrt(sum(a * a for a in one.tolist())) / math.sqrt(sum(b * b for b in other.tolist()))


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_score_is_the_cosine(seed, rows, several, width):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    references = torch.randn(rows, several, width, generator=generator, dtype=torch.float64)
    expected = [[naive_cosine(outputs[n], references[n, k]) for k in range(several)] for n in range(rows)]
    torch.testing.assert_close(scores(references, outputs, rows), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(scores(references[:, 0], outputs, rows), torch.tensor(expected).double()[:, 0])
    one = [naive_cosine(output, references[0, 0]) for output in outputs]
    torch.testing.assert_close(scores(references[0, 0], outputs, rows), torch.tensor(one, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3)])
def test_enlarged_batches_are_followed(shape):
    reference, clean = torch.randn(shape), torch.randn(2, 3)
    target = targets.bind(targets.Similarity(reference), clean)
    image_index, outputs = torch.tensor([1, 0, 1]), torch.randn(3, 3)
    found = targets.score(target, outputs, image_index).reshape(3, -1)
    for row, image in enumerate(image_index.tolist()):
        references = (reference if reference.dim() == 1 else reference[image]).reshape(-1, 3)
        assert found[row].tolist() == pytest.approx([naive_cosine(outputs[row], r) for r in references], abs=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_length_does_not_matter(scale):
    outputs, reference = torch.randn(2, 8), torch.randn(8)
    torch.testing.assert_close(scores(reference, scale * outputs, 2), scores(reference, outputs, 2))
    torch.testing.assert_close(scores(scale * reference, outputs, 2), scores(reference, outputs, 2))


def test_embeddings_are_found_in_what_hugging_face_returns():
    embeddings = torch.randn(2, 5)
    outputs = {"last_hidden_state": torch.randn(2, 7, 5), "pooler_output": embeddings[:, :, None, None]}
    torch.testing.assert_close(scores(torch.ones(5), outputs, 2), scores(torch.ones(5), embeddings, 2))


def test_map_is_that_of_the_cosine_and_the_reference_gets_no_gradient():
    images, model = torch.rand(2, 3, 8, 8), Network(5).eval()
    reference = torch.randn(5, requires_grad=True)
    cam = camlib.GradCAM(model, "norm", relu=False)
    explanation = cam(images, targets.Similarity(reference))
    fixed = reference.detach()
    expected = cam(images, lambda outputs: outputs @ fixed / (outputs.norm(dim=1) * fixed.norm()))
    assert explanation.maps.abs().max() > 0
    torch.testing.assert_close(explanation.maps, expected.maps)
    assert explanation.target == "Similarity"
    assert not scores(reference, torch.ones(2, 5), 2).requires_grad
    assert cam(images, targets.Similarity(torch.randn(2, 3, 5))).maps.shape[:2] == (2, 3)


def test_half_precision_is_computed_in_single():
    outputs = torch.full((1, 4), 200.0, dtype=torch.float16)  # the squares overflow float16
    found = scores(torch.ones(4), outputs, 1)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([1.0])


def test_a_perturbed_image_without_an_embedding_scores_zero_with_finite_gradients():
    target = targets.bind(targets.Similarity(torch.ones(3)), torch.ones(1, 3))
    outputs = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    found = targets.score(target, outputs, torch.tensor([0, 0]))
    assert found.tolist() == pytest.approx([0.0, 1 / math.sqrt(3)])
    found.sum().backward()
    assert bool(outputs.grad.isfinite().all())


@pytest.mark.parametrize(
    ("reference", "outputs", "error", "message"),
    [
        (torch.ones(4), torch.ones(2, 3), ValueError, r"shape \(4,\), and the outputs \(2, 3\); give \(3,\)"),
        (torch.ones(1, 3), torch.ones(2, 3), ValueError, r"shape \(1, 3\), and the outputs \(2, 3\)"),
        (torch.ones(3, 2, 3), torch.ones(2, 3), ValueError, r"give \(3,\), \(2, 3\) or \(2, K, 3\)"),
        (torch.ones(1, 1, 1, 3), torch.ones(1, 3), ValueError, r"shape \(1, 1, 1, 3\)"),
        (torch.zeros(3), torch.ones(2, 3), ValueError, "a reference is zero"),
        (torch.tensor([[1.0], [0.0]]), torch.ones(2, 1), ValueError, "a reference is zero"),
        (torch.ones(3), torch.tensor([[1.0, 0, 0], [0, 0, 0]]), ValueError, "the embedding is zero.* in image 1"),
        (torch.ones(3, dtype=torch.long), torch.ones(2, 3), TypeError, r"reference holds torch\.int64"),
        ("cat", torch.ones(2, 3), TypeError, "reference is a str"),
        (torch.ones(3), torch.ones(2, 3, 4, 4), TypeError, r"float32 of shape \(2, 3, 4, 4\).*pick or pool"),
        (torch.ones(3), {"scores": torch.ones(2, 3)}, TypeError, "the model returns dict"),
    ],
)
def test_what_cannot_be_compared_is_refused(reference, outputs, error, message):
    with pytest.raises(error, match=message) as caught:
        targets.bind(targets.Similarity(reference), outputs)
    assert isinstance(caught.value, camlib.CamlibError)
