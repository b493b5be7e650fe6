"""PyTorch's gradient of a batch norm between tokens and maps is wrong for one image on a CPU; camlib's is right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import camlib
from camlib.passes.norms import is_misread


class Hybrid(nn.Module):
    """Patches, a batch norm of the tokens read as a map, or of a map that is read as tokens then, and a head."""

    def __init__(self, kind: str, call: str = "module") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.call = kind, call
        self.patches, self.norm, self.batch_norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.BatchNorm2d(8)
        self.heads = nn.ParameterList([nn.Parameter(torch.randn(8, 6, 6, 3)), nn.Parameter(torch.randn(8, 3))])
        nn.init.normal_(self.batch_norm.running_mean)
        nn.init.uniform_(self.batch_norm.running_var, 0.5, 2)
        nn.init.normal_(self.batch_norm.weight)

    def normalised(self, maps: Tensor) -> Tensor:
        norm = self.batch_norm
        if self.call == "keyword":
            return norm(input=maps)
        if self.call == "function":
            return F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return norm(maps)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patches(pictures).relu()
        if self.kind == "map to tokens":
            tokens = self.normalised(patches).flatten(2).mT
            return (self.norm(tokens) @ self.heads[1]).mean(1)
        tokens = self.norm(patches.flatten(2).mT)
        maps = self.normalised(tokens.mT.view(len(pictures), 8, 6, 6))
        return torch.einsum("nchw,chwk->nk", maps, self.heads[0])


KINDS = ["map to tokens", "tokens to map"]
PICTURES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)).double()


def layer_of(kind: str) -> str:
    return "patches" if kind == "map to tokens" else "norm"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["module", "keyword", "function"])
@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "hires_cam", "grad_cam_plus_plus", "shapley_cam"])
def test_a_single_image_has_the_map_that_it_has_among_others(kind: str, call: str, name: str) -> None:
    model = Hybrid(kind, call).double().eval()
    cam = camlib.create(name, model, layer_of(kind), relu=False)
    together = cam(PICTURES, 1)
    alone = camlib.create(name, model, layer_of(kind), relu=False)
    for explainer in (alone, alone, cam):  # in its first pass, in a later one, and after a pass of two images
        torch.testing.assert_close(explainer(PICTURES[:1], 1).maps, together.maps[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_has_with_noise(kind: str) -> None:
    model, options = Hybrid(kind).double().eval(), {"samples": 2, "sigma": 1e-12}
    together = camlib.SmoothGradCAMPlusPlus(model, layer_of(kind), **options)(PICTURES, 1)
    alone = camlib.SmoothGradCAMPlusPlus(model, layer_of(kind), **options)(PICTURES[:1], 1)
    torch.testing.assert_close(alone.maps, together.maps[:1], rtol=1e-6, atol=1e-9)


class Volumes(nn.Module):
    """A batch norm of volumes that are read as tokens then."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.batch_norm, self.norm = nn.Conv3d(3, 8, 4, 4), nn.BatchNorm3d(8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        nn.init.uniform_(self.batch_norm.running_var, 0.5, 2)
        nn.init.normal_(self.batch_norm.weight)

    def forward(self, volumes: Tensor) -> Tensor:
        maps = self.batch_norm(self.patches(volumes))
        return self.head(self.norm(maps.flatten(2).mT).tanh()).mean(1)


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam"])
def test_so_it_has_where_it_is_a_volume(name: str) -> None:
    model, volumes = Volumes().double().eval(), torch.rand(2, 3, 8, 12, 16).double()
    together = camlib.create(name, model, "patches", relu=False)(volumes, 1)
    alone = camlib.create(name, model, "patches", relu=False)(volumes[:1], 1)
    torch.testing.assert_close(alone.maps, together.maps[:1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["guided_backprop", "full_grad"])
def test_so_have_methods_that_read_the_gradient_of_the_image(kind: str, name: str) -> None:
    model = Hybrid(kind).double().eval()
    options = {"full_grad": {"tolerance": float("inf")}}.get(name, {})
    together = camlib.create(name, model, **options)(PICTURES, 1)
    torch.testing.assert_close(camlib.create(name, model, **options)(PICTURES[:1], 1).maps, together.maps[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_pytorch_is_wrong_here(kind: str) -> None:
    """These tests can go, and with them ``passes/norms.py``, once it is right in all supported versions."""
    model = Hybrid(kind).double().eval()
    images = PICTURES.clone().requires_grad_()
    (right,) = torch.autograd.grad(model(images)[0, 1], images)
    (wrong,) = torch.autograd.grad(model(images[:1])[0, 1], images)
    assert right[0].abs().max() > 0
    assert (right - wrong).abs().max() > 0.01 * right.abs().max()


def test_other_layouts_are_not_copied() -> None:
    maps = torch.rand(1, 5, 3, 4)
    assert not is_misread(maps)
    assert not is_misread(maps.contiguous(memory_format=torch.channels_last))
    assert not is_misread(maps.expand(2, 5, 3, 4))
    assert not is_misread(torch.rand(1, 5))


def test_another_kind_of_inputs_does_not_hide_what_was_met() -> None:
    class Either(nn.Module):
        """Maps of large images are read as tokens, those of small ones are not."""

        def __init__(self) -> None:
            super().__init__()
            self.hybrid = Hybrid("map to tokens")

        def forward(self, pictures: Tensor) -> Tensor:
            if pictures.shape[-1] == 24:
                return self.hybrid(pictures)
            return self.hybrid.batch_norm(self.hybrid.patches(pictures)).mean((2, 3))

    model = Either().double().eval()
    expected = camlib.HiResCAM(model, "hybrid.patches", relu=False)(PICTURES, 1).maps
    cam = camlib.HiResCAM(model, "hybrid.patches", relu=False)
    cam(PICTURES, 1)
    cam(PICTURES[..., :16, :16].contiguous(), 1)
    torch.testing.assert_close(cam(PICTURES[:1], 1).maps, expected[:1])
