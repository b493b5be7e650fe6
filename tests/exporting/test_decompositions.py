from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import camlib
from camlib.exporting import decompositions
from camlib.exporting.resizing import resized_by_products


def gradient(function, images: Tensor) -> tuple[Tensor, Tensor]:
    """A random cotangent, and the gradient of autograd."""
    leaf = images.clone().requires_grad_()
    found = function(leaf)
    cotangent = torch.rand_like(found)
    return cotangent, torch.autograd.grad(found, leaf, cotangent)[0]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (2, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_gradient_of_a_convolution_is_that_of_autograd(stride, padding, kernel, dilation, groups):
    images, weight = torch.rand(2, 4, 11, 9).double(), torch.rand(6, 4 // groups, kernel, kernel).double()

    def convolved(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    cotangent, wanted = gradient(convolved, images)
    two = [[one] * 2 for one in (stride, padding, dilation)]
    found, *_ = decompositions.convolution_backward(
        cotangent, images, weight, None, *two, False, [0, 0], groups, [True, False, False]
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_of_a_transposed_convolution_is_that_of_autograd(stride):
    images, weight = torch.rand(2, 4, 7, 5).double(), torch.rand(4, 3, 3, 3).double()
    cotangent, wanted = gradient(lambda x: F.conv_transpose2d(x, weight, None, stride, 1), images)
    found, *_ = decompositions.convolution_backward(
        cotangent, images, weight, None, [stride] * 2, [1, 1], [1, 1], True, [0, 0], 1, [True, False, False]
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("size", [(7, 7), (3, 5), (1, 2), (20, 9)])
def test_adaptive_pooling_and_its_gradient_are_those_of_autograd(size):
    images = torch.rand(2, 3, 11, 8).double()
    cotangent, wanted = gradient(lambda x: F.adaptive_avg_pool2d(x, size), images)
    torch.testing.assert_close(decompositions.adaptive_avg_pool2d_backward(cotangent, images), wanted)
    torch.testing.assert_close(decompositions.adaptive_avg_pool2d(images, size), F.adaptive_avg_pool2d(images, size))


@pytest.mark.parametrize("with_padding", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0)])
def test_the_gradient_of_average_pooling_is_that_of_autograd(kernel, stride, padding, ceil, with_padding):
    images = torch.rand(2, 3, 11, 8).double()
    cotangent, wanted = gradient(lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, with_padding), images)
    found = decompositions.avg_pool2d_backward(
        cotangent, images, [kernel] * 2, [stride] * 2, [padding] * 2, ceil, with_padding, None
    )
    torch.testing.assert_close(found, wanted)


def test_the_gradient_of_max_pooling_is_that_of_autograd():
    images = torch.rand(2, 3, 11, 8).double()
    cotangent, wanted = gradient(lambda x: F.max_pool2d(x, 3, 2, 1), images)
    _, indices = F.max_pool2d(images, 3, 2, 1, return_indices=True)
    found = decompositions.max_pool2d_with_indices_backward(cotangent, images, 3, 2, 1, 1, False, indices)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("pad", [(0, 0, 0, 0), (1, 2, 0, 3), (-1, 2, 1, -2)])
def test_padding_is_that_of_torch(pad):
    images = torch.rand(2, 3, 6, 5)
    assert torch.equal(decompositions.constant_pad_nd(images, list(pad), 0.5), F.pad(images, pad, value=0.5))


def test_the_last_eigenvector_is_that_of_a_full_decomposition_and_others_are_no_numbers():
    features = torch.rand(3, 9, 20).double()
    matrix = features @ features.mT
    wanted_values, wanted = torch.linalg.eigh(matrix)
    values, vectors = decompositions.leading_eigenvector(matrix)
    torch.testing.assert_close(values[:, -1], wanted_values[:, -1])
    torch.testing.assert_close((vectors[..., -1] * wanted[..., -1]).sum(-1).abs(), torch.ones(3).double())
    assert values[:, :-1].isnan().all()
    assert vectors[..., :-1].isnan().all()


@pytest.mark.parametrize("size", [(9,), (7, 9), (3, 20), (6, 5, 8)])
def test_resizing_by_products_is_that_of_camlib(size):
    maps = torch.rand(2, 4, *[5, 3, 4][: len(size)]).double()
    torch.testing.assert_close(resized_by_products(maps, size), camlib.resize(maps, size))
