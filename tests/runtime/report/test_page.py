"""The page without a browser: valid HTML, foreign names stay text, sizes, and sections with nothing to show."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from runtime.report import content as c
from runtime.report.page import render
from tests.support.report_content import report_content

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

VOID = {"meta", "link", "input", "br", "img", "hr"}
NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "עברית \u202eright to left",
    "🦉 'quotes' & \"more\"",
    "x" * 300,
    "</style></script><!-- \ud800 \x00",
    "{{ 7 * 7 }} ${x}",
)


class Page(HTMLParser):
    """What a test asks of a page; raises AssertionError for tags that don't balance."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(report_content(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    return render(report_content(folder, classes=8, images=8, models=3, names=NASTY))


def test_tags_balance_ids_are_unique_and_references_lead_somewhere(html: str) -> None:
    page = Page(html)
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", html))
    for _, found in page.tags:
        used |= set((found.get("aria-labelledby") or "").split()) | ({found["for"]} if "for" in found else set())
        if (found.get("href") or "").startswith("#"):
            used.add(str(found["href"])[1:])
    assert used - set(ids) == set()


def test_the_parser_of_this_test_finds_what_is_wrong() -> None:
    for wrong in ("<p><b></p></b>", "</p>", "<p>", '<p id="a" id="b"></p>'):
        with pytest.raises(AssertionError):
            Page(wrong)


def test_every_field_has_a_label_every_drawing_a_name_and_every_heading_its_level(html: str) -> None:
    page = Page(html)
    labelled = {found["for"] for found in page.of("label")}
    assert {found.get("id") for tag in ("select", "input") for found in page.of(tag)} <= labelled
    for drawing in page.of("svg"):
        named = "aria-label" in drawing or "aria-labelledby" in drawing
        assert named or drawing.get("aria-hidden") == "true", drawing
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(found.get("scope") in ("col", "row") for found in page.of("th"))


def test_the_page_loads_nothing(html: str) -> None:
    page = Page(html)
    addresses = [str(found[name]) for _, found in page.tags for name in ("src", "href") if name in found]
    assert [address for address in addresses if not address.startswith(("#", "data:"))] == []
    policy = next(found["content"] for found in page.of("meta") if "http-equiv" in found)
    assert "default-src 'none'" in str(policy)
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_foreign_names_stay_text(nasty: str) -> None:
    page = Page(nasty)
    assert len(page.of("script")) == 1
    assert page.of("img") == []
    assert "".join(page.texts).count("<script>alert(1)</script>") > 3
    assert "{{ 7 * 7 }}" in nasty
    assert "\\u202e" in nasty  # a mark of the writing direction is shown, and does nothing
    assert not set("\u202e\x00") & set(nasty)
    assert nasty.encode("utf-8")  # no lone surrogate


def test_figures_are_those_of_the_content(html: str) -> None:
    text = " ".join(" ".join(Page(html).texts).split())
    assert "48.0 45.0–51.0" in text
    assert "int8 is worse than fp32: −1.2 AP." in text
    assert "--score 0.424" in text
    assert "at IoU 0.5, missed objects cost most: +9.1 AP50" in text, "by AP another kind may cost more"
    assert "6 of 6 images" in text


def test_what_costs_most_over_all_ious_is_named_beside_what_does_at_half() -> None:
    whole = report_content(None, models=1)
    errors = dict(whole.models[0].errors)
    errors["localisation"] = dataclasses.replace(errors["localisation"], worth_ap50=0.01, worth_ap=0.3)
    changed = dataclasses.replace(whole, models=(dataclasses.replace(whole.models[0], errors=errors),))
    text, before = (" ".join(" ".join(Page(render(content)).texts).split()) for content in (changed, whole))
    assert "missed objects cost most: +9.1 AP50" in text
    assert "Over all IoUs, inexact boxes cost most: +1.0 AP50 and +30.0 AP." in text
    assert "Over all IoUs" not in before
    assert "Next: inexact boxes" not in text


def test_one_thing_is_named_in_the_singular() -> None:
    whole = report_content(None, images=1, models=1)
    model = whole.models[0]
    errors = {kind: dataclasses.replace(one, count=1) for kind, one in model.errors.items()}
    metrics = {name: dataclasses.replace(one, low=None, high=None) for name, one in model.metrics.items()}
    one = dataclasses.replace(
        whole,
        models=(dataclasses.replace(model, errors=errors, metrics=metrics),),
        data=dataclasses.replace(whole.data, objects=1),
    )
    text = " ".join(" ".join(Page(render(one)).texts).split())
    for said in (
        "1 image · 1 object ·",
        "Only 1 image was scored.",
        "There is 1 of this kind, at any score.",
        "1 of 1 image,",
    ):
        assert said in text


def test_sections_with_nothing_to_show_say_why(tmp_path: Path) -> None:
    whole = report_content(None, models=1)
    model = dataclasses.replace(
        whole.models[0],
        curves=None,
        f1=None,
        f1_per_class={},
        reliability=None,
        confusion=None,
        errors={},
        speed=None,
        manifest=None,
    )
    bare = dataclasses.replace(whole, models=(model,), images=(), runs=(), resamples=0, command="")
    page = Page(render(bare))
    ids = {found.get("id") for found in page.of("section")}
    assert {"summary", "metrics", "classes", "data", "conditions", "missing"} <= ids
    assert not ids & {"errors", "images", "changes", "curves", "threshold", "calibration", "confusion", "speed", "run"}
    text = " ".join(" ".join(page.texts).split())
    assert "What changed: there is one model." in text
    assert "Speed by stage: no model was run." in text


def test_a_difference_without_an_interval_is_not_said_to_be_clear() -> None:
    whole = report_content(None, models=2)
    second = dataclasses.replace(whole.models[1], difference={"AP": c.Interval(0.2), "APs": c.Interval(-0.3)})
    html = render(dataclasses.replace(whole, models=(whole.models[0], second)))
    text = " ".join(" ".join(Page(html).texts).split())
    assert "+20.0 no interval" in text
    assert "−30.0 no interval" in text
    assert 'class="clear' not in html
    assert "leaves out 0" not in text


def test_nothing_measured_gives_dashes_and_says_so() -> None:
    whole = report_content(None, models=1)
    nothing = c.Interval(-1)
    model = dataclasses.replace(
        whole.models[0],
        metrics=dict.fromkeys(whole.models[0].metrics, nothing),
        per_class=dict.fromkeys(whole.models[0].per_class, nothing),
    )
    text = " ".join(Page(render(dataclasses.replace(whole, models=(model,)))).texts)
    assert "There was nothing to measure" in text
    assert "-100.0" not in text


def test_eighty_classes_and_five_thousand_images_stay_small(tmp_path: Path) -> None:
    html = render(report_content(tmp_path, classes=80, images=5000, models=2))
    assert len(html.encode()) < 5_000_000
    text = " ".join(" ".join(Page(html).texts).split())
    assert "160 of 5,000 images" in text
