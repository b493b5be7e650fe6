"""The page shows all arguments as text, and wrong arguments are refused."""

from __future__ import annotations

import dataclasses
import sys
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import camlib
from camlib.reporting import Chart, Headline, Section, Table
from pneumonia.phantoms import generate
from tests.networks import small_cnn

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


def test_every_image_has_its_overlay_and_its_text(explanation, images):
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


def test_pages_request_nothing_from_the_network(explanation, images):
    html = camlib.report(explanation, images).html
    page = Page(html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in html


def test_all_arguments_are_shown_as_text(explanation, images):
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


def test_pictures_may_differ_in_size_and_large_ones_are_reduced(explanation):
    pictures = [np.zeros((16, 20, 3), np.uint8), np.zeros((900, 1200, 3), np.uint8), np.zeros((7, 5), np.uint8)]
    page = Page(camlib.report(explanation, pictures).html)
    sizes = [(int(a["height"]), int(a["width"])) for a in page.pictures("original")]
    assert sizes == [(16, 20), (336, 448), (7, 5)]


@pytest.mark.slow
def test_gallery_of_48_pictures_and_three_methods_stays_below_six_megabytes():
    phantoms = generate(48, size=512, seed=0).images
    torch.manual_seed(0)
    explanation = camlib.GradCAM(small_cnn(channels=16), "3")(torch.rand(48, 3, 16, 16), 1)
    report = camlib.report(dict.fromkeys(("one", "two", "three"), explanation), list(phantoms.numpy()))
    assert len(report.html) < 6e6


def test_an_empty_heatmap_is_marked(images):
    torch.manual_seed(0)
    model = small_cnn()
    torch.nn.init.zeros_(model[6].weight)
    html = camlib.report(camlib.GradCAM(model, "3")(images, 1), images).html
    assert html.count("the map is constant or has no positive value") == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"names": ["a"]}, "3 images, but 1 names"),
        ({"labels": [0, 1]}, "3 images, but 2 labels"),
        ({"labels": [0, 1, 2], "class_names": ["x", "y"]}, "labels contain 2, but there are 2 class names"),
        ({"predictions": [0, -1, 0], "class_names": ["x", "y"]}, "predictions contain -1"),
        ({"confidences": [0.1, 0.2, 1.2]}, r"each of confidences must be a number in \[0, 1\], got 1.2"),
        ({"confidences": [0.1, float("nan"), 0.2]}, "got nan"),
        ({"labels": [0, -1, 0]}, "labels contain -1, but class indices start at 0"),
        ({"labels": [0, 0.7, 1]}, "labels must be class indices, one int for each image, got 0.7"),
        ({"predictions": ["cat", "dog", "cat"]}, "got 'cat'; pass names of the classes as class_names"),
        ({"labels": torch.zeros(3, 2, dtype=torch.long)}, "labels must be class indices"),
        ({"confidences": ["high", 0.2, 0.3]}, "each of confidences must be a number .* got 'high'"),
        ({"confidences": torch.rand(3, 2)}, "each of confidences must be a number .* got tensor"),
        ({"names": "abc"}, "names must be a list with a text for each image, got one str: 'abc'"),
        ({"summary": Headline("AUROC", 0.9)}, "summary must be a list of Headline, got Headline"),
        ({"sections": ["text"]}, r"sections must be a list of Section, got \['text'\]"),
    ],
)
def test_wrong_arguments_are_refused(explanation, images, options, complaint):
    with pytest.raises(camlib.CamlibError, match=complaint):
        camlib.report(explanation, images, **options)


def test_other_explanations_are_refused(explanation, images):
    with pytest.raises(camlib.CamlibValueError, match=r"2 images, but the explanation by grad_cam has 3 images"):
        camlib.report(explanation, images[:2])
    with pytest.raises(camlib.CamlibTypeError, match="a report takes an Explanation"):
        camlib.report([explanation], images)
    with pytest.raises(camlib.CamlibTypeError, match="a report takes an Explanation"):
        camlib.report({}, images)
    torch.manual_seed(0)
    several = camlib.GradCAM(small_cnn(), "3")(images, camlib.TopK(2))
    with pytest.raises(camlib.CamlibValueError, match="several classes for each image"):
        camlib.report(several, images)
    frames = dataclasses.replace(explanation, maps=torch.rand(3, 2), layers={}, input_size=(20,))
    with pytest.raises(camlib.CamlibValueError, match="the maps by grad_cam are of signals"):
        camlib.report(frames, torch.rand(3, 3, 2, 16, 20))
    with pytest.raises(camlib.CamlibValueError, match="class_names has 1 names, but class 1 was explained"):
        camlib.report(explanation, images, class_names=["cat"])


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_labels_and_confidences_may_be_tensors_and_arrays(explanation, images, kind):
    given = {"labels": [0, 1, 1], "predictions": [0, 0, 1], "confidences": [0.5, 0.75, 1.0]}
    expected = camlib.report(explanation, images, class_names=["cat", "dog"], **given).html
    as_kind = {name: kind(values) for name, values in given.items()}
    assert camlib.report(explanation, images, class_names=["cat", "dog"], **as_kind).html == expected


def test_cards_say_what_their_heatmaps_explain(explanation, images):
    class Loudest(camlib.methods.ActivationMethod):
        name = "loudest"

        def maps(self, activations):
            return activations.amax(1)

    agnostic = camlib.EigenCAM(small_cnn(channels=16), "3")(images)
    custom = Loudest(small_cnn(channels=16), "3")(images)
    smoothed = camlib.NoiseAveraging(Loudest(small_cnn(channels=16), "3"), samples=2)(images)
    mean = camlib.GradCAM(small_cnn(channels=16), "3")(images, lambda outputs: outputs.mean(1))
    for explanations, words in (
        (explanation, "explains dog"),
        ({"one": explanation, "two": explanation}, "explains dog"),
        (agnostic, "explains no particular class"),
        (custom, "explains no particular class"),
        (smoothed, "explains no particular class"),
        (mean, f"explains {mean.target}"),
        ({"one": explanation, "two": agnostic}, "explains dog (one), no particular class (two)"),
    ):
        text = " ".join(Page(camlib.report(explanations, images, class_names=["cat", "dog"]).html).text.split())
        assert text.count(words) == 3


def test_only_maps_of_a_class_are_said_to_show_what_raised_its_score(explanation, images):
    agnostic = camlib.EigenCAM(small_cnn(channels=16), "3")(images)
    raised, same = "which features raised", "are the same for every class and explain no score."
    for explanations, notice, told in (
        (explanation, "A heatmap shows which features raised a score. It does not", f"{raised} the explained score"),
        (agnostic, "A heatmap that is the same for every class explains no score. It does not", f"heatmaps {same}"),
        (
            {"one": explanation, "two": agnostic},
            f"A heatmap that explains a class shows {raised} its score. It does not",
            f"{raised} the explained score, not why, and not whether the score is right. Those by two {same}",
        ),
    ):
        text = " ".join(Page(camlib.report(explanations, images, class_names=["cat", "dog"]).html).text.split())
        assert text.count(notice) == 2
        assert text.count(told) == 1
        assert (raised in text) == (explanations is not agnostic)
        assert (same in text) == (explanations is not explanation)
    assert "raised a score" not in camlib.report(explanation, images, notice="").html


def test_ids_are_unique_whatever_sections_are_called(explanation, images):
    sections = [Section(title, ["text"]) for title in ("Gallery", "Method", "method", "??", "??", "Model card")]
    page = Page(camlib.report(dict.fromkeys("ab", explanation), images, sections=sections, card={"a": "b"}).html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)


def test_a_file_name_that_is_not_text_is_shown_and_saved(explanation, images, tmp_path):
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    path = camlib.report(explanation, images, names=[name, "b", "c"]).save(tmp_path / "report.html")
    assert "caf?.png" in Page(path.read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("confidence", "words"), [(1.0, "(100%)"), (0.9996, "(over 99%)"), (0.004, "(below 1%)"), (0.994, "(99%)")]
)
def test_only_a_confidence_of_one_is_a_hundred_percent(explanation, images, confidence, words):
    html = camlib.report(explanation, images, predictions=[0] * 3, confidences=[confidence] * 3).html
    assert html.count(words) == 3


def test_chart_may_be_a_png(explanation, images):
    def png(**size):
        file = BytesIO()
        Figure(**size).savefig(file, format="png")
        return file.getvalue()

    square, wide = Chart("x", png(figsize=(2, 2)), "square"), Chart("x", png(figsize=(4, 2)), "wide")
    assert (square.is_wide, wide.is_wide) == (False, True)
    page = Page(camlib.report(explanation, images, sections=[Section("x", [square])]).html)
    assert page.all("img", alt="square")[0]["src"] == square.source
    assert square.source.startswith("data:image/png;base64,iVBORw0KGgo")
    with pytest.raises(camlib.CamlibTypeError, match="the bytes of a PNG, got bytes"):
        Chart("x", b"<svg onload='alert(1)'>", "alt")


def test_parts_are_checked():
    with pytest.raises(camlib.CamlibTypeError, match="takes a matplotlib Figure or the bytes of a PNG, got str"):
        Chart("x", "figure", "alt")
    with pytest.raises(camlib.CamlibValueError, match="no alt text"):
        Chart("x", Figure(), " ")
    with pytest.raises(camlib.CamlibValueError, match="a row has 2 cells for 1 columns"):
        Table(["a"], [[1, 2]])
    for interval in ((0.9,), (0.9, 0.8)):
        with pytest.raises(camlib.CamlibValueError, match=r"the interval of 'x' must be \(low, high\)"):
            Headline("x", 0.85, interval)
    with pytest.raises(camlib.CamlibTypeError, match="must be a list of Chart, Table and str, got 'text'"):
        Section("x", "text")
    with pytest.raises(camlib.CamlibTypeError, match="got int"):
        Section("x", ["text", 3])


def test_numbers_of_numpy_and_torch_are_numbers():
    table = Table(["name", "mean", "images"], [["x", np.float32(0.5), 12], ["y", torch.tensor(0.25), np.int64(7)]])
    assert table.cells == [["x", "0.500", "12"], ["y", "0.250", "7"]]
    assert table.is_numeric == [False, True, True]
    assert Headline("x", np.float32(0.5), (np.float32(0.25), 0.75)).range == "0.250 to 0.750"


def test_nan_is_shown_as_unknown():
    assert Headline("PPV", float("nan"), (float("nan"), 1.0)).shown == "unknown"
    assert Table(["a", "b"], [["x", float("nan")]]).cells == [["x", "unknown"]]


def test_without_jinja2_the_extra_is_named(explanation, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(camlib.CamlibRuntimeError, match="install the extra report"):
        camlib.report(explanation, images)


class Safe(str):
    """A text that says it is HTML, as Django's safe strings and markupsafe's do."""

    def __html__(self) -> str:
        return self


def test_texts_that_say_they_are_html_are_escaped_too(explanation, images):
    bad, each = Safe("<img src=x onerror=alert(1)>"), len(explanation)
    made = camlib.report(
        explanation,
        images,
        title=bad,
        notice=bad,
        names=[bad] * each,
        notes=[bad] * each,
        class_names=[bad] * 9,
        card={bad: bad},
        summary=[Headline(bad, bad, note=bad)],
        sections=[Section(bad, [bad, Table([bad], [[bad]], bad)])],
    )
    assert "<img src=x" not in made.html
    assert "&lt;img src=x" in made.html


@pytest.mark.parametrize(
    "arguments",
    [{"card": ["a"]}, {"labels": 3}, {"names": 5}, {"confidences": 1}, {"predictions": "ab"}, {"notes": {"a": 1}}],
)
def test_arguments_of_another_kind_are_refused(explanation, images, arguments):
    with pytest.raises(camlib.CamlibTypeError, match=f"{next(iter(arguments))} must be"):
        camlib.report(explanation, images, **arguments)


@pytest.mark.parametrize("interval", [(None, 1), 3, (0.1, 0.2, 0.3), "ab"])
def test_an_interval_that_is_no_pair_of_numbers_is_refused(interval):
    with pytest.raises(camlib.CamlibError, match="interval of 'a'"):
        Headline("a", 0.5, interval)
