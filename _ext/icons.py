"""Icon fonts with only the icons that the book uses: the theme brings two thousand, at 270 kB for every page.

After the build, each font is cut down to the characters that the pages, scripts and styles name. The theme offers every
font twice; the compressed form would need one more package to write, so the plain one stays, a few kB small.
"""

import re
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

NAMED = re.compile(r'((?:\.fa-[a-z0-9-]+::?before,?)+)\{content:"\\([0-9a-f]+)"\}')
CHARACTER = re.compile(r"\\([ef][0-9a-f]{2,3})\b")
COMPRESSED = re.compile(r'url\([^)]*?fa-[a-z]+-\d+\.woff2\) format\("woff2"\),')


def characters_used(static: Path, texts: list[str]) -> set[int]:
    """The characters of the icons named by class in `texts`, and those that the styles name themselves."""
    styles = "\n".join(path.read_text("utf-8") for path in static.rglob("*.css"))
    named = {
        name: int(code, 16)
        for selectors, code in NAMED.findall(styles)
        for name in re.findall(r"\.fa-([a-z0-9-]+)", selectors)
    }
    words = {word for text in texts for word in re.findall(r"\bfa-([a-z0-9-]+)", text)}
    rest = NAMED.sub("", styles)
    others = {int(code, 16) for code in CHARACTER.findall(rest)} | {ord(c) for c in rest if "\ue000" <= c <= "\uf8ff"}
    return {named[word] for word in words if word in named} | others


def shrink_fonts(app, exception) -> None:
    static = Path(app.outdir) / "_static"
    fonts = sorted(static.glob("vendor/fontawesome/webfonts/*.ttf"))
    if exception or not fonts:
        return
    pages = [*Path(app.outdir).rglob("*.html"), *static.rglob("*.js")]
    used = characters_used(static, [page.read_text("utf-8") for page in pages])
    for path in fonts:
        font = TTFont(path)
        small = subset.Subsetter(subset.Options(layout_features=[], name_IDs=[], hinting=False, notdef_outline=True))
        small.populate(unicodes=used)
        small.subset(font)
        font.save(path)
        path.with_suffix(".woff2").unlink(missing_ok=True)
    for path in static.rglob("*.css"):
        text = path.read_text("utf-8")
        if COMPRESSED.search(text):
            path.write_text(COMPRESSED.sub("", text), "utf-8")
    for path in Path(app.outdir).rglob("*.html"):  # hints to load what is not there any more
        text = path.read_text("utf-8")
        lean = re.sub(r"<link[^>]*\bfa-[a-z]+-\d+\.woff2[^>]*>\s*", "", text)
        if lean != text:
            path.write_text(lean, "utf-8")


def setup(app):
    app.connect("build-finished", shrink_fonts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
