"""A headless Chromium for the tests of pages; without it they are skipped."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZES = {"wide": 1200, "phone": 360}


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    """Chromium: the system's, or the one that `playwright install chromium` has fetched."""
    api = pytest.importorskip("playwright.sync_api", reason='needs a browser: pip install -e ".[browser]"')
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        try:
            # CI runs as root, where Chromium has no sandbox.
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium: apt-get install chromium ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@contextmanager
def opened(browser, path: Path, size: str = "wide", scheme: str = "light", script: bool = True) -> Iterator:
    """The page at `path`; fails for anything on its console and for any request beyond the file itself."""
    context = browser.new_context(
        viewport={"width": SIZES[size], "height": 900}, color_scheme=scheme, java_script_enabled=script
    )
    page, told = context.new_page(), []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    address = path.resolve().as_uri()
    page.on(
        "request",
        lambda request: (
            told.append(f"request: {request.url[:200]}")
            if request.url != address and not request.url.startswith("data:")
            else None
        ),
    )
    page.goto(address)
    yield page
    context.close()
    assert not told


def faults(page) -> list[str]:
    """What axe-core finds amiss: contrast, labels, roles, alternative texts."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    found = axe.Axe().run(page).response["violations"]
    return [f"{fault['id']}: {node['html'][:200]}" for fault in found for node in fault["nodes"]]


def overflow(page) -> int:
    """Pixels by which the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def broken_pictures(page) -> int:
    """Pictures that the browser could not decode."""
    return page.evaluate("[...document.images].filter(i => !i.naturalWidth).length")


def assert_sound(browser, path: Path) -> None:
    """No error, no request, no overflow, no fault of access: wide and narrow, light and dark."""
    for size in SIZES:
        for scheme in ("light", "dark"):
            with opened(browser, path, size, scheme) as page:
                for details in page.locator("details").all():
                    details.evaluate("element => { element.open = true; }")
                assert overflow(page) <= 0, (size, scheme)
                assert broken_pictures(page) == 0
                if (size == "wide") == (scheme == "light"):  # axe-core takes seconds
                    assert not (found := faults(page)), (size, scheme, found)
