"""Maps with negative values are drawn with zero in the middle of a diverging colormap, everywhere."""

import io

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import camlib
from camlib.imaging.colors import lookup_table
from camlib.plotting.rows import FigureRow, Style, on_one_scale, shortened


def explanation(maps, target=None, method="grad_cam"):
    maps = torch.as_tensor(maps, dtype=torch.float32)
    return camlib.Explanation(
        maps=maps,
        scores=torch.zeros(len(maps)),
        outputs=torch.zeros(len(maps), 3),
        target=torch.zeros(len(maps), dtype=torch.long) if target is None else target,
        method=method,
        layer="layer",
        input_size=tuple(maps.shape[1:]),
    )


# The second image has no negative value; it is drawn like the first one.
MAPS = [[[-4.0, 0.0], [1.0, 2.0]], [[0.0, 1.0], [2.0, 4.0]]]
SCALED = np.array([[[-1, 0], [0.25, 0.5]], [[0, 0.25], [0.5, 1]]])
WHITE = np.full((2, 2, 2, 3), 255, np.uint8)


def expected_colors():
    table = lookup_table("coolwarm")
    return table[np.rint((SCALED + 1) / 2 * 255).astype(int)]


def test_signed_is_told_by_the_values():
    assert explanation(MAPS).signed
    assert not explanation(np.abs(MAPS)).signed


def test_overlays_have_zero_in_the_middle():
    overlays = explanation(MAPS).overlays(WHITE, alpha=1.0)
    np.testing.assert_array_equal(overlays, expected_colors())
    middle = overlays[0, 0, 1].astype(int)
    assert middle.max() - middle.min() <= 4  # gray: neither for nor against
    assert overlays[0, 0, 0, 2] > overlays[0, 0, 0, 0]  # blue is against
    assert overlays[1, 1, 1, 0] > overlays[1, 1, 1, 2]  # red is for


def test_maps_without_negative_values_keep_their_colours():
    maps = np.abs(MAPS)
    values = (maps - maps.min((1, 2), keepdims=True)) / np.ptp(maps, (1, 2), keepdims=True)
    expected = lookup_table("jet")[np.rint(values * 255).astype(int)]
    np.testing.assert_array_equal(explanation(maps).overlays(WHITE, alpha=1.0), expected)


def test_figure_has_signed_limits_and_a_legend():
    figure = explanation(MAPS).plot(WHITE)
    heatmaps = [axes.images[0] for axes in figure.axes if axes.get_title() == "heatmap"]
    assert len(heatmaps) == 2
    for shown, values in zip(heatmaps, SCALED, strict=True):
        assert shown.get_clim() == (-1, 1)
        np.testing.assert_allclose(shown.get_array(), values)
        np.testing.assert_allclose(np.array(shown.cmap.colors) * 255, lookup_table("coolwarm"))
    bar = figure.axes[-1]
    assert bar.get_ylim() == (-1, 1)
    assert "against" in bar.get_ylabel()
    assert "for" in bar.get_ylabel()


def test_other_colormaps_are_used_as_they_are_given():
    overlays = explanation(MAPS).overlays(WHITE, colormap="RdBu_r", alpha=1.0)
    np.testing.assert_array_equal(overlays, lookup_table("RdBu_r")[np.rint((SCALED + 1) / 2 * 255).astype(int)])


def test_map_that_is_nowhere_positive_is_drawn_if_it_is_signed():
    maps = [[[-4.0, -1.0], [-2.0, -3.0]]]
    figure = explanation(maps).plot(WHITE[:1])
    titles = [axes.get_title() for axes in figure.axes]
    assert "heatmap" in titles
    assert "nothing stands out" not in titles


@pytest.mark.parametrize("shape", [(9,), (4, 5, 6)])
def test_signals_and_volumes_are_drawn_signed(shape):
    maps = torch.linspace(-1, 1, int(np.prod(shape))).reshape(1, *shape)
    pictures = torch.rand(1, 2, 9) if len(shape) == 1 else torch.rand(1, 1, *shape)
    figure = explanation(maps).plot(pictures)
    assert figure.axes[-1].get_ylim() == (-1, 1)
    if len(shape) == 1:
        assert figure.axes[0].images[0].get_clim() == (-1, 1)
        np.testing.assert_allclose(figure.axes[0].images[0].get_array()[0], np.linspace(-1, 1, 9), atol=1e-6)


def test_notebook_shows_signed_colours():
    picture = np.array(Image.open(io.BytesIO(explanation(MAPS)._repr_png_())))
    np.testing.assert_array_equal(picture[:, :2], expected_colors()[0])
    np.testing.assert_array_equal(picture[:, 4:6], expected_colors()[1])


def test_one_scale_for_all_maps_where_asked():
    figure = explanation(MAPS).plot(WHITE, scale="all")
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.get_title() == "heatmap"]
    np.testing.assert_allclose(shown, np.array(MAPS) / 4)
    assert "all maps" in figure.axes[-1].get_ylabel()
    positive = explanation([[[0.0, 1.0]], [[2.0, 4.0]]]).plot(WHITE[:, :1], scale="all")
    shown = [axes.images[0].get_array() for axes in positive.axes if axes.get_title() == "heatmap"]
    np.testing.assert_allclose(shown, [[[0, 0.25]], [[0.5, 1]]])
    with pytest.raises(camlib.CamlibValueError, match='scale must be "each" or "all"'):
        explanation(MAPS).plot(WHITE, scale="one")


def test_rows_of_zeros_have_a_scale():
    row = FigureRow(WHITE[0], np.zeros((2, 2)), "", "nothing stands out")
    assert not on_one_scale([row, row], signed=True)[0].heatmap.any()
    assert Style("jet", 0.5).colors == "jet"


def test_comparison_draws_signed_and_other_maps_by_their_kind():
    comparison = camlib.comparison.Comparison(
        {"signed": explanation(MAPS[:1]), "positive": explanation(np.abs(MAPS[:1]))}
    )
    figure = comparison.plot(WHITE[:1], alpha=1.0)
    shown = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.images}
    np.testing.assert_array_equal(shown["signed"], expected_colors()[0])
    values = (np.abs(MAPS[0]) - 0) / 4
    np.testing.assert_array_equal(shown["positive"], lookup_table("jet")[np.rint(values * 255).astype(int)])
    labels = [axes.get_ylabel() for axes in figure.axes if not axes.images]
    assert any("against" in label and "signed" in label for label in labels)
    assert any("importance" in label and "positive" in label for label in labels)


def test_report_says_which_colour_is_against():
    pytest.importorskip("jinja2")
    html = camlib.report(explanation(MAPS), WHITE).html
    assert "<span>against</span><span>0</span><span>for</span>" in html
    assert "least important" not in html
    both = camlib.report({"one": explanation(MAPS), "other": explanation(np.abs(MAPS))}, WHITE).html
    assert both.count('<figure class="legend">') == 2
    assert "Those by <bdi>one</bdi> are signed" in both


NAMES = ["$5 bill, not $10", r"$x_$ \alpha {", "a_b^c & <b>d</b> 100%"]


@pytest.mark.parametrize("name", NAMES)
def test_markup_in_class_names_is_text(name):
    one = explanation(MAPS)
    figures = [
        one.plot(WHITE, class_names=[name]),
        camlib.comparison.Comparison({name: one}).plot(WHITE, class_names=[name]),
        explanation(torch.rand(1, 9)).plot(torch.rand(1, 9), class_names=[name]),
        explanation(torch.rand(1, 2, 4, 5)).plot(torch.rand(1, 1, 2, 4, 5), class_names=[name]),
        one.plot(WHITE, titles=[name, name]),
    ]
    for figure in figures:
        figure.savefig(io.BytesIO())
        texts = [axes.get_title("left") or axes.get_title() for axes in figure.axes]
        titled = [axes.title if axes.get_title() else axes._left_title for axes in figure.axes]
        assert any(name in text.replace("\n", " ") for text in texts)
        assert not any(text.get_parse_math() for text in titled if name in text.get_text().replace("\n", " "))


def test_long_class_names_are_shortened_and_keep_their_score():
    name = "pneumonia of the left upper lobe " * 9
    lines = shortened(f"{name}: score 1.25", 36).split("\n")
    assert len(lines) <= 3
    assert max(map(len, lines)) <= 36
    assert lines[0].startswith("pneumonia of the left")
    assert lines[-1].endswith("score 1.25")
    figure = explanation(MAPS).plot(WHITE, class_names=[name])
    figure.savefig(io.BytesIO())
    title = figure.axes[0]._left_title
    assert title.get_window_extent().x1 <= figure.axes[1].get_window_extent().x1


def test_columns_draw_each_picture_and_then_its_classes():
    network = torchvision.models.resnet18(num_classes=9).eval()
    images = torch.rand(2, 3, 32, 32)
    found = camlib.GradCAM(network, "layer3")(images, camlib.TopK(5))
    figure = found.plot(images, class_names=list("abcdefghi"), columns=4)
    cells = [axes for axes in figure.axes if axes.images]
    assert len(cells) == 2 * (1 + 5)
    places = [axes.get_subplotspec() for axes in cells]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [
        *[(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)],
        *[(2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 1)],
    ]
    shown = [axes.images[0].get_array() for axes in cells]
    overlays = found.overlays(images)
    for image in range(2):
        np.testing.assert_array_equal(shown[6 * image], camlib.imaging.as_rgb(images[image]))
        for k in range(5):
            np.testing.assert_array_equal(shown[6 * image + 1 + k], overlays[image, k])
            title = cells[6 * image + 1 + k].get_title("left")
            assert title.startswith("abcdefghi"[found.target[image, k]] + ": score")
    with pytest.raises(camlib.CamlibValueError, match="columns=2 is for pictures, and the maps are of signals"):
        explanation(torch.rand(1, 9)).plot(torch.rand(1, 9), columns=2)
