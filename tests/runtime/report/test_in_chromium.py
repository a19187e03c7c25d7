"""The page in a real browser, offline: filters, viewer, copying, contrast, width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.report.page import render
from tests.support.chromium import Opened
from tests.support.report_content import report_content

pytestmark = pytest.mark.usefixtures("browser")

# The least contrast of a page's texts to what is behind them, by WCAG 2's formula; texts in drawings are left out.
CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color[3] > 250) return color;
    }
    return [255, 255, 255];
  };
  let least = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest(".drawing, script, style, template, dialog")) continue;
    const text = [...element.childNodes].filter((n) => n.nodeType === 3 && n.textContent.trim()).map(String);
    if (!text.length || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(rgb(element.closest("svg") ? style.fill : style.color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, `${element.tagName} ${element.className} ${element.textContent}`];
  }
  return least;
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    path.write_text(render(report_content(folder, images=40)), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    found = Opened(browser, file, viewport={"width": 1280, "height": 900}, permissions=["clipboard-read"])
    yield found
    assert found.complaints == []
    found.context.close()


def test_filters_choose_images_and_reset_shows_all(opened: Opened) -> None:
    page = opened.page
    assert (opened.shown(), opened.fitting()) == (24, 40)
    page.get_by_role("button", name="Show more images").click()
    assert opened.shown() == 40
    page.select_option("#f-kind", "background")
    few = opened.fitting()
    assert 0 < few < 40
    chips = page.locator(".shot:visible .chip.k-background")
    assert chips.count() == opened.shown()
    page.locator("#f-score").fill("1")
    assert opened.fitting() == 0
    page.locator("#f-reset").click()
    page.wait_for_function("document.querySelector('#shown').textContent.includes('of 40 ')")
    page.select_option("#f-class", "2")
    assert page.locator(".shot:visible g.found:not(.off) > rect:not(.low):not(.out):not([data-c='2'])").count() == 0
    page.locator("#f-reset").click()
    page.select_option("#f-model", "1")
    assert page.locator(".shot:visible g.found[data-m='0']:not(.off)").count() == 0


def test_the_viewer_works_by_keyboard(opened: Opened) -> None:
    page = opened.page
    page.locator(".open").first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    first = page.locator("#viewer-name").inner_text()
    assert viewer.locator("tbody tr").count() > 0
    page.keyboard.press("ArrowRight")
    second = page.locator("#viewer-name").inner_text()
    assert second != first
    page.select_option("#viewer-beside", "1")
    assert viewer.locator(".panel").count() == 2
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    # The dialog gives the focus back to what opened it, and then the page to the image that was seen last.
    page.wait_for_function("name => document.activeElement.closest('.shot')?.dataset.name === name", arg=second)


def test_the_threshold_is_copied(opened: Opened) -> None:
    opened.page.locator("[data-copy]").first.click()
    opened.page.wait_for_function("document.querySelector('#copied').textContent.startsWith('Copied')")
    assert opened.page.evaluate("navigator.clipboard.readText()") == "--score 0.4244"


def test_a_heading_sorts_its_table(opened: Opened) -> None:
    opened.page.locator("#class-table th button").nth(1).click()
    numbers = opened.page.locator("#class-table tbody tr td:nth-child(2)").all_inner_texts()
    values = [int(text.replace(",", "")) for text in numbers]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_texts_have_contrast_and_the_page_is_no_wider_than_the_window(
    browser: Any, file: Path, scheme: str, width: int
) -> None:
    found = Opened(browser, file, viewport={"width": width, "height": 800}, color_scheme=scheme)
    ratio, where = found.page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    assert found.complaints == []
    found.context.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_names_of_any_length_and_direction_fit(browser: Any, tmp_path: Path, width: int) -> None:
    names = ("w" * 300, "שלום עולם, כלב", "two words " * 30, "חתול (3)")
    path = tmp_path / "names.html"
    path.write_text(render(report_content(tmp_path, names=names, classes=5)), encoding="utf-8")
    found = Opened(browser, path, viewport={"width": width, "height": 800})
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    # A name from right to left turns nothing around that stands beside it.
    row = found.page.locator("#class-table tbody tr", has_text=names[1])
    name, count = (row.locator("th, td").nth(place).bounding_box() for place in (0, 1))
    assert name["x"] + name["width"] <= count["x"] + 1
    assert row.locator("bdi").first.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"
    sentences = found.page.locator(".findings bdi")
    assert {sentences.nth(n).evaluate("n => getComputedStyle(n).direction") for n in range(sentences.count())} == {
        "ltr"
    }
    assert found.complaints == []
    found.page.locator(".open").first.click()
    assert found.page.evaluate("document.querySelector('#viewer').scrollWidth") <= width
    found.context.close()


def test_a_printed_page_is_no_wider_than_the_paper(browser: Any, file: Path) -> None:
    found = Opened(browser, file, viewport={"width": 794, "height": 1123})  # A4 at 96 dpi
    found.page.emulate_media(media="print")
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 794
    assert not found.page.locator(".filters").is_visible()
    ratio, where = found.page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    found.context.close()


def test_the_theme_changes_and_the_page_reads_without_script(browser: Any, file: Path) -> None:
    found = Opened(browser, file)
    before = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
    found.page.locator("#theme").click()
    found.page.locator("#theme").click()
    assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    found.context.close()
    plain = Opened(browser, file, java_script_enabled=False)
    assert plain.page.locator(".shot:visible").count() == 40
    assert not plain.page.locator(".filters").is_visible()
    assert plain.complaints == []
    plain.context.close()
