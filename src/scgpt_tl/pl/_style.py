"""What the plots share: colours that every reader tells apart, names that fit, Axes made only where none are given."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.colors import LinearSegmentedColormap, to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe & Ito's colours, but two dark ones for black and yellow: told apart by readers with any of the usual colour
#: visions. With more groups than colours the marker or the line changes as well, so no reading hangs on colour alone.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5A4A00", "#5B3A8E")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
LINES = ("-", "--", ":", "-.")
GREY = "#767676"
FRAME = "#E69F00"

#: Shares from none (white) to all (dark blue): lightness falls all the way, so it reads in print and in any vision.
SHARES = LinearSegmentedColormap.from_list("scgpt_shares", ["#FFFFFF", "#A9D4EF", "#3A94CC", "#0B5A94", "#062A4A"])

#: From what falls (orange) by nothing (white) to what rises (blue): told apart with any colour vision.
CHANGES = LinearSegmentedColormap.from_list("scgpt_changes", ["#7A2E00", "#E08A4A", "#FFFFFF", "#5AA3D6", "#0B4374"])


def one_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """`ax`, or that of a new figure of `size` inches that leaves room for its labels."""
    if ax is not None:
        return ax
    _, made = plt.subplots(figsize=size, layout="constrained")
    return made


def ink(color: Any) -> str:
    """Black or white, whichever reads on `color` (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def plain(name: Any) -> str:
    """A name to be drawn as it reads: matplotlib takes what stands between two `$` for a formula."""
    return str(name).replace("$", r"\$")


def entry(text: str) -> str:
    """A text that a legend shows: it leaves out what begins with an underscore."""
    return f" {text}" if text.startswith("_") else text


def wrapped(names: Iterable[Any], width: int = 26, *, lines: int = 2) -> list[str]:
    """Names broken into lines of `width` letters; what takes more than `lines` is cut, unless two would read alike."""
    texts = [str(name) for name in names]
    cut = [textwrap.fill(text, width, max_lines=lines, placeholder=" …") for text in texts]
    short = cut if len(set(cut)) == len(set(texts)) else [textwrap.fill(text, width) for text in texts]
    return [plain(text) for text in short]


def listed(names: Any) -> list[Any]:
    """Names that were given; one alone is a list of one."""
    return [names] if isinstance(names, str) else list(names)


def widest(texts: Iterable[str]) -> int:
    """Letters of the longest line."""
    return max((len(line) for text in texts for line in text.splitlines()), default=0)
