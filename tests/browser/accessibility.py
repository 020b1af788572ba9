"""What axe-core has to say about an open page, in the look that it has: its theme, its width.

Most of a page looks like the rest of it: thousands of words in few colors. So axe judges the contrast of one text of
each look. Texts look alike if they are alike in color, size, weight, in every background behind them, and in whatever
else is laid under or over them.
"""

from axe_playwright_python.sync_playwright import Axe

MARK_ONE_TEXT_OF_EACH_LOOK = """() => {
    const clear = "rgba(0, 0, 0, 0)";
    const laid = [...document.body.querySelectorAll("*")].map((one) => [one, getComputedStyle(one)]).filter(
        ([one, style]) => style.position !== "static" && style.backgroundColor !== clear && one.checkVisibility()
    ).map(([one, style]) => [one, style.backgroundColor, one.getBoundingClientRect()]);
    const looks = new Map();
    const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (words.nextNode()) {
        const holder = words.currentNode.parentElement;
        if (!words.currentNode.data.trim() || !holder.checkVisibility()) continue;
        const style = getComputedStyle(holder);
        const key = [style.color, style.fill, style.fontSize, style.fontWeight, !!holder.closest("svg")];
        for (let one = holder; one; one = one.parentElement) {
            const {backgroundColor, backgroundImage, opacity, position} = getComputedStyle(one);
            key.push(backgroundColor, backgroundImage, opacity, position === "static" ? "" : position);
        }
        const box = holder.getBoundingClientRect();
        for (const [one, color, other] of laid) {
            const apart = box.right <= other.left || other.right <= box.left
                || box.bottom <= other.top || other.bottom <= box.top;
            if (!apart && !one.contains(holder)) key.push(color);
        }
        const look = key.filter((part) => part !== clear && part !== "none" && part !== "1").join();
        if (!looks.has(look)) looks.set(look, holder);
    }
    document.querySelectorAll("[data-look-of-text]").forEach((one) => one.removeAttribute("data-look-of-text"));
    for (const one of looks.values()) one.setAttribute("data-look-of-text", "");
    return looks.size;
}"""

RUN = """async () => {
    axe.configure({rules: [{id: "color-contrast", selector: "[data-look-of-text]"}]});
    // Without resultTypes, axe hands over megabytes about what is well; preload would fetch the styles once more.
    const rules = {"target-size": {enabled: true}};
    const {violations, passes} = await axe.run({resultTypes: ["violations"], preload: false, rules});
    return {
        passed: passes.map(({id}) => id),
        found: violations.flatMap(({id, nodes}) => nodes.map(
            ({html, failureSummary}) => `${id}: ${html.slice(0, 200)} ${failureSummary}`
        )),
    };
}"""


def violations(page, scheme: str) -> list[str]:
    """What every rule of axe finds in the theme `scheme`. What is folded away must be accessible when it is opened."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
    page.evaluate("for (const one of document.querySelectorAll('main details')) one.open = true")
    page.wait_for_function("document.getAnimations().every((one) => one.playState !== 'running')")
    assert page.evaluate(MARK_ONE_TEXT_OF_EACH_LOOK) > 3, "the page's texts were not found"
    if page.evaluate("typeof axe === 'undefined'"):
        page.evaluate(Axe().axe_script)
    result = page.evaluate(RUN)
    assert len(result["passed"]) > 20 or result["found"], "axe ran few rules"
    return [f"{scheme}: {one}" for one in result["found"]]
