"""What axe-core has to say about an open page. Its rules run once; those that the look can change run in each look.

Contrast is judged by axe in the light and in the dark. Most of a page looks like the rest of it: thousands of words in
few colors. So of all texts that are alike in color, size, weight and in every background behind them, axe looks at one.
"""

from axe_playwright_python.sync_playwright import Axe

CHANGING_WITH_WIDTH = ["target-size", "scrollable-region-focusable", "meta-viewport", "css-orientation-lock"]

ONE_OF_EACH_LOOK = """() => {
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
        const look = key.filter((part) => part !== "rgba(0, 0, 0, 0)" && part !== "none" && part !== "1").join();
        if (!looks.has(look)) looks.set(look, holder);
    }
    document.querySelectorAll("[data-look-of-text]").forEach((one) => one.removeAttribute("data-look-of-text"));
    for (const one of looks.values()) one.setAttribute("data-look-of-text", "");
    return looks.size;
}"""


def settle(page) -> None:
    page.wait_for_function("document.getAnimations().every((one) => one.playState !== 'running')")


def run(page, context=None, **options) -> list[str]:
    # Without resultTypes, axe hands over megabytes about what is well; preload would fetch the styles once more.
    found = Axe().run(page, context=context, options={"resultTypes": ["violations"], "preload": False, **options})
    assert found.response["passes"] or found.response["violations"], "axe ran no rule"
    return [
        f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]


def unfold(page) -> None:
    """What is folded away must be accessible when it is opened."""
    page.evaluate("for (const one of document.querySelectorAll('main details')) one.open = true")


def rules(page) -> list[str]:
    """Every rule but that of contrast, on everything."""
    unfold(page)
    settle(page)
    return run(page, rules={"color-contrast": {"enabled": False}})


def contrast(page, scheme: str) -> list[str]:
    """The rule of contrast in the theme `scheme`, on one text of each look."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
    unfold(page)
    settle(page)
    assert page.evaluate(ONE_OF_EACH_LOOK) > 3, "the page's texts were not found"
    context = {"include": [["[data-look-of-text]"]]}
    return [f"{scheme}: {one}" for one in run(page, context=context, runOnly=["color-contrast"])]


def narrow(page) -> list[str]:
    """On a phone, the rules that depend on the width."""
    unfold(page)
    settle(page)
    return run(page, runOnly=CHANGING_WITH_WIDTH)
