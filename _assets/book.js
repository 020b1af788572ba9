// A box whose content is wider than itself scrolls, so it must be reachable by keyboard, and must say what it is.
// Boxes that fit stay out of the tab order.
(() => {
  const names = { "math-display": "Formula, scrolls sideways", "book-figure-box": "Figure, scrolls sideways" };
  const update = () => {
    for (const [name, label] of Object.entries(names)) {
      for (const box of document.getElementsByClassName(name)) {
        const scrolls = box.scrollWidth > box.clientWidth + 1;
        for (const [attribute, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", label]]) {
          if (scrolls) box.setAttribute(attribute, value);
          else box.removeAttribute(attribute);
        }
      }
    }
  };
  window.addEventListener("load", update);
  window.addEventListener("resize", update);
})();

// Opened from the disk, a page may not read its neighbors: the search shows titles only, instead of failing.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
