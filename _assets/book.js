// A box whose content is wider than itself scrolls, so it must be reachable by keyboard, and must say what it is.
// Boxes that fit stay out of the tab order.
(() => {
  const names = {
    "math-display": "Formula, scrolls sideways",
    "book-figure-box": "Figure, scrolls sideways",
    "omd-frame": "Picture, scrolls sideways",
    "text_html": "Output, scrolls sideways",
  };
  const update = (part) => {
    // Drawn with letters of 13 px: shrunk to a phone they would have 8, so a picture stops at 11 and its box scrolls.
    for (const picture of part.querySelectorAll("svg.omd-picture")) {
      picture.style.minWidth = `${0.85 * picture.viewBox.baseVal.width}px`;
    }
    // All boxes are measured before one is changed: after a change, the next measure would lay the page out again.
    const boxes = Object.entries(names).flatMap(([name, label]) =>
      [...part.getElementsByClassName(name)].map((box) => [box, label, box.scrollWidth > box.clientWidth + 1]));
    for (const [box, label, scrolls] of boxes) {
      for (const [attribute, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", label]]) {
        if (scrolls) box.setAttribute(attribute, value);
        else box.removeAttribute(attribute);
      }
    }
  };
  window.addEventListener("load", () => update(document));
  window.addEventListener("resize", () => update(document));
  // A widget shows another picture.
  document.addEventListener("input", ({target}) => update(target.closest(".omd-explore") ?? document));
})();

// A link to a folded box opens it, and on paper all are open.
(() => {
  const unfold = () => {
    const box = document.getElementById(location.hash.slice(1));
    if (box instanceof HTMLDetailsElement) box.open = true;
  };
  window.addEventListener("load", unfold);
  window.addEventListener("hashchange", unfold);
  window.addEventListener("beforeprint", () => {
    for (const box of document.querySelectorAll("details.folklore")) box.open = true;
  });
})();

// Opened from the disk, a page may not read its neighbors: the search shows titles only, instead of failing.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
