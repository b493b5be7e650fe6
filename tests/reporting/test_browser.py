"""The page in a real browser: it opens without messages, its controls work, and no code in a name runs."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure

import camlib
from camlib.reporting import Chart, Headline, Section, Table
from tests.networks import small_cnn

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)>.png"
DOG = f"dog  {HOSTILE}"
"""Two spaces, which a browser would make one of in the text of an option."""


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    images = torch.rand(6, 3, 32, 40)
    compared = camlib.compare(small_cnn(channels=16), images, ["grad_cam", "layer_cam", "eigen_cam"], 1, layer="3")
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([0, 1])
    return camlib.report(
        compared,
        images,
        names=[HOSTILE, "beta.png", "gamma.png", "delta.png", "epsilon.png", "zeta.png"],
        labels=[0, 0, 1, 1, 0, 1],
        predictions=[0, 1, 1, 0, 0, 1],
        confidences=[0.95, 0.55, 0.9, 0.6, 0.7, 0.8],
        class_names=["cat", DOG],
        notes=[HOSTILE] * 6,
        title=f"A report {HOSTILE}",
        notice="Research software.",
        summary=[Headline("AUROC", 0.9, (0.8, 0.95), "a note")],
        sections=[
            Section(
                "Results", ["Text.", Chart("Line", figure, "a line", "rises"), Table(["a", "b"], [["x", 0.5]] * 3)]
            ),
            Section("Method", [Table([f"column {n}" for n in range(20)], [["value"] * 20], "wide")]),
        ],
        card={"Model": "small"},
    )


@pytest.fixture(scope="module")
def path(report, tmp_path_factory):
    return report.save(tmp_path_factory.mktemp("report") / f"report {HOSTILE.replace('/', '')}.html")


@pytest.fixture
def opened(chromium, path):
    """Open the page, and fail at the end if it complained, asked for anything, or showed a dialog."""
    contexts, complaints = [], []

    def open_page(**options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(f"request: {r.url}"))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def shown(page):
    return page.locator(".card:visible").evaluate_all("cards => cards.map(card => card.dataset.name)")


def test_the_page_opens_without_messages_and_shows_everything(opened):
    page = opened()
    assert len(shown(page)) == 6
    assert page.locator("img:visible").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
    assert page.locator("#count").inner_text() == "6 of 6 images"


def test_hostile_names_stay_text(opened):
    page = opened()
    assert HOSTILE in page.locator("h1").inner_text()
    assert page.locator(".card h3").first.inner_text() == HOSTILE
    page.locator(".card").first.press("Enter")
    assert page.locator("#large-name").inner_text() == HOSTILE
    assert page.locator("img[src=x]").count() == 0


def test_filters_hide_other_cards(opened):
    page = opened()
    page.select_option("#outcome", "wrong")
    assert shown(page) == ["beta.png", "delta.png"]
    assert page.locator("#count").inner_text() == "2 of 6 images"
    page.select_option("#class", DOG)
    assert shown(page) == ["beta.png", "delta.png"]
    page.select_option("#outcome", "correct")
    assert shown(page) == ["gamma.png", "zeta.png"]
    page.select_option("#class", "cat")
    assert shown(page) == [HOSTILE, "epsilon.png"]
    page.locator("#least").fill("80")
    assert page.locator("#least-shown").inner_text() == "80%"
    assert shown(page) == [HOSTILE]
    page.locator("#search").fill("zeta")
    assert shown(page) == []
    assert page.locator("#none").is_visible()
    for name in ("#outcome", "#class"):
        page.select_option(name, "")
    page.locator("#least").fill("0")
    assert shown(page) == ["zeta.png"]


def cut_of(page, index=0):
    return (
        page.locator(".card .stack").nth(index).evaluate("stack => getComputedStyle(stack).getPropertyValue('--cut')")
    )


def test_slider_moves_by_pointer_and_by_key(opened):
    page = opened()
    slider = page.locator(".card .cut input").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    quarter = float(cut_of(page).rstrip("%"))
    assert 10 < quarter < 40
    clip = page.locator(".card .overlay:visible").first.evaluate("image => getComputedStyle(image).clipPath")
    assert "inset(" in clip
    slider.press("ArrowRight")
    assert float(cut_of(page).rstrip("%")) == quarter + 1
    page.locator("#cut-all").fill("30")
    assert [cut_of(page, index) for index in range(6)] == ["30%"] * 6


def test_another_method_shows_its_own_overlays(opened):
    page = opened()
    before = page.locator(".card .overlay:visible").first.get_attribute("src")
    page.select_option("#method", "layer_cam")
    visible = page.locator(".card .overlay:visible")
    assert visible.count() == 6
    assert set(visible.evaluate_all("images => images.map(image => image.dataset.method)")) == {"layer_cam"}
    assert visible.first.get_attribute("src") != before
    assert page.locator("#chosen").inner_text() == "layer_cam at 3"
    page.locator(".card").first.press("Enter")
    assert page.locator("#large-overlay").get_attribute("src") == visible.first.get_attribute("src")


def test_method_chosen_in_the_large_view_is_chosen_everywhere(opened):
    page = opened()
    page.locator(".card").first.press("Enter")
    assert DOG in page.locator("#large-facts").evaluate("facts => facts.textContent")
    page.select_option("#large select", "eigen_cam")
    assert page.locator("#method").input_value() == "eigen_cam"
    assert page.locator("#large-facts .explains").inner_text() == "no particular class"
    assert page.locator("#large-overlay").get_attribute("src") == page.locator(
        ".card .overlay[data-method=eigen_cam]"
    ).first.get_attribute("src")


def test_large_picture_is_uncovered_by_dragging(opened):
    page = opened()
    page.locator(".card .enlarge").nth(1).click()
    box = page.locator("#large .stack").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"], box["y"])
    assert abs(float(page.locator("#large-cut").input_value()) - 25) <= 1
    assert page.locator("#large .stack").evaluate("stack => stack.style.getPropertyValue('--cut')") == "25%"


def test_keys_move_enlarge_and_close(opened):
    page = opened()
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.name") == "beta.png"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.name") == "zeta.png"
    page.keyboard.press("Enter")
    assert page.locator("#large").is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#large-name").inner_text() == "beta.png"
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    page.wait_for_function("document.activeElement.dataset.name === 'beta.png'")  # the browser's own turn comes first


def test_up_and_down_keys_go_by_rows(opened):
    page = opened(viewport={"width": 700, "height": 800})
    columns = page.locator(".cards").evaluate("e => getComputedStyle(e).gridTemplateColumns.split(' ').length")
    assert columns == 2
    names = shown(page)
    page.locator(".card").first.focus()
    for key, index in (("ArrowDown", 2), ("ArrowDown", 4), ("ArrowDown", 4), ("ArrowUp", 2)):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.name") == names[index]


CONTRAST = """() => {
  const light = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map(Number)
      .map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/rgba\\(0, 0, 0, 0\\)|transparent/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const kinds = "h1, h2, h3, p, dt, dd, th, td, a, label, span, b, button, caption, figcaption, select, output";
  const texts = [...document.querySelectorAll(kinds)];
  return Math.min(...texts.filter((e) => e.offsetParent).map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(opened, scheme):
    page = opened(color_scheme=scheme)
    assert page.evaluate(CONTRAST) >= 4.5
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert page.evaluate(CONTRAST) >= 4.5
    page.locator(".card").first.press("Enter")
    assert page.evaluate(CONTRAST) >= 4.5


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_overflows_the_page(opened, width):
    page = opened(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".card").first.press("Enter")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#large").evaluate("large => large.scrollWidth <= large.clientWidth")


LONG_NAMES = """() => document.querySelectorAll("#large option").forEach((option) =>
    option.textContent = "smooth_grad_cam_plus_plus, test-time augmentation")"""


@pytest.mark.parametrize("width", [320, 390])
def test_controls_of_the_large_view_share_a_line_on_a_phone(opened, width):
    page = opened(viewport={"width": width, "height": 800})
    page.evaluate(LONG_NAMES)
    page.locator(".card").first.press("Enter")
    boxes = [page.locator(f"#large {one}").bounding_box() for one in ("select", "#before", "#after", "#close")]
    assert len({round(box["y"] + box["height"] / 2) for box in boxes}) == 1


def test_paper_shows_pictures_and_notice_but_no_controls(opened):
    page = opened()
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    assert page.locator(".card .cut:visible").count() == 0
    assert page.locator("header .notice").is_visible()
    assert page.locator(".card .original:visible").count() == page.locator(".card .overlay:visible").count() == 6


def test_without_scripts_everything_is_there_side_by_side(opened):
    page = opened(java_script_enabled=False)
    assert page.locator(".card").count() == 6
    assert not page.locator("#filters").is_visible()
    assert page.locator(".card .overlay:visible").count() == 3 * 6
    assert "grad_cam at 3, layer_cam at 3, eigen_cam at 3, in this order" in page.locator("#gallery").inner_text()
    left, right = (page.locator(f".card .{name}:visible").first.bounding_box() for name in ("original", "overlay"))
    assert left["x"] + left["width"] <= right["x"]


def test_every_control_has_a_name_and_every_picture_an_alt_text(opened):
    page = opened()
    unnamed = page.evaluate("""() => [...document.querySelectorAll("input, select, button")].filter((e) =>
        !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim())).map((e) => e.outerHTML)""")
    assert unnamed == []
    assert page.locator(".card img:not([alt]), figure img:not([alt]), .card img[alt='']").count() == 0


def test_a_notebook_shows_the_page_in_a_frame(opened, report):
    page = opened()
    page.set_content(report._repr_html_())
    frame = page.frame_locator("iframe")
    frame.locator("#outcome").select_option("wrong")
    assert frame.locator("#count").inner_text() == "2 of 6 images"
    assert page.locator("h1").count() == 0
