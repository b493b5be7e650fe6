"""Images for which numbers are not finite: they cost only themselves where a caller asks so, and errors name them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlib
from camlib import targets
from camlib.errors import NotFiniteError
from tests.few_passes import OF_ATTENTION
from tests.networks import small_cnn

SHORT: dict[str, dict[str, Any]] = {
    "rise": {"samples": 6},
    "occlusion": {"window": 4, "stride": 4},
    "smooth_grad_cam_plus_plus": {"samples": 2},
    "ss_cam": {"samples": 2},
    "is_cam": {"samples": 2},
    "full_grad": {"tolerance": float("inf")},
    "integrated_gradients": {"steps": 3},
    "expected_gradients": {"baselines": 0.0, "samples": 3},
}
"""Options that keep a call short."""


def images(count: int = 5, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def with_bad(*numbers: int, count: int = 5, value: float = torch.nan) -> Tensor:
    """Images, some of which hold a number that is not finite."""
    found = images(count)
    found[list(numbers), 1, 3, 2] = value
    return found


def rest(count: int, *bad: int) -> list[int]:
    return [image for image in range(count) if image not in bad]


def cnn(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return small_cnn(classes).double().eval()


class Transformer(nn.Module):
    """Patches, one layer of attention, and the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Overflows(nn.Module):
    """Scores of images with a bright first pixel are infinite, after a layer whose values are finite."""

    def __init__(self) -> None:
        super().__init__()
        self.model = cnn()

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + 1e300 * (x[:, :1, 0, 0] > 2).to(x)
        return self.model(x) * scale * scale


def network_for(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Transformer().double().eval() if name in OF_ATTENTION else cnn()


def methods(name: str, model: nn.Module) -> tuple[camlib.methods.Method, camlib.methods.Method]:
    """A method that raises, and the same with NaN."""
    options = SHORT.get(name, {})
    return camlib.create(name, model, **options), camlib.create(name, model, on_nonfinite="nan", **options)


def assert_costs_only(found: camlib.Explanation, alone: camlib.Explanation, bad: tuple[int, ...]) -> None:
    """Bad images are NaN, and the others have exactly what they have without them."""
    good = rest(len(found), *bad)
    assert found.missing.tolist() == [image in bad for image in range(len(found))]
    assert found.maps.shape[1:] == alone.maps.shape[1:]
    assert found.maps[list(bad)].isnan().all()
    assert found.scores[list(bad)].isnan().all()
    torch.testing.assert_close(found.maps[good], alone.maps, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.scores[good], alone.scores, rtol=0, atol=1e-12)
    assert found.layers.keys() == alone.layers.keys()
    for layer, maps in alone.layers.items():
        assert found.layers[layer][list(bad)].isnan().all()
        torch.testing.assert_close(found.layers[layer][good], maps, rtol=0, atol=1e-12)
    if isinstance(alone.target, Tensor):
        assert torch.equal(found.target[good], alone.target)
    else:
        assert found.target == alone.target
    for field in ("method", "layer", "input_size", "extent", "origin", "quantity", "relu", "class_agnostic"):
        assert getattr(found, field) == getattr(alone, field), field


WITHOUT_THE_SCORE = (
    *("sobel", "center_gaussian", "random_cam", "eigen_cam", "kpca_cam", "fem", "cam"),
    *("score_cam", "ss_cam", "is_cam"),  # they read the scores of masked images, in which nothing overflows here
)
"""Methods whose map does not depend on the score of the image."""


@pytest.mark.parametrize("bad", [(0,), (4,), (1, 3)], ids=str)
@pytest.mark.parametrize("name", [name for name in camlib.METHODS if name != "center_gaussian"])
def test_images_with_nan_cost_only_themselves(name: str, bad: tuple[int, ...]) -> None:
    model = network_for(name)
    raising, cam = methods(name, model)
    alone = raising(images()[rest(5, *bad)], 1)
    with pytest.warns(camlib.CamlibWarning, match=f"no map for image.*{', '.join(map(str, bad))} of 5: .* not finite"):
        found = cam(with_bad(*bad), 1)
    assert_costs_only(found, alone, bad)
    assert_costs_only(cam(images(), 1), raising(images(), 1), ())


@pytest.mark.parametrize("name", [name for name in camlib.METHODS if name not in OF_ATTENTION])
@pytest.mark.filterwarnings("ignore:The tail of layer")
def test_an_image_at_which_the_network_overflows_costs_only_itself(name: str) -> None:
    model, given = Overflows().eval(), images()
    given[2, 0, 0, 0] = 3
    raising, cam = methods(name, model)
    alone = raising(given[rest(5, 2)], 1)
    if name in WITHOUT_THE_SCORE:
        torch.testing.assert_close(cam(given, 1).maps, raising(given, 1).maps)
        return
    with pytest.raises(NotFiniteError) as caught:
        raising(given, 1)
    assert caught.value.images == (2,)
    with pytest.warns(camlib.CamlibWarning, match="no map for image 2 of 5"):
        assert_costs_only(cam(given, 1), alone, (2,))


class Lightest(targets.Target):
    """The class with the lowest score."""

    def bind(self, outputs: Any) -> targets.BoundTarget:
        return targets.bind(outputs.argmin(1), outputs)


class Weighted(targets.BoundTarget):
    """A weighted sum of the scores, with weights for each image."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        return (outputs * self.weights[image_index]).sum(1)


WEIGHTS = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
LABELS = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]]).bool()

TARGETS: dict[str, Callable[[list[int]], Any]] = {
    "None": lambda kept: None,
    "int": lambda kept: 2,
    "list": lambda kept: [[0, 1, 2, 1, 0][image] for image in kept],
    "tensor": lambda kept: torch.tensor([0, 1, 2, 1, 0])[kept],
    "(N, K)": lambda kept: torch.tensor([[0, 1], [1, 2], [2, 0], [1, 0], [0, 2]])[kept],
    "TopK": lambda kept: camlib.TopK(2),
    "callable": lambda kept: lambda outputs: outputs[:, 2] - outputs[:, 0],
    "Classes": lambda kept: targets.Classes([[0, 1, 2, 1, 0][image] for image in kept]),
    "Probability": lambda kept: targets.Probability([[0, 1, 2, 1, 0][image] for image in kept]),
    "Contrast": lambda kept: targets.Contrast([[0, 1, 2, 1, 0][image] for image in kept], nearest=1),
    "MultiLabel": lambda kept: targets.MultiLabel(LABELS[kept]),
    "Similarity": lambda kept: targets.Similarity(WEIGHTS[kept]),
    "a bound target": lambda kept: targets.BoundLogits(torch.tensor([0, 1, 2, 1, 0])[kept]),
    "a custom target": lambda kept: Lightest(),
    "a custom bound target": lambda kept: Weighted(WEIGHTS[kept]),
}
"""Targets of some of five images."""


@pytest.mark.filterwarnings("ignore::camlib.CamlibWarning")
@pytest.mark.parametrize("bad", [(0,), (1, 3)], ids=str)
@pytest.mark.parametrize("name", ["grad_cam", "occlusion"])
@pytest.mark.parametrize("target", TARGETS)
def test_targets_are_restricted_to_the_images_that_are_left(target: str, name: str, bad: tuple[int, ...]) -> None:
    raising, cam = methods(name, cnn())
    kept, every = TARGETS[target](rest(5, *bad)), TARGETS[target](list(range(5)))
    assert_costs_only(cam(with_bad(*bad), every), raising(images()[rest(5, *bad)], kept), bad)


def test_a_map_that_ignores_the_image_needs_no_number_of_it() -> None:
    cam = camlib.CenterGaussian(cnn(), on_nonfinite="nan")
    assert not cam(with_bad(1), 1).missing.any()


def test_given_classes_stay_those_of_all_images() -> None:
    cam = camlib.GradCAM(cnn(), on_nonfinite="nan")
    with pytest.warns(camlib.CamlibWarning):
        assert cam(with_bad(1), [0, 1, 2, 1, 0]).target.tolist() == [0, 1, 2, 1, 0]


@pytest.mark.filterwarnings("ignore::camlib.CamlibWarning")
def test_regions_and_boxes_are_restricted() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    masks = images()[:, 0] > 0.5
    given = with_bad(2)
    cam, raising = camlib.GradCAM(dense, "1", on_nonfinite="nan"), camlib.GradCAM(dense, "1")
    kept = rest(5, 2)
    assert_costs_only(
        cam(given, targets.Region(1, masks)), raising(images()[kept], targets.Region(1, masks[kept])), (2,)
    )
    predicted = raising(images()[kept], targets.Region(1))
    assert_costs_only(cam(given, targets.Region(1)), predicted, (2,))  # binding it fails at image 2


@pytest.mark.filterwarnings("ignore::camlib.CamlibWarning")
@pytest.mark.parametrize("name", ["grad_cam", "rise"])
def test_inputs_in_containers_are_restricted(name: str) -> None:
    class Tabular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = cnn()

        def forward(self, pictures: Tensor, ages: Tensor, texts: Tensor) -> Tensor:
            return (self.model(pictures) * ages[:, None]) @ texts.T

    model = Tabular().eval()
    ages, texts = torch.rand(5, dtype=torch.float64) + 0.5, torch.rand(5, 3, dtype=torch.float64)
    options = {"layer": "model.3"} if name == "grad_cam" else {}
    cam = camlib.create(name, model, on_nonfinite="nan", **options, **SHORT.get(name, {}))
    raising = camlib.create(name, model, **options, **SHORT.get(name, {}))
    for bad in (1, 4):
        kept = rest(5, bad)
        alone = raising({"pictures": images()[kept], "ages": ages[kept], "texts": texts}, 3)
        found = cam({"pictures": with_bad(bad), "ages": ages, "texts": texts}, 3)
        assert_costs_only(found, alone, (bad,))


class Detector(nn.Module):
    """Takes and returns lists; its detection is the whole image, and there is none where the score is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.model = cnn()

    def forward(self, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
        scores = self.model(torch.stack(pictures)).sigmoid()
        box = torch.tensor([[0.0, 0.0, 8.0, 8.0]], dtype=torch.float64)
        found = [(one, box.repeat(3, 1)) for one in scores]
        return [
            {"boxes": boxes[one.isfinite()], "scores": one[one.isfinite()], "labels": torch.arange(3)[one.isfinite()]}
            for one, boxes in found
        ]


@pytest.mark.filterwarnings("ignore::camlib.CamlibWarning")
@pytest.mark.parametrize("target", [None, 1, targets.Box([0, 0, 8, 8], labels=2)], ids=["None", "int", "Box"])
def test_lists_of_images_are_restricted(target: Any) -> None:
    cam, raising = (camlib.GradCAM(Detector(), "model.3", on_nonfinite=one) for one in ("nan", "raise"))
    found, alone = cam(list(with_bad(2)), target), raising(list(images()[rest(5, 2)]), target)
    assert_costs_only(found, alone, (2,))
    assert [len(entry["scores"]) for entry in found.outputs] == [3, 3, 0, 3, 3]


def test_outputs_of_missing_images_are_nan() -> None:
    with pytest.warns(camlib.CamlibWarning):
        found = camlib.GradCAM(cnn(), on_nonfinite="nan")(with_bad(2))
    assert found.outputs.isnan().all(1).tolist() == [False, False, True, False, False]


def test_images_that_turn_out_bad_later_are_left_out_too() -> None:
    """The activations of image 3 are not finite, and behind them the gradient of image 1."""
    model, given = Overflows().eval(), with_bad(3)
    given[1, 0, 0, 0] = 3
    cam = camlib.GradCAM(model, "model.3", on_nonfinite="nan")
    with pytest.warns(camlib.CamlibWarning, match="no map for images 1, 3 of 5") as caught:
        found = cam(given, 1)
    assert len(caught) == 1
    assert_costs_only(found, camlib.GradCAM(model, "model.3")(images()[rest(5, 1, 3)], 1), (1, 3))


def test_an_image_that_spoils_its_batch_is_left_out_where_it_is_not_finite_itself() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = cnn()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x / x.amax())

    model, given = Scaled(), with_bad(1)
    given[[0, 2], 0, 0, 0] = 1  # the same divisor with and without image 1
    cam = camlib.GradCAM(model, "model.3", on_nonfinite="nan")
    with pytest.warns(camlib.CamlibWarning, match="no map for image 1 of 5"):
        found = cam(given, 1)
    assert_costs_only(found, camlib.GradCAM(model, "model.3")(given[rest(5, 1)], 1), (1,))


@pytest.mark.parametrize("name", ["grad_cam", "eigen_cam", "rise", "guided_backprop"])
def test_nothing_is_explained_if_no_image_is_left(name: str) -> None:
    _, cam = methods(name, cnn())
    for count in (1, 3):
        with pytest.raises(NotFiniteError, match="not finite") as caught:
            cam(images(count) * torch.nan, 1)
        assert caught.value.images == tuple(range(count))
        assert "no image is left" in caught.value.__notes__[0]


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = cnn()
    nn.init.constant_(model[0].bias, torch.nan)
    with pytest.raises(NotFiniteError) as caught:
        camlib.GradCAM(model, "3", on_nonfinite="nan")(images())
    assert "no image is left" in caught.value.__notes__[0]


def test_an_error_says_why_the_others_cannot_be_explained() -> None:
    class OfFive(targets.Target):
        """Weights that only fit a whole batch of five."""

        def bind(self, outputs: Any) -> targets.BoundTarget:
            if not bool(outputs.isfinite().all()) or len(outputs) != 5:
                raise camlib.CamlibValueError("needs five images")
            return Weighted(WEIGHTS).bind(outputs)

    cam = camlib.GradCAM(cnn(), "3", on_nonfinite="nan")
    with pytest.raises(camlib.CamlibValueError, match="needs five images") as caught:
        cam(with_bad(1), OfFive())
    assert "cannot be explained without them: needs five images" in caught.value.__notes__[0]


def test_errors_name_the_images_and_survive_pickle() -> None:
    with pytest.raises(NotFiniteError, match="for images 1, 3") as caught:
        camlib.GradCAM(cnn(), "3")(with_bad(1, 3), 1)
    assert caught.value.images == (1, 3)
    restored = pickle.loads(pickle.dumps(caught.value))
    assert (restored.images, str(restored)) == ((1, 3), str(caught.value))
    assert isinstance(restored, RuntimeError)
    assert NotFiniteError("of a batch").images == ()


def test_random_numbers_are_those_of_a_call_on_the_other_images() -> None:
    model = cnn()
    for name in ("random_cam", "rise", "smooth_grad_cam_plus_plus", "ss_cam"):
        options = SHORT.get(name, {})
        cam, raising = (
            camlib.create(name, model, on_nonfinite=one, generator=torch.Generator().manual_seed(3), **options)
            for one in ("nan", "raise")
        )
        for _ in range(2):
            with pytest.warns(camlib.CamlibWarning):
                found = cam(with_bad(0), 1)
            assert_costs_only(found, raising(images()[1:], 1), (0,))


@pytest.mark.parametrize("on_nonfinite", ["raise", "nan"])
def test_a_layer_found_from_an_image_with_nan_is_forgotten(on_nonfinite: Any) -> None:
    model = torchvision.models.vit_b_16(num_classes=3, image_size=32).eval()
    given = torch.rand(2, 3, 32, 32)
    expected = camlib.GradCAM(model)(given).layer
    cam = camlib.GradCAM(model, on_nonfinite=on_nonfinite)
    bad = given.clone()
    bad[0, 0, 0, 0] = torch.nan
    if on_nonfinite == "raise":
        with pytest.raises(NotFiniteError):
            cam(bad)
    else:
        with pytest.warns(camlib.CamlibWarning):
            assert cam(bad).layer == expected
    assert cam(given).layer == expected


@pytest.mark.parametrize("value", ["skip", "", None, True, 1, ["nan"]])
def test_another_value_is_refused(value: Any) -> None:
    with pytest.raises(camlib.CamlibValueError, match='on_nonfinite must be "raise" or "nan"'):
        camlib.GradCAM(cnn(), on_nonfinite=value)


@pytest.mark.filterwarnings("ignore::camlib.CamlibWarning")
class TestSeveralMethods:
    def test_an_image_costs_only_the_methods_whose_numbers_are_not_finite(self) -> None:
        model, given = Overflows().eval(), images()
        given[2, 0, 0, 0] = 3
        names = ["grad_cam", "eigen_cam", "hires_cam", "guided_backprop"]
        found = camlib.compare(model, given, names, 1, layer="model.3", on_nonfinite="nan")
        alone = camlib.compare(model, given[rest(5, 2)], names, 1, layer="model.3")
        for name in names:
            if name == "eigen_cam":
                assert not found[name].missing.any()
                torch.testing.assert_close(found[name].maps[rest(5, 2)], alone[name].maps)
            else:
                assert_costs_only(found[name], alone[name], (2,))

    def test_predicted_classes_are_the_same_for_all(self) -> None:
        names = ["grad_cam", "occlusion", "layer_cam"]
        found = camlib.compare(cnn(), with_bad(0, 4), names, on_nonfinite="nan")
        alone = camlib.compare(cnn(), images()[1:4], names)
        for name in names:
            assert_costs_only(found[name], alone[name], (0, 4))

    def test_a_method_that_raises_does_so_among_others(self) -> None:
        model = cnn()
        given = [camlib.GradCAM(model, "3", on_nonfinite="nan"), camlib.LayerCAM(model, "3")]
        with pytest.raises(NotFiniteError):
            camlib.compare(model, with_bad(1), given, 1)

    @pytest.mark.parametrize("target", [None, 1, [0, 1, 2, 1, 0], camlib.TopK(2)], ids=str)
    @pytest.mark.parametrize(
        "wrapper",
        [
            lambda cam: camlib.NoiseAveraging(cam, samples=2),
            lambda cam: camlib.TestTimeAugmentation(cam, [1, 0.9]),
            lambda cam: camlib.MultiScale(cam, [1, 1.5], keep=0.5),
        ],
        ids=["noise", "augmentation", "scales"],
    )
    def test_smoothing_costs_only_the_image(self, wrapper: Callable[[Any], Any], target: Any) -> None:
        model = cnn()
        found = wrapper(camlib.GradCAM(model, "3", on_nonfinite="nan"))(with_bad(2), target)
        kept = target[:2] + target[3:] if isinstance(target, list) else target
        alone = wrapper(camlib.GradCAM(model, "3"))(images()[rest(5, 2)], kept)
        assert_costs_only(found, alone, (2,))
        torch.testing.assert_close(found.heatmaps()[rest(5, 2)], alone.heatmaps())


def explanation(classes: bool = False, relu: bool = True, agnostic: bool = False) -> camlib.Explanation:
    """Of three images, the second without a map."""
    maps = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) - (0 if relu else 0.5)
    maps[1] = torch.nan
    scores = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan], [3.0, 4.0]])
    chosen = (slice(None),) if classes else (slice(None), 0)
    found = torch.tensor([[0, 1], [0, 1], [1, 0]])[chosen]
    return camlib.Explanation(
        maps[chosen], scores[chosen], None, found, "grad_cam", "3", (8, 8), relu=relu, class_agnostic=agnostic
    )


PICTURES = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("relu", [False, True])
class TestExplanation:
    def test_heatmaps_are_nan_for_missing_images_alone(self, classes: bool, relu: bool) -> None:
        whole = explanation(classes, relu)
        assert whole.missing.tolist() == [False, True, False]
        assert not whole.degenerate[1].any()
        for normalize in ("minmax", "max", "percentile", "signed", "none"):
            heatmaps = whole.heatmaps(normalize=normalize)
            assert heatmaps[1].isnan().all()
            for image in (0, 2):
                assert torch.equal(heatmaps[image], whole[image].heatmaps(normalize=normalize)[0])

    def test_overlays_leave_the_picture_as_it_is(self, classes: bool, relu: bool) -> None:
        whole = explanation(classes, relu)
        overlays = whole.overlays(PICTURES)
        for shown in overlays[1].reshape(-1, 8, 8, 3):
            np.testing.assert_array_equal(shown, PICTURES[1])
        np.testing.assert_array_equal(overlays[2], whole[2].overlays(PICTURES[2])[0])

    @pytest.mark.parametrize("scale", ["each", "all"])
    def test_figures_say_that_the_map_is_not_finite(self, classes: bool, relu: bool, scale: Any) -> None:
        whole = explanation(classes, relu)
        figure = whole.plot(PICTURES, ["cat", "dog"], scale=scale)
        rows = 2 if classes else 1
        for row in range(rows, 2 * rows):
            original, heatmap, overlaid = figure.axes[3 * row : 3 * row + 3]
            assert original.get_title("left") == heatmap.get_title() == "the map is not finite"
            np.testing.assert_array_equal(overlaid.images[0].get_array(), PICTURES[1])
            assert heatmap.images[0].get_array().mask.all()
        assert figure.axes[0].get_title("left") == "cat: score 1.00"
        figure.savefig(Path("/dev/null"), format="png")
        compact = whole.plot(PICTURES, columns=3)
        assert [ax.get_title("left") for ax in compact.axes].count("the map is not finite") == rows
        titled = whole.plot(PICTURES, titles=["a"] * 3 * rows, columns=3)
        assert [ax.get_title("left") for ax in titled.axes].count("a, the map is not finite") == rows

    def test_files_slices_and_joins_keep_what_is_missing(self, classes: bool, relu: bool, tmp_path: Path) -> None:
        whole = explanation(classes, relu)
        whole.save(tmp_path / "maps.npz")
        joined = camlib.Explanation.cat(list(camlib.Explanation.load(tmp_path / "maps.npz")))
        assert torch.equal(joined.maps.isnan(), whole.maps.isnan())
        assert joined.missing.tolist() == [one.missing.item() for one in whole] == [False, True, False]
        assert whole[1:].title() == "the map is not finite"
        assert whole.to(torch.float64).missing.tolist() == [False, True, False]

    def test_a_notebook_shows_a_white_tile(self, classes: bool, relu: bool) -> None:
        import io

        from PIL import Image

        tiles = np.array(Image.open(io.BytesIO(explanation(classes, relu)._repr_png_())))
        count = 6 if classes else 3
        tiles = tiles.reshape(8, count, 10, 3)[:, :, :8].swapaxes(0, 1)
        assert [bool((tile == 255).all()) for tile in tiles] == [
            image == 1 for image in range(3) for _ in range(count // 3)
        ]


def test_a_single_value_that_is_not_finite_is_an_error() -> None:
    for value in (torch.nan, torch.inf):
        maps = torch.rand(2, 4, 4)
        maps[1, 2, 2] = value
        one = camlib.Explanation(maps, torch.ones(2), None, torch.tensor([0, 1]), "grad_cam", "3", (8, 8))
        assert not one.missing.any()
        with pytest.raises(camlib.CamlibValueError, match="NaN or infinity at 1 of 2"):
            one.heatmaps()


def test_signals_and_clips_without_a_map_are_drawn() -> None:
    maps = torch.rand(2, 4)
    maps[1] = torch.nan
    signals = camlib.Explanation(maps, torch.ones(2), None, torch.tensor([0, 1]), "grad_cam", "3", (8,))
    figure = signals.plot(torch.rand(2, 1, 8))
    assert figure.axes[1].get_title("left") == "the map is not finite"
    assert signals._repr_png_()
    clips = torch.rand(2, 4, 4, 4)
    clips[0] = torch.nan
    volumes = camlib.Explanation(clips, torch.ones(2), None, torch.tensor([0, 1]), "grad_cam", "3", (4, 8, 8))
    pictures = np.stack([PICTURES[[0, 1, 2, 0]]] * 2)
    np.testing.assert_array_equal(volumes.overlays(pictures)[0], pictures[0])
    titles = [ax.get_title("left") for ax in volumes.plot(pictures).axes]
    assert titles[0] == "the map is not finite\nframe 0"


def test_a_comparison_names_the_class_if_one_method_has_a_map() -> None:
    good, agnostic = explanation(), explanation(agnostic=True)
    whole = camlib.Explanation(**{**vars(good), "maps": torch.rand(3, 4, 4), "scores": torch.ones(3)})
    figure = camlib.comparison.Comparison({"first": good, "second": whole, "third": agnostic}).plot(PICTURES)
    titles = [ax.get_title() for ax in figure.axes[4:8]]
    assert titles == ["class 0: score 1.00", "first\nthe map is not finite", "second", "third\nthe map is not finite"]
    np.testing.assert_array_equal(figure.axes[5].images[0].get_array(), PICTURES[1])


def test_a_report_says_so() -> None:
    page = camlib.report(explanation(), PICTURES).html
    assert page.count("There is no heatmap by") == 1
    assert page.count("its numbers are not finite") == 1
    assert 'data-explains="nothing"' in page


def test_metrics_refuse_a_missing_heatmap_by_number() -> None:
    with pytest.warns(camlib.CamlibWarning):
        found = camlib.GradCAM(cnn(), "3", on_nonfinite="nan")(with_bad(2), 1)
    for call in (
        lambda: camlib.metrics.deletion(cnn(), with_bad(2), found.heatmaps(), 1, steps=2),
        lambda: camlib.metrics.sparseness(found.heatmaps()),
    ):
        with pytest.raises(camlib.CamlibValueError, match="heatmaps hold NaN or infinity at 2 of 5.*missing"):
            call()
    kept = ~found.missing
    assert camlib.metrics.sparseness(found.heatmaps()[kept]).isfinite().all()


@pytest.mark.filterwarnings("ignore::camlib.CamlibWarning")
def test_an_evaluation_of_such_methods_is_that_of_methods_that_raise() -> None:
    model = cnn().float()
    asked = {"layers": None, "metrics": ["average_drop", "sparseness"], "target": 1}
    given = [one.float() for one in (with_bad(1)[:3], with_bad(1)[3:])]
    one, other = (
        camlib.evaluate(model, given, [camlib.GradCAM(model, "3", on_nonfinite=way)], **asked)
        for way in ("nan", "raise")
    )
    for row in one.rows:
        for name in asked["metrics"]:
            torch.testing.assert_close(one.values[row][name], other.values[row][name], equal_nan=True)
    assert {failure.images for failure in one.failures} == {failure.images for failure in other.failures} == {(1,)}


@pytest.mark.filterwarnings("ignore::camlib.CamlibWarning")
@pytest.mark.parametrize("size", [1, 2, 5, "auto"])
@pytest.mark.parametrize("bad", [(0,), (4,), (0, 1, 2)])
def test_smoothing_leaves_out_the_same_images_in_chunks_of_every_size(bad: tuple[int, ...], size: Any) -> None:
    cam, good = camlib.GradCAM(cnn(), "2", on_nonfinite="nan"), rest(5, *bad)
    for smooth in (
        camlib.NoiseAveraging(cam, 3, chunk_size=size),
        camlib.TestTimeAugmentation(cam, chunk_size=size),
        camlib.NoiseAveraging(camlib.TestTimeAugmentation(cam, (1.0, 0.9)), 2, chunk_size=size),
    ):
        found = smooth(with_bad(*bad), [0, 1, 2, 1, 0])
        expected = smooth(images()[good], [[0, 1, 2, 1, 0][image] for image in good])
        assert found.missing.nonzero().flatten().tolist() == list(bad)
        torch.testing.assert_close(found.maps[good], expected.maps, rtol=1e-10, atol=1e-12)
        assert torch.equal(found.target, torch.tensor([0, 1, 2, 1, 0]))


def test_smoothing_warns_once_of_the_images_that_it_leaves_out() -> None:
    cam = camlib.NoiseAveraging(camlib.GradCAM(cnn(), "2", on_nonfinite="nan"), 4)
    with pytest.warns(camlib.CamlibWarning) as caught:
        cam(with_bad(1), 1)
    assert [str(one.message).partition(":")[0] for one in caught] == ["no map for image 1 of 5"]


@pytest.mark.parametrize("target", [99, "a", 1.5])
def test_errors_of_another_cause_have_no_note(target: Any) -> None:
    with pytest.raises(camlib.CamlibError) as caught:
        camlib.GradCAM(cnn(), "2", on_nonfinite="nan")(images(), target)
    assert not getattr(caught.value, "__notes__", [])
