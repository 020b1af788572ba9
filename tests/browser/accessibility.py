"""What axe-core has to say about an open page, in the look that it has: its theme, its width.

Most of a page looks like the rest of it, so it is asked once about what is alike.

- Contrast is judged on one text of each look. Texts look alike if they are alike in color, in being large or not, in
  every background behind them, and in whatever else is laid under or over them.
- Most elements have nothing that a rule could be about: no name, no role, no link. The words of a program are colored
  by thousands of them, a formula and a drawing consist of them. They are left out, but for those judged on contrast,
  while the rules run: a formula becomes a box of its size, a drawing keeps its names. (axe says of every text in a
  drawing that it cannot tell its contrast; tests/book/pictures compute it.)
- Of the rows of lists, tables and forms that stand in like places and are built alike, so that they differ in words
  and in where they lead, the first three and the shortest are asked: of an index of thousands of names a few.
"""

from contextlib import suppress

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import TimeoutError

MARK_ONE_TEXT_OF_EACH_LOOK = """() => {
    const clear = "rgba(0, 0, 0, 0)";
    const boxes = document.body.querySelectorAll("*:not(svg *, math *, pre *)");
    const laid = [...boxes].map((one) => [one, getComputedStyle(one)]).filter(
        ([one, style]) => style.position !== "static" && style.backgroundColor !== clear && one.checkVisibility()
    ).map(([one, style]) => [one, style.backgroundColor, one.getBoundingClientRect()]);
    // What an element and all around it lay behind a text. An opaque background hides those around it.
    const behind = new Map([[null, ["", ""]]]);
    const behindOf = (one) => {
        if (!behind.has(one)) {
            const {backgroundColor, backgroundImage, opacity, position} = getComputedStyle(one);
            const [grounds, faint] = behindOf(one.parentElement);
            const own = [backgroundColor, backgroundImage, position === "static" ? "" : position];
            const seen = own.filter((part) => part && part !== clear && part !== "none");
            const hides = backgroundColor.startsWith("rgb(");
            behind.set(one, [hides ? seen.join() : [...seen, grounds].join(), opacity < 1 ? faint + opacity : faint]);
        }
        return behind.get(one);
    };
    const ownLookOf = (holder) => {
        if (!holder.checkVisibility()) return null;
        const style = getComputedStyle(holder);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.5 && style.fontWeight >= 700);  // WCAG asks for less contrast then
        return [style.color, style.fill, large, !!holder.closest("svg"), behindOf(holder)];
    };
    // In a line of a program, words of one class are painted alike.
    const painted = new Map(), asked = new Set();
    const ownOf = (holder) => {
        const line = holder.parentElement;
        if (holder.localName !== "span" || holder.attributes.length !== 1 || !line.closest("pre")) {
            return ownLookOf(holder);
        }
        if (!painted.has(line)) painted.set(line, new Map());
        const classes = painted.get(line);
        if (!classes.has(holder.className)) classes.set(holder.className, ownLookOf(holder));
        return classes.get(holder.className);
    };
    const looks = new Map();
    const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (words.nextNode()) {
        if (!words.currentNode.data.trim()) continue;
        const inside = words.currentNode.parentElement, holder = inside.closest("math") ?? inside;
        if (asked.has(holder)) continue;
        asked.add(holder);
        const own = ownOf(holder);
        if (!own) continue;
        const key = [...own], box = holder.getBoundingClientRect();
        for (const [one, color, other] of laid) {
            const apart = box.right <= other.left || other.right <= box.left
                || box.bottom <= other.top || other.bottom <= box.top;
            if (!apart && !one.contains(holder)) key.push(color);
        }
        const look = key.join();
        if (!looks.has(look)) looks.set(look, holder);
    }
    document.querySelectorAll("[data-look-of-text]").forEach((one) => one.removeAttribute("data-look-of-text"));
    for (const one of looks.values()) one.setAttribute("data-look-of-text", "");
    return looks.size;
}"""

RUN = """async (only) => {
    const kept = [];  // what stands in for what, while the rules run
    const instead = (one, other) => { kept.push([one, other]); one.replaceWith(other); };
    for (const program of document.querySelectorAll("pre")) {
        const copy = program.cloneNode(true);
        for (const one of copy.querySelectorAll("span")) {
            if ([...one.attributes].every(({name}) => name === "class")) one.replaceWith(...one.childNodes);
        }
        copy.normalize();
        instead(program, copy);
    }
    // How an element is built: all but its words, and but for attributes that differ in every row by their nature.
    const own = new Set(["id", "href", "name", "for", "value", "title", "aria-labelledby", "aria-describedby"]);
    const builtAs = (one) => one.nodeType === Node.TEXT_NODE ? (one.data.trim() && "words")
        : one.nodeType !== Node.ELEMENT_NODE ? "" : `<${one.localName} ${[...one.attributes].map(
            ({name, value}) => own.has(name) ? `${name}=${value ? "some" : ""}` : `${name}=${value}`
        ).join(" ")}>${[...one.childNodes].map(builtAs).filter(Boolean).join()}</>`;
    const place = (one) => one ? `${place(one.parentElement)} ${one.localName}.${one.className}` : "";
    const alike = Map.groupBy(
        document.querySelectorAll("li, tr, fieldset"), (one) => place(one.parentElement) + builtAs(one)
    );
    for (const group of alike.values()) {
        const length = (one) => one.textContent.length;
        const shortest = group.reduce((least, one) => length(one) < length(least) ? one : least);
        for (const one of group.slice(3)) if (one !== shortest) instead(one, document.createComment(""));
    }
    const formulas = [...document.querySelectorAll("math")].map((one) => [one, one.getBoundingClientRect()]);
    for (const [one, {width, height}] of formulas) {
        const box = document.createElement("span");
        const display = one.getAttribute("display") === "block" ? "block" : "inline-block";
        box.style.cssText = `display: ${display}; width: ${width}px; height: ${height}px; overflow: clip`;
        box.textContent = one.textContent;
        if (one.hasAttribute("data-look-of-text")) box.setAttribute("data-look-of-text", "");
        instead(one, box);
    }
    const said = "title, desc, a, [role], [tabindex], [id], [href], [aria-label], [aria-labelledby], [aria-hidden]";
    for (const drawing of document.querySelectorAll("svg[role=img]")) {
        const copy = drawing.cloneNode(false);
        copy.append(...[...drawing.querySelectorAll(said)].map((one) => one.cloneNode(true)));
        instead(drawing, copy);
    }
    axe.configure({rules: [{id: "color-contrast", selector: "[data-look-of-text]"}]});
    // Without resultTypes, axe hands over megabytes about what is well; preload would fetch the styles once more.
    const options = {resultTypes: ["violations"], preload: false, rules: {"target-size": {enabled: true}}};
    if (only) options.runOnly = {type: "rule", values: only};
    const {violations, passes} = await axe.run(options);
    for (const [one, other] of kept.reverse()) other.replaceWith(one);
    return {
        passed: passes.map(({id}) => id),
        found: violations.flatMap(({id, nodes}) => nodes.map(
            ({html, failureSummary}) => `${id}: ${html.slice(0, 200)} ${failureSummary}`
        )),
    };
}"""

# What can change with the theme or the width: colors, sizes, and what scrolls.
OF_THE_LOOK = ["color-contrast", "link-in-text-block", "target-size", "scrollable-region-focusable"]


# What scrolls, and neither takes the keyboard's focus nor has something inside that does.
UNREACHABLE = """() => [...document.querySelectorAll("main *:not(svg *, math *, pre *)")].filter((one) => {
    if (one.scrollWidth <= one.clientWidth + 1 && one.scrollHeight <= one.clientHeight + 1) return false;
    const {overflowX, overflowY} = getComputedStyle(one), scrolls = /auto|scroll/;
    return (one.scrollWidth > one.clientWidth + 1 && scrolls.test(overflowX)
        || one.scrollHeight > one.clientHeight + 1 && scrolls.test(overflowY))
        && one.tabIndex < 0 && !one.querySelector("a[href], button, input, select, summary, [tabindex='0']");
}).map((one) => one.outerHTML.slice(0, 120))"""


def unreachable(page) -> list[str]:
    """Boxes that scroll, but not by keyboard. A while after a change of the width, the theme takes them up."""
    with suppress(TimeoutError):
        page.wait_for_function(f"({UNREACHABLE})().length === 0", timeout=1000, polling=150)
    return page.evaluate(UNREACHABLE)


def violations(page, scheme: str, only: list[str] | None = None) -> list[str]:
    """What axe finds in the theme `scheme`, by every rule or `only` some. What is folded away is opened first."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
    page.evaluate("for (const one of document.querySelectorAll('main details')) one.open = true")
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")  # else a button that leads to the top lies over a link
    unreachable(page)
    page.wait_for_function("document.getAnimations().every((one) => one.playState !== 'running')")
    assert page.evaluate(MARK_ONE_TEXT_OF_EACH_LOOK) > 3, "the page's texts were not found"
    if page.evaluate("typeof axe === 'undefined'"):
        page.evaluate(Axe().axe_script)
    result = page.evaluate(RUN, only)
    assert len(result["passed"]) >= (2 if only else 21) or result["found"], "axe ran few rules"
    return [f"{scheme}: {one}" for one in result["found"]]
