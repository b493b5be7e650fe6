"""The built site: every public name is in it, and every link inside it leads somewhere.

``--site FOLDER`` checks a site that was built, as ``make docs`` does; without it the pages are built here, all but the
gallery's code.
"""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.util.inventory import InventoryFile

import camlib

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(request, tmp_path_factory):
    """The folder of the built pages."""
    if request.config.getoption("site"):
        return Path(request.config.getoption("site"))
    folder = tmp_path_factory.mktemp("site")
    options = ("-W", "-n", "-q", "-b", "html", "-D", "plot_gallery=0", "-d", str(folder / "doctrees"))
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(folder / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.links += [values[name] for name in ("href", "src") if name in values]


def test_every_public_name_is_in_the_reference(site):
    found = {
        name
        for names in InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data.values()
        for name in names
    }
    public = {
        f"{module.__name__}.{name}"
        for module in (camlib, camlib.functional, camlib.methods)
        for name in dir(module)
        if not name.startswith("_") and not (module is camlib.methods and isinstance(getattr(module, name), ModuleType))
    }
    assert public - found == set()


def test_every_link_inside_the_site_leads_somewhere(site):
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 30
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors
            ):
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    assert broken == []


def test_the_pages_load_nothing_from_elsewhere(site):
    """They are read offline, too: links may leave the site, scripts, styles and pictures may not."""

    class Loads(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attrs):
            values = dict(attrs)
            source = values.get("src") or (values.get("href") if tag == "link" else None)
            if source and urlsplit(source).netloc:
                self.found.append(source)

    for path in site.rglob("*.html"):
        loads = Loads()
        loads.feed(path.read_text())
        assert loads.found == [], path
