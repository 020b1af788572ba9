"""Menu, search, previous and next, light and dark: what a reader uses to find the way."""

import re
from itertools import pairwise

import pytest
import yaml
from browser.book import HTML, KINDS, PHONE, pages

ROOT = HTML.parents[1]


def order() -> list[str]:
    """The pages in reading order, from _toc.yml."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [f"{name}.html" for name in (toc["root"], *chapters)]


def test_next_and_previous_walk_through_the_whole_book(visit, site):
    """The links of every page, read; two of them followed, between the two lightest neighbors."""
    next_of, before = {}, {}
    for path in order():
        text = (HTML / path).read_text("utf-8")
        for found, side in (next_of, "right-next"), (before, "left-prev"):
            for href in re.findall(rf'class="{side}"\s+href="([^"]*)"', text):
                found[path] = str((HTML / path).parent.joinpath(href).resolve().relative_to(HTML))
    assert next_of == dict(pairwise(order()))
    assert before == dict(pairwise(reversed(order())))
    one, other = min(pairwise(order()), key=lambda pair: sum((HTML / path).stat().st_size for path in pair))
    opened = visit(one)
    page = opened.page
    page.locator("a.right-next").click()
    page.wait_for_url(site + other)
    page.locator("a.left-prev").click()
    page.wait_for_url(site + one)
    opened.clean()


LIGHT = "bibliography.html"  # opens in a moment; its frame is that of all pages


def frame(path: str) -> tuple:
    """What makes the frame of a page work: its scripts and styles, its buttons and its menus."""
    text = (HTML / path).read_text("utf-8")
    # Without what follows a question mark: it differs between a page built anew and one from an earlier build.
    files = re.findall(r'<(?:script|link)[^>]* (?:src|href)="(?:\.\./)*([^"]*\.(?:js|css)\b)[^"]*"', text)
    parts = (
        "primary-toggle",
        'id="pst-primary-sidebar"',
        "bd-docs-nav",
        "theme-switch-button",
        "search-button__button",
    )
    return (*files, *(text.split("<article")[0].count(part) for part in parts))


def own_scripts(path: str) -> set[str]:
    """The programs that stand in the page itself, but for the line that says its name."""
    text = (HTML / path).read_text("utf-8")
    programs = re.findall(r"<script(?![^>]*(?: src=|application/json))[^>]*>(.*?)</script>", text, re.S)
    return {program for program in programs if not program.startswith("DOCUMENTATION_OPTIONS.pagename")}


def test_every_page_has_the_frame_of_the_pages_that_are_tried():
    assert len(frame(KINDS[0])) > 20
    assert {frame(path) for path in pages()} == {frame(path) for path in KINDS}
    assert frame(LIGHT) == frame(KINDS[0])


def test_every_page_has_the_scripts_of_the_pages_that_are_tried():
    tried = set().union(*map(own_scripts, KINDS))
    assert len(tried) > 5
    assert {path: new for path in pages() if (new := own_scripts(path) - tried)} == {}


@pytest.mark.parametrize("path", KINDS)
def test_the_menu_opens_on_a_phone(phone, path):
    opened = phone(path)
    page = opened.page
    link = page.locator("nav.bd-docs-nav a").last
    link.wait_for(state="hidden")
    buttons = [one for one in page.locator(".primary-toggle").all() if one.is_visible()]
    assert len(buttons) == 1, "a phone needs exactly one menu button"
    buttons[0].click()
    link.wait_for(state="visible")
    page.keyboard.press("Escape")
    link.wait_for(state="hidden")
    buttons[0].focus()
    page.keyboard.press("Enter")
    link.wait_for(state="visible")
    link.click(trial=True)  # nothing lies over it
    page.keyboard.press("Escape")
    link.wait_for(state="hidden")
    opened.clean()


def test_the_menu_of_a_phone_leads_to_a_page(visit):
    opened = visit(LIGHT, viewport=PHONE)
    page = opened.page
    page.locator(".primary-toggle:visible").click()
    link = page.locator("nav.bd-docs-nav a").last
    target = link.get_attribute("href")
    link.click()
    page.wait_for_url(f"**/{target.lstrip('./')}")
    opened.clean()


def test_the_menu_folds_on_a_desk(visit):
    page = visit(LIGHT).page
    sidebar = page.locator("#pst-primary-sidebar")
    assert sidebar.is_visible()
    page.locator(".primary-toggle:visible").click()
    page.wait_for_function(
        "document.querySelector('#pst-primary-sidebar').getBoundingClientRect().right <= 0 "
        "|| !document.querySelector('#pst-primary-sidebar').checkVisibility()"
    )


@pytest.mark.parametrize("base", ["http", "file"])
def test_search_finds_a_word(visit, site, base):
    opened = visit(LIGHT, base=site if base == "http" else HTML.as_uri() + "/")
    page = opened.page
    assert page.locator("input[type=search]:visible").count() == 0
    page.locator(".search-button__button:visible").first.click()
    page.locator("input[type=search]:visible").fill("SwiGLU")  # on few pages: of each result, the text is fetched
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("search.html"))
    result = page.locator("#search-results li a").first
    result.wait_for()
    # Results come one by one, and the glossary need not be among the first.
    page.locator("#search-results li a", has_text=re.compile("glossary", re.I)).first.wait_for()
    page.wait_for_load_state("networkidle")
    result.click()
    page.wait_for_load_state()
    assert "search.html" not in page.url
    opened.clean()


def test_search_says_when_there_is_nothing(visit):
    page = visit("search.html?q=zzqqxx").page
    page.get_by_text(re.compile("did not match any documents")).wait_for()


def test_the_color_button_changes_and_remembers(visit):
    opened = visit(LIGHT)
    page = opened.page
    seen = set()
    for _ in range(3):
        page.locator(".theme-switch-button:visible").first.click()
        seen.add(page.evaluate("document.documentElement.dataset.mode"))
    assert seen == {"light", "dark", "auto"}
    while page.evaluate("document.documentElement.dataset.mode") != "dark":
        page.locator(".theme-switch-button:visible").first.click()
    page.goto(page.url.replace("bibliography", "glossary"))
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    opened.clean()


def test_the_skip_link_comes_first(visit):
    page = visit(LIGHT).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
