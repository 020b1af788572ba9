"""One widget alone in Chromium: no kernel, no server, no network; by mouse, by keyboard, and without script."""

import pytest
from playwright.sync_api import Browser, Page, expect

from book import draw_matmul, explore


def draw(devices, split):
    return draw_matmul((3, 4), (4, 6), devices=devices, split=split), f"{devices} devices"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page with the same widget twice, and the widget's first picture beside them."""
    widget = explore(draw, devices=[1, 2, 8], split=["column", "row"], question="Who holds what?")._repr_html_()
    still = draw(1, "column")[0]._repr_html_()
    path = tmp_path_factory.mktemp("page") / "page.html"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    path.write_text(f"{head}<title>t</title>{still}{widget}{widget}", encoding="utf-8")
    return path.as_uri()


def opened(browser: Browser, file: str, **context) -> tuple[Page, list[str]]:
    page = browser.new_context(**context).new_page()
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("request", lambda request: seen.append(request.url) if request.url.startswith("http") else None)
    page.goto(file)
    return page, seen


def test_mouse_and_keyboard(browser, file):
    page, seen = opened(browser, file, viewport={"width": 390, "height": 800})
    first, second = page.locator(".omd-explore").nth(0), page.locator(".omd-explore").nth(1)
    frame = first.locator(".omd-frame")
    expect(frame).to_have_attribute("data-point", "devices=1;split=column")
    expect(frame.locator("svg")).to_be_visible()
    slider = first.get_by_role("slider", name="devices")
    first.get_by_label("row", exact=True).click()
    expect(frame).to_have_attribute("data-point", "devices=1;split=row")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    expect(frame).to_have_attribute("data-point", "devices=8;split=row")
    expect(slider).to_have_attribute("aria-valuetext", "8")
    expect(first.locator("output")).to_have_text("8")
    expect(first.locator(".omd-status")).to_have_text(f"{draw(8, 'row')[0].desc} 8 devices")
    expect(frame.locator(".omd-line")).to_have_text("8 devices")
    assert frame.locator("svg title").text_content() == draw(8, "row")[0].title
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    expect(frame).to_have_attribute("data-point", "devices=8;split=column")
    # Focus can be seen, targets can be hit, nothing is wider than a phone, and its twin stayed where it was.
    outline = "e => getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth"
    assert first.get_by_label("column", exact=True).evaluate(outline) == "solid3px"
    for control in first.locator("input").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 24
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(second.locator(".omd-frame")).to_have_attribute("data-point", "devices=1;split=column")
    second.get_by_label("row", exact=True).click()
    expect(second.locator(".omd-frame")).to_have_attribute("data-point", "devices=1;split=row")
    expect(first.get_by_label("column", exact=True)).to_be_checked()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("Object.keys(window).filter(k => k.includes('omd'))") == []
    assert seen == []


def test_keys_move_along_the_numbers_and_start_at_the_first_value(browser, tmp_path):
    path = tmp_path / "page.html"
    widget = explore(lambda k: f"k is {k}", k=[2048, 1048576, 0.0005], question="Which?")._repr_html_()
    path.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title>{widget}', encoding="utf-8")
    page, seen = opened(browser, path.as_uri())
    slider = page.get_by_role("slider", name="k")
    slider.focus()
    small, first, large = (0.0005, "0.0005"), (2048, "2,048"), (1048576, "1,048,576")
    for key, (value, written) in (
        ("Shift", first), ("ArrowRight", large), ("Home", small), ("ArrowRight", first), ("End", large),
        ("ArrowLeft", first),
    ):  # fmt: skip
        page.keyboard.press(key)
        expect(page.locator(".omd-frame")).to_have_text(f"k is {value}")
        expect(page.locator(".omd-status")).to_have_text(f"k is {value}")
        expect(page.locator("output")).to_have_text(written)
        expect(slider).to_have_attribute("aria-valuetext", written)
    assert seen == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colors_follow_the_page(browser, file, theme):
    page, _ = opened(browser, file)
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    stroke = page.locator(".omd-frame [data-look=replicated]").first.evaluate("e => getComputedStyle(e).stroke")
    assert stroke == {"light": "rgb(0, 101, 158)", "dark": "rgb(91, 178, 232)"}[theme]


def test_without_javascript_the_first_picture_and_no_dead_control(browser, file):
    page, seen = opened(browser, file, java_script_enabled=False)
    picture = page.locator(".omd-explore .omd-frame img").first
    expect(picture).to_be_visible()
    assert picture.bounding_box()["height"] > 200  # the image was really decoded
    assert picture.get_attribute("alt") == draw(1, "column")[0].desc
    assert not any(control.is_visible() for control in page.locator("input").all())
    expect(page.locator(".omd-note").first).to_be_visible()
    assert "devices=1, split=column" in page.locator(".omd-note").first.text_content()
    assert seen == []
