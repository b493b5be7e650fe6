"""The page holds what it was given, as text, and refuses what does not fit."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from networks import small_cnn

import camlib
from camlib.reporting import Chart, Headline, Section, Table
from pneumonia.phantoms import generate

HOSTILE = "<img src=x onerror=alert(1)>.png"


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and all(a.get(k.rstrip("_")) == v for k, v in wanted.items())]

    def pictures(self, kind):
        return [attributes for attributes in self.all("img", class_=kind) if attributes["alt"]]


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def explanation(images):
    torch.manual_seed(0)
    return camlib.GradCAM(small_cnn(channels=16), "3")(images, 1)


def test_every_image_is_there_with_its_overlay_and_its_words(explanation, images):
    page = Page(
        camlib.report(
            explanation,
            images,
            names=["a", "b", "c"],
            labels=[0, 1, 1],
            predictions=[0, 0, 1],
            confidences=[0.9, 0.6, 0.75],
            class_names=["cat", "dog"],
            notes=["first", "second", "third"],
        ).html
    )
    cards = page.all("article")
    assert [card["data-name"] for card in cards] == ["a", "b", "c"]
    assert [card["data-outcome"] for card in cards] == ["correct", "wrong", "correct"]
    assert [(card["data-label"], card["data-prediction"]) for card in cards] == [
        ("cat", "cat"), ("dog", "cat"), ("dog", "dog")
    ]  # fmt: skip
    assert len(page.pictures("original")) == len(page.pictures("overlay")) == 3
    assert "second" in page.text
    assert "(60%)" in page.text


def test_pages_ask_the_network_for_nothing(explanation, images):
    html = camlib.report(explanation, images).html
    page = Page(html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
    assert "default-src 'none'" in page.all("meta", http_equiv=None)[0].get("content", "") or "default-src" in html
    assert "unsafe" not in html


def test_everything_given_is_text(explanation, images):
    figure = Figure()
    figure.suptitle(HOSTILE)
    html = camlib.report(
        {HOSTILE: explanation},
        images,
        names=[HOSTILE, '"><script>alert(2)</script>', "' onload='alert(3)"],
        labels=[0, 1, 1],
        predictions=[1, 1, 0],
        class_names=[HOSTILE, "</script><script>alert(4)</script>"],
        notes=[HOSTILE] * 3,
        title=HOSTILE,
        notice=HOSTILE,
        summary=[Headline(HOSTILE, HOSTILE, None, HOSTILE)],
        sections=[
            Section(
                HOSTILE, [HOSTILE, Chart(HOSTILE, figure, HOSTILE, HOSTILE), Table([HOSTILE], [[HOSTILE]], HOSTILE)]
            )
        ],
        card={HOSTILE: HOSTILE},
    ).html
    page = Page(html)
    assert len(page.all("script")) == 1
    assert all(set(attributes) & {"onerror", "onload", "onclick"} == set() for _, attributes in page.elements)
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in page.elements)
    assert page.text.count(HOSTILE) > 12
    assert "alert(2)" in [card["data-name"] for card in page.all("article")][1]


def test_report_is_the_same_every_time_and_saved_whole(explanation, images, tmp_path):
    def made():
        figure = Figure()
        figure.subplots().plot([0, 1])
        return camlib.report(explanation, images, sections=[Section("x", [Chart("y", figure, "a line")])])

    path = made().save(tmp_path / "report.html")
    assert path.read_text() == made().html
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_pictures_may_differ_in_size_and_large_ones_are_made_smaller(explanation):
    pictures = [np.zeros((16, 20, 3), np.uint8), np.zeros((900, 1200, 3), np.uint8), np.zeros((7, 5), np.uint8)]
    page = Page(camlib.report(explanation, pictures).html)
    sizes = [(int(a["height"]), int(a["width"])) for a in page.pictures("original")]
    assert sizes == [(16, 20), (336, 448), (7, 5)]


def test_gallery_of_48_pictures_and_three_methods_stays_below_six_megabytes():
    phantoms = generate(48, size=512, seed=0).images
    torch.manual_seed(0)
    explanation = camlib.GradCAM(small_cnn(channels=16), "3")(torch.rand(48, 3, 16, 16), 1)
    report = camlib.report(dict.fromkeys(("one", "two", "three"), explanation), list(phantoms.numpy()))
    assert len(report.html) < 6e6


def test_empty_heatmap_is_said_to_be_empty(images):
    torch.manual_seed(0)
    model = small_cnn()
    torch.nn.init.zeros_(model[6].weight)
    html = camlib.report(camlib.GradCAM(model, "3")(images, 1), images).html
    assert html.count("No positive evidence") == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"names": ["a"]}, "3 images, but 1 names"),
        ({"labels": [0, 1]}, "3 images, but 2 labels"),
        ({"labels": [0, 1, 2], "class_names": ["x", "y"]}, "labels hold 2, but there are 2 class names"),
        ({"predictions": [0, -1, 0], "class_names": ["x", "y"]}, "predictions hold -1"),
        ({"confidences": [0.1, 0.2, 1.2]}, r"confidences are probabilities in \[0, 1\], got 1.2"),
        ({"confidences": [0.1, float("nan"), 0.2]}, "got nan"),
    ],
)
def test_what_does_not_fit_is_refused(explanation, images, options, complaint):
    with pytest.raises(camlib.CamlibValueError, match=complaint):
        camlib.report(explanation, images, **options)


def test_other_explanations_are_refused(explanation, images):
    with pytest.raises(camlib.CamlibValueError, match=r"2 images, but the explanation by grad_cam is of 3"):
        camlib.report(explanation, images[:2])
    with pytest.raises(camlib.CamlibTypeError, match="a report takes an Explanation"):
        camlib.report([explanation], images)
    with pytest.raises(camlib.CamlibTypeError, match="a report takes an Explanation"):
        camlib.report({}, images)
    torch.manual_seed(0)
    several = camlib.GradCAM(small_cnn(), "3")(images, camlib.TopK(2))
    with pytest.raises(camlib.CamlibValueError, match="several classes of each image"):
        camlib.report(several, images)


def test_parts_are_checked():
    with pytest.raises(camlib.CamlibTypeError, match="takes a matplotlib Figure, got str"):
        Chart("x", "figure", "alt")
    with pytest.raises(camlib.CamlibValueError, match="no alt text"):
        Chart("x", Figure(), " ")
    with pytest.raises(camlib.CamlibValueError, match="a row of 2 cells under 1 columns"):
        Table(["a"], [[1, 2]])
    with pytest.raises(camlib.CamlibTypeError, match="got one str"):
        Section("x", "text")
    with pytest.raises(camlib.CamlibTypeError, match="got int"):
        Section("x", ["text", 3])


def test_unknown_numbers_are_said_to_be_unknown():
    assert Headline("PPV", float("nan"), (float("nan"), 1.0)).shown == "not known"
    assert Table(["a", "b"], [["x", float("nan")]]).cells == [["x", "not known"]]


def test_without_jinja2_the_extra_is_named(explanation, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(camlib.CamlibRuntimeError, match="install the extra report"):
        camlib.report(explanation, images)
