"""What a change of the network or of its input does to a map, law by law and method by method."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlib
from tests import equations
from tests.equations import BROKEN_LAWS
from tests.few_passes import OF_ATTENTION, cheap

# The laws ------------------------------------------------------------------------------------------------------------

LAWS = {
    "channels": "permuting the channels of every layer, and the weights that read them, leaves the map",
    "silent": "adding channels that are always zero leaves the map",
    "head": "adding a head that the outputs do not hold leaves the map",
    "classes": "adding a class leaves the maps of the others",
    "bias": "adding a constant to every logit leaves the map",
    "shift": "shifting the picture by the stride shifts the map by one",
    "mirror": "mirroring the picture and the kernels mirrors the map",
    "logits": "scaling the logits by 1e-6 and by 1e6 leaves the min-maxed map",
    "features": "scaling all features, and the weights that read them back, leaves the min-maxed map",
    "units": "scaling each channel by a factor of its own, and the weights that read it back, leaves the min-maxed map",
}

PIECEWISE_LINEAR = {"full_grad", "guided_backprop", "guided_grad_cam"}
"""Methods that take no SiLU: their network has a ReLU in its place."""

OF_TRANSFORMERS = OF_ATTENTION
"""Methods that read no convolutions; their laws are at the end."""

METHODS = [name for name in camlib.METHODS if name not in OF_TRANSFORMERS]


def test_reasons_are_given_for_laws_and_methods_that_exist() -> None:
    assert {name for name, _ in BROKEN_LAWS} <= set(METHODS)
    assert {law for _, law in BROKEN_LAWS} <= set(LAWS)


def broken(name: str, law: str) -> Callable[[str], str]:
    """The message of a comparison, and what to do about it."""
    advice = f"if that is right, give the reason in tests/equations.py: @breaks({law}=...) above {name}"
    return lambda difference: f"{name} breaks the law {law}: {LAWS[law]}; {advice}\n{difference}"


# The network --------------------------------------------------------------------------------------------------------

LAST = 5
"""The features that the head reads the mean of; with a tail that is curved ahead of them."""


def network(padding: str = "circular", classes: int = 5) -> nn.Sequential:
    """Convolutions 0 (of stride 2), 2 and 4, with a ReLU, a SiLU and a ReLU; pooling, and the linear head 8."""
    torch.manual_seed(2)

    def convolution(channels: tuple[int, int], stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(*channels, 3, stride, padding=1, padding_mode=padding)

    model = nn.Sequential(
        convolution((3, 6), 2), nn.ReLU(), convolution((6, 5)), nn.SiLU(), convolution((5, 6)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip
    for module in (model[0], model[2], model[4], model[8]):
        module.weight.data *= 3
    return model.double().eval()


def pictures(width: int = 20) -> Tensor:
    return torch.rand(3, 3, 16, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def explain(name: str, model: nn.Module, images: Tensor) -> Tensor:
    """The signed maps of class 1; where the method needs the ReLU, those."""
    if name in PIECEWISE_LINEAR:
        model = copy.deepcopy(model)
        setattr(model, "3", nn.ReLU())
    if camlib.METHODS[name].layerless:
        return cheap(name)(model)(images, 1).maps
    layer = {"cam": str(LAST), "refine_cam": ["1", "3"]}.get(name, "1")
    options = {} if name == "refine_cam" else {"relu": False}
    return cheap(name)(model, layer, **options)(images, 1).maps


def minmaxed(maps: Tensor) -> Tensor:
    normalized = camlib.normalize(maps)
    assert (normalized.flatten(1).amax(1) == 1).all(), "a law that zero maps obey says nothing"
    return normalized


# The laws: each gives the map before a change, and what the map after it should be compared with ---------------------


def readers(model: nn.Sequential) -> list[tuple[nn.Module, nn.Module]]:
    """The layers that make the features of the three hidden layers, and the next, which read them."""
    return [(model[0], model[2]), (model[2], model[4]), (model[4], model[8])]


def channels(name: str) -> tuple[Tensor, Tensor]:
    model, images = network(), pictures()
    changed = copy.deepcopy(model)
    for shift, (makes, reads) in enumerate(readers(changed), 1):
        order = torch.arange(makes.weight.shape[0]).roll(shift).flip(0)
        makes.weight.data, makes.bias.data = makes.weight.data[order], makes.bias.data[order]
        reads.weight.data = reads.weight.data[:, order]
    torch.testing.assert_close(changed(images), model(images))
    return explain(name, model, images), explain(name, changed, images)


def silent(name: str) -> tuple[Tensor, Tensor]:
    model, images = network(), pictures()
    changed = copy.deepcopy(model)
    for makes, reads in readers(changed):
        new = makes.weight.data.new_zeros(2, *makes.weight.shape[1:])
        makes.weight.data, makes.bias.data = torch.cat([new, makes.weight]), torch.cat([new.new_zeros(2), makes.bias])
        new = torch.randn_like(reads.weight[:, :2])
        reads.weight.data = torch.cat([new, reads.weight], 1)
    for module in (changed[0], changed[2], changed[4]):
        module.in_channels, module.out_channels = module.weight.shape[1], module.weight.shape[0]
    torch.testing.assert_close(changed(images), model(images))
    return explain(name, model, images), explain(name, changed, images)


class TwoHeads(nn.Module):
    """A network with one more head, of the same shape, whose output is dropped: in training it would have a loss."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(6, 5).double()  # ahead of the true one, for those who look for it
        for name, module in model.named_children():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for name, module in list(self.named_children())[1:]:
            x = module(x)
            if name == str(LAST):
                self.auxiliary(x.mean((2, 3)))
        return x


def head(name: str) -> tuple[Tensor, Tensor]:
    model, images = network(), pictures()
    changed = TwoHeads(copy.deepcopy(model)).eval()
    torch.testing.assert_close(changed(images), model(images))
    return explain(name, model, images), explain(name, changed, images)


def one_more_class(name: str) -> tuple[Tensor, Tensor]:
    model, images = network(), pictures()
    changed = copy.deepcopy(model)
    near = model[8].weight[1:2] + 0.1 * model[8].weight[2:3]  # to class 1
    changed[8].weight.data = torch.cat([model[8].weight, near])
    changed[8].bias.data = torch.cat([model[8].bias, model[8].bias[1:2]])
    return explain(name, model, images), explain(name, changed, images)


def bias(name: str) -> tuple[Tensor, Tensor]:
    model, images = network(), pictures()
    changed = copy.deepcopy(model)
    changed[8].bias.data += 10
    return explain(name, model, images), explain(name, changed, images)


def shift(name: str) -> tuple[Tensor, Tensor]:
    """On a circular network, away from the border: Sobel's picture is no circle."""
    model, images = network(), pictures()
    before = explain(name, model, images)
    cells = 2 if before.shape[1] == images.shape[2] else 1  # on the picture's own grid the stride is two cells
    before = before.roll((cells, 2 * cells), (1, 2))
    after = explain(name, model, images.roll((2, 4), (2, 3)))
    inside = (..., slice(cells + 1, -1), slice(2 * cells + 1, -1))
    return before[inside], after[inside]


def mirror(name: str) -> tuple[Tensor, Tensor]:
    """Of an odd width, so that stride 2 starts and ends at the border."""
    model, images = network("zeros"), pictures(19)
    changed = copy.deepcopy(model)
    for module in (changed[0], changed[2], changed[4]):
        module.weight.data = module.weight.data.flip(3)
    return explain(name, model, images).flip(2), explain(name, changed, images.flip(3))


EXACT: dict[str, Callable[[str], tuple[Tensor, Tensor]]] = {
    "channels": channels,
    "silent": silent,
    "head": head,
    "classes": one_more_class,
    "bias": bias,
    "shift": shift,
    "mirror": mirror,
}


@pytest.mark.parametrize("law", EXACT)
@pytest.mark.parametrize("name", METHODS)
def test_maps_obey_the_law_or_break_it_for_a_stated_reason(name: str, law: str) -> None:
    before, after = EXACT[law](name)
    size = before.abs().amax()
    assert size > 0
    if (name, law) in BROKEN_LAWS:
        assert ((after - before).abs() / size).max() > 1e-3, BROKEN_LAWS[name, law]
    else:
        torch.testing.assert_close(after / size, before / size, rtol=0, atol=1e-9, msg=broken(name, law))


# Scales: no absolute epsilon anywhere -------------------------------------------------------------------------------


def scaled_logits(model: nn.Sequential, factor: float) -> nn.Sequential:
    changed = copy.deepcopy(model)
    changed[8].weight.data *= factor
    changed[8].bias.data *= factor
    return changed


def scaled_features(model: nn.Sequential, factors: Tensor) -> nn.Sequential:
    """What the layers read by the methods return, times ``factors`` (6,); the outputs stay."""
    changed = copy.deepcopy(model)
    for makes, reads in (readers(changed)[0], readers(changed)[2]):
        makes.weight.data *= factors.view(-1, *[1] * (makes.weight.dim() - 1))
        makes.bias.data *= factors
        reads.weight.data /= factors.view(1, -1, *[1] * (reads.weight.dim() - 2))
    return changed


SCALES: dict[str, Callable[[nn.Sequential, float], nn.Sequential]] = {
    "logits": scaled_logits,
    "features": lambda model, factor: scaled_features(model, torch.full((6,), factor)),
    "units": lambda model, factor: scaled_features(model, factor ** torch.linspace(-0.5, 0.5, 6)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("law", SCALES)
@pytest.mark.parametrize("name", METHODS)
def test_scales_leave_the_minmaxed_map_or_change_it_for_a_stated_reason(
    name: str, law: str, factor: float, dtype: torch.dtype
) -> None:
    model, images = network().to(dtype), pictures().to(dtype)
    before = minmaxed(explain(name, model, images))
    maps = explain(name, SCALES[law](model, factor), images)
    if (name, law) in BROKEN_LAWS:
        assert (camlib.normalize(maps) - before).abs().max() > 1e-3, BROKEN_LAWS[name, law]
    else:
        torch.testing.assert_close(minmaxed(maps), before, rtol=0, atol=1e-5, msg=broken(name, law))


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize(
    "name",
    ["grad_cam", "x_grad_cam", "hires_cam", "grad_cam_element_wise", "layer_cam", "eigen_grad_cam", "seg_eigen_cam"],
)
def test_gradients_may_be_as_small_or_large_as_single_precision_holds(name: str, factor: float) -> None:
    a, g = torch.rand(4, 6, 4, 5), torch.randn(4, 6, 4, 5)
    function = getattr(camlib.functional, name)
    expected = minmaxed(function(a, g))
    torch.testing.assert_close(minmaxed(function(a, g * factor)), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(minmaxed(function(a * factor, g)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e20, 1e30])
def test_components_of_features_may_be_as_small_or_large_as_single_precision_holds(factor: float) -> None:
    a = torch.randn(4, 6, 4, 5)
    for center in (False, True):
        expected = minmaxed(camlib.functional.eigen_cam(a, center=center))
        torch.testing.assert_close(
            minmaxed(camlib.functional.eigen_cam(a * factor, center=center)), expected, rtol=0, atol=1e-5
        )


def test_smooth_grad_cam_plus_plus_of_an_image_has_nothing_to_do_with_the_others_gradients() -> None:
    """Their cubes would underflow in units of the largest of the batch."""
    a, g = torch.rand(2, 6, 4, 5), torch.randn(3, 2, 6, 4, 5)
    g[:, 1] *= 1e-25
    together = camlib.functional.smooth_grad_cam_plus_plus(a, g)
    alone = camlib.functional.smooth_grad_cam_plus_plus(a[1:], g[:, 1:])
    torch.testing.assert_close(minmaxed(together[1:]), minmaxed(alone), rtol=0, atol=1e-6)


# Grad-CAM++ and its kin, which are not homogeneous: their limits -----------------------------------------------------


def positive_gradients(layer: str) -> Tensor:
    """Sum over channels of mean ReLU(G) times A, at a layer of the network."""
    model, images = network(), pictures()
    with torch.no_grad(), camlib.capture(model, layer) as captured:
        outputs = model(images)
    weights = captured.gradients(outputs[:, 1]).relu().mean((2, 3))
    return torch.einsum("nk,nkij->nij", weights, captured.activations)


def test_score_cam_of_small_logits_is_the_channels_mean_and_of_large_ones_the_best_channel() -> None:
    model, images = network(), pictures()
    with torch.no_grad(), camlib.capture(model, "1") as captured:
        model(images)
    a = captured.activations
    small = explain("score_cam", scaled_logits(model, 1e-9), images)
    torch.testing.assert_close(small, a.mean(1), rtol=0, atol=1e-7)
    large = explain("score_cam", scaled_logits(model, 1e9), images)
    masks = camlib.normalize(camlib.resize(a, (16, 20)))
    with torch.no_grad():
        scores = torch.stack([model(images * masks[:, k, None])[:, 1] for k in range(a.shape[1])], 1)
    torch.testing.assert_close(large, a[torch.arange(3), scores.argmax(1)], rtol=0, atol=1e-7)


def test_grad_cam_plus_plus_of_small_logits_weights_by_the_mean_positive_gradient() -> None:
    maps = explain("grad_cam_plus_plus", scaled_logits(network(), 1e-9), pictures())
    positions = 8 * 10
    torch.testing.assert_close(maps, 1e-9 * positions / 2 * positive_gradients("1"), rtol=1e-6, atol=0)
    single = explain("grad_cam_plus_plus", scaled_logits(network(), 1e-9).float(), pictures().float())
    torch.testing.assert_close(minmaxed(single), minmaxed(positive_gradients("1").float()), rtol=0, atol=1e-5)


def test_grad_cam_plus_plus_of_large_logits_counts_positive_gradients() -> None:
    """To infinity each positive gradient weighs 1 / sum A."""
    model, images = network(), pictures()
    with torch.no_grad(), camlib.capture(model, "1") as captured:
        outputs = model(images)
    positive = (captured.gradients(outputs[:, 1]) > 0).double().sum((2, 3))
    weights = positive / captured.activations.sum((2, 3))
    expected = torch.einsum("nk,nkij->nij", weights, captured.activations)
    maps = explain("grad_cam_plus_plus", scaled_logits(model, 1e12), images)
    torch.testing.assert_close(maps, expected, rtol=1e-6, atol=0)


def test_smooth_grad_cam_plus_plus_of_small_logits_weights_by_the_positive_mean_gradient() -> None:
    """The mean is over noisy copies; it is the limit's own map, whatever the scale."""
    images = pictures()
    maps = [explain("smooth_grad_cam_plus_plus", scaled_logits(network(), factor), images) for factor in (1e-9, 1e-12)]
    torch.testing.assert_close(maps[0] * 1e9, maps[1] * 1e12, rtol=1e-6, atol=0)
    quiet = camlib.SmoothGradCAMPlusPlus(scaled_logits(network(), 1e-9), "1", sigma=1e-9, relu=False)(images, 1).maps
    torch.testing.assert_close(minmaxed(quiet), minmaxed(positive_gradients("1")), rtol=0, atol=1e-6)
    single = explain("smooth_grad_cam_plus_plus", scaled_logits(network(), 1e-25).float(), images.float())
    torch.testing.assert_close(minmaxed(single), minmaxed(maps[0]).float(), rtol=0, atol=1e-5)


def test_refine_cam_of_small_logits_is_the_product_of_the_limits() -> None:
    maps = explain("refine_cam", scaled_logits(network(), 1e-9), pictures())
    expected = minmaxed(positive_gradients("1").relu()) * minmaxed(positive_gradients("3").relu())
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)


# Attention, on a vision transformer -----------------------------------------------------------------------------------


def transformer() -> nn.Module:
    torch.manual_seed(2)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    for tensor in (model.heads.head.weight, model.heads.head.bias, model.class_token, model.encoder.pos_embedding):
        nn.init.normal_(tensor)
    return model.double().eval()


def patches() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def attended(name: str, model: nn.Module, images: Tensor) -> Tensor:
    return camlib.create(name, model)(images, 1).maps


def attention_head(name: str, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """One more head, which the outputs do not hold, reads the tokens."""
    before, auxiliary = attended(name, model, images), nn.Linear(16, 5).double()

    def read(module: nn.Module, args: object, tokens: Tensor) -> None:
        auxiliary(tokens.mean(1))

    model.encoder.register_forward_hook(read)
    return before, attended(name, model, images)


def attention_heads_order(name: str, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The two attention heads of 8 channels change places."""
    before = attended(name, model, images)
    order = torch.arange(16).roll(8)
    for block in model.encoder.layers:
        attention = block.self_attention
        for packed in (attention.in_proj_weight, attention.in_proj_bias):
            packed.data = torch.cat([part[order] for part in packed.data.chunk(3)])
        attention.out_proj.weight.data = attention.out_proj.weight.data[:, order]
    return before, attended(name, model, images)


def attention_class(name: str, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    before, head = attended(name, model, images), model.heads.head
    head.weight.data = torch.cat([head.weight.data, head.weight.data[1:2] + 0.1])
    head.bias.data = torch.cat([head.bias.data, head.bias.data[1:2]])
    return before, attended(name, model, images)


def attention_bias(name: str, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    before = attended(name, model, images)
    model.heads.head.bias.data += 10
    return before, attended(name, model, images)


def attention_shift(name: str, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    return attended(name, model, images).roll((1, 2), (1, 2)), attended(name, model, images.roll((8, 16), (2, 3)))


def attention_mirror(name: str, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    before = attended(name, model, images).flip(2)
    model.conv_proj.weight.data = model.conv_proj.weight.data.flip(3)
    return before, attended(name, model, images.flip(3))


def without_positions(
    law: Callable[[str, nn.Module, Tensor], tuple[Tensor, Tensor]],
) -> Callable[[str, nn.Module, Tensor], tuple[Tensor, Tensor]]:
    """What the position embedding breaks holds where there is none."""

    def on(name: str, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        nn.init.zeros_(model.encoder.pos_embedding)
        return law(name, model, images)

    return on


TRANSFORMERS: dict[str, tuple[Callable[[str, nn.Module, Tensor], tuple[Tensor, Tensor]], str]] = {
    "channels: the order of attention heads": (attention_heads_order, ""),
    "head": (attention_head, ""),
    "classes": (attention_class, ""),
    "bias": (attention_bias, ""),
    "shift": (attention_shift, "patches are told apart by their positions"),
    "mirror": (attention_mirror, "as shift"),
    "shift without positions": (without_positions(attention_shift), ""),
    "mirror without positions": (without_positions(attention_mirror), ""),
}
"""Each law, and the reason why it does not hold, if so."""


@pytest.mark.parametrize("name", sorted(OF_ATTENTION))
@pytest.mark.parametrize("law", TRANSFORMERS)
def test_attention_obeys_the_law_or_breaks_it_for_a_reason(law: str, name: str) -> None:
    change, reason = TRANSFORMERS[law]
    before, after = change(name, transformer(), patches())
    size = before.abs().amax()
    assert size > 0
    if reason:
        assert ((after - before).abs() / size).max() > 1e-3, reason
    else:
        torch.testing.assert_close(after / size, before / size, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["le_grad", "grad_eclip", "attention_rollout"])
def test_attention_does_not_depend_on_the_scale_of_the_logits(name: str, factor: float, dtype: torch.dtype) -> None:
    model, images = transformer().to(dtype), patches().to(dtype)
    before = minmaxed(attended(name, model, images))
    model.heads.head.weight.data *= factor
    model.heads.head.bias.data *= factor
    torch.testing.assert_close(minmaxed(attended(name, model, images)), before, rtol=0, atol=1e-5)


def test_generic_attention_of_small_logits_adds_the_blocks() -> None:
    """R is a product over the blocks: its first order, which is homogeneous, is their sum."""
    model, images = transformer(), patches()
    model.heads.head.weight.data *= 1e-7
    model.heads.head.bias.data *= 1e-7
    blocks = equations.vit_attention(model, images, lambda outputs: outputs[:, 1])
    parts = [equations.generic_attention([block], (4, 4), [[0]] * 3)[0] for block in blocks]
    found = camlib.GenericAttention(model)(images, 1).maps
    torch.testing.assert_close(minmaxed(found), minmaxed(parts[0] + parts[1]), rtol=0, atol=1e-5)
