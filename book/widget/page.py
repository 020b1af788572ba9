"""The page face of `explore`: every frame in one piece of HTML, native controls, a few lines of script.

It asks nothing of the page around it: no library, no network, no kernel. The first frame stands in the HTML
as an image, which also survives where scripts and inline SVG are stripped (script off, GitHub, untrusted
notebooks). The script puts the live drawing in its place and then shows the controls, so that no control is
ever visible that does not work. The other frames wait as JSON in a data script: unlike a `<template>`, it is
dropped whole by every sanitizer, never spilled as text.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from book.pictures.kit.language import THEME_CSS

HERE = Path(__file__)
PAGE_CSS = re.sub(r"/\*.*?\*/|\n", "", HERE.with_name("style.css").read_text(encoding="utf-8"))
SCRIPT = re.sub(r"^//.*\n|^ +", "", HERE.with_name("script.js").read_text(encoding="utf-8"), flags=re.M).strip()


def page(axes: Mapping[str, Sequence[Any]], points: Sequence[str], frames: Sequence[Any], question: str | None) -> str:
    """The widget as one piece of HTML. `frames` (html, says, still) go with `points`, in the same order."""
    table: dict[str, int] = {}  # repeated parts of the frames (a device's tag, a legend) are stored once
    indices = [[table.setdefault(chunk, len(table)) for chunk in _chunks(_anonymous(frame.html))] for frame in frames]
    # The two quotation marks change places: HTML is full of ", each of which would cost a backslash in JSON.
    chunks = [chunk.translate(str.maketrans("\"'", "'\"")) for chunk in table]
    data = {"chunks": chunks, "frames": indices, "says": [f.says for f in frames], "points": list(points)}
    packed = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # The text of a data script may contain neither "</script" nor "<!--".
    packed = packed.replace("</", "<\\/").replace("<!--", "\\u003c!--")
    uid = hashlib.sha256(packed.encode()).hexdigest()[:8]
    controls = "".join(_control(name, values, uid) for name, values in axes.items() if len(values) > 1)
    asked = f'<p class="omd-question">{html.escape(question)}</p>' if question else ""
    called = html.escape(question or "Explore " + ", ".join(axes))
    return (
        f'<div class="omd-explore" data-uid="{uid}" role="group" aria-label="{called}">'
        f"<style>{THEME_CSS}{PAGE_CSS}</style>{asked}"
        f'<div class="omd-controls" hidden>{controls}</div>'
        f'<div class="omd-frame" data-point="{html.escape(points[0])}">{frames[0].still}</div>'
        f'<p class="omd-status" role="status" aria-live="polite">{html.escape(frames[0].says)}</p>'
        f'<noscript><p class="omd-note">Shown: {html.escape(points[0].replace(";", ", "))}. '
        "The controls of this picture need JavaScript.</p></noscript>"
        f'<script type="application/json" class="omd-data">{packed}</script><script>{SCRIPT}</script></div>'
    )


def _anonymous(text: str) -> str:
    """Without the hashes in the ids (the script puts the instance's own there), so that equal parts are
    equal."""
    seen: dict[str, int] = {}
    return re.sub(r"omd-([0-9a-f]{8})-", lambda found: f"omd-#{seen.setdefault(found[1], len(seen))}-", text)


def _chunks(text: str) -> list[str]:
    """`text` in pieces that come again: where a shape is, and how it looks."""
    parts = re.split(
        r"( (?:fill|stroke|data-rank|rx|text-anchor|font-weight)[^<>]*>)|(?=<(?:text|g|rect|path|pattern)\b)",
        text,
    )
    return [part for part in parts if part]


def words(name: str) -> str:
    """What a reader sees for an argument of `draw`."""
    return name.replace("_", " ")


def stops(values: Sequence[Any]) -> list[Any] | None:
    """Where a slider stops: to the right it gets larger, wherever it starts. None for words, which get buttons."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else None


def _control(name: str, values: Sequence[Any], uid: str) -> str:
    """A slider for numbers, radio buttons for words."""
    axis, shown = html.escape(name), html.escape(words(name))
    if at := stops(values):
        listed = html.escape(json.dumps([str(value) for value in at]))
        return (
            f'<label class="omd-range"><span>{shown}</span> <input type="range" '
            f'min="0" max="{len(values) - 1}" '
            f'value="{at.index(values[0])}" step="1" data-axis="{axis}" data-values="{listed}" aria-label="{shown}" '
            f'aria-valuetext="{values[0]:,}" autocomplete="off"> <output aria-live="off">{values[0]:,}</output></label>'
        )
    radios = "".join(
        f'<label><input type="radio" name="omd-{uid}-{axis}" data-axis="{axis}" '
        f'value="{html.escape(str(value))}" autocomplete="off"'
        f"{' checked data-first' if i == 0 else ''}> {html.escape(str(value))}</label>"
        for i, value in enumerate(values)
    )
    return f"<fieldset><legend>{shown}</legend>{radios}</fieldset>"
