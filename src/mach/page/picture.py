"""How does a figure get onto a page: sharp, legible by day and by night, and small?

A figure is drawn once, in the colours of paper. On the page it is SVG whose colours are the page's
own variables, so that it turns dark with the page, and whose letters are the page's, so that they
can be read at the width of a phone, searched and selected. Beside the page it is a PNG.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from io import BytesIO, StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, MUTED, GRID, PAPER = "#1c2127", "#5c6570", "#dde1e6", "#fefefe"
WAIT = "#c6ccd3"
ACCENT = "#b3261e"

_DARK = {
    INK: "#e6e9ed",
    MUTED: "#a0a9b4",
    GRID: "#343b44",
    PAPER: "#14181d",
    WAIT: "#4a535e",
    ACCENT: "#ff8a80",
}
_NAMES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    WAIT: "wait",
    ACCENT: "accent",
}

KINDS = {
    # Okabe and Ito's colours, which people with any colour vision tell apart.
    "forward": "#0072b2",
    "backward": "#d55e00",
    "distil": "#009e73",
    "step": "#cc79a7",
    "evaluate": "#56b4e9",
    "save": "#8c6d1f",
}
_BRIGHT = {"forward": "#4aa8e0", "backward": "#f08a3e", "distil": "#2fc79a", "save": "#c9a54a"}

WIDTH_IN = 4.5
"""Of a figure: half a page, or a phone, on which its letters are then 10 pixels high."""
_DPI = 130

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two dollars in it is a name
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Picture:
    """A figure on a page and beside it."""

    name: str
    """Of the PNG, and in the page; letters and dashes."""
    title: str
    caption: str
    """What one sees; plain text."""
    svg: str
    png: bytes = field(repr=False)
    wide: bool = False
    """Takes the whole page, and is scrolled on a phone."""


def draw(
    name: str,
    title: str,
    caption: str,
    paint: Callable[[Figure], None],
    *,
    height_in: float = 3.0,
    wide: bool = False,
) -> Picture:
    """Draw a figure.

    Args:
        paint: fills it. Colours from this module follow the page; others stay as they are.
    """
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(2 * WIDTH_IN if wide else WIDTH_IN, height_in))
        FigureCanvasAgg(figure)
        paint(figure)
        png, svg = BytesIO(), StringIO()
        figure.savefig(png, format="png", dpi=_DPI, metadata={"Software": None})
        figure.savefig(
            svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return Picture(name, title, caption, _inline(svg.getvalue(), name, title), png.getvalue(), wide)


def component_colours(count: int) -> list[str]:
    """One colour each, from the bottom of the chain to its top: dark to bright on paper."""
    return [_viridis(k, count, 0.0, 0.80) for k in range(count)]


def legend_below(axes: Axes, title: str = "", columns: int = 8) -> None:
    """A legend that hides nothing.

    Args:
        title: what all labels are values of, as in `component`.
    """
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.figure
    assert isinstance(figure, Figure)
    if title:
        handles, labels = [Line2D([], [], lw=0), *handles], [title, *labels]
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(columns, max(1, len(labels)))
    )


def log_axis(axis: Axis) -> None:
    """Ticks at 1, 2, 5, 10 .., written as the numbers they are."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def variables(components: int) -> dict[str, tuple[str, str]]:
    """The page's colours by name: on paper, and on a dark screen."""
    found = {name: (light, _DARK[light]) for light, name in _NAMES.items()}
    found |= {kind: (light, _BRIGHT.get(kind, light)) for kind, light in KINDS.items()}
    for k, light in enumerate(component_colours(components)):
        found[f"k{k}"] = (light, _viridis(k, components, 0.35, 1.0))
    return found


def _viridis(k: int, count: int, low: float, high: float) -> str:
    share = k / (count - 1) if count > 1 else 0.25
    return mpl.colors.to_hex(mpl.colormaps["viridis"](low + share * (high - low)))


def _inline(svg: str, name: str, title: str) -> str:
    """As part of a page: no header, no size of its own, no name that another figure has, too."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sid="', f' id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([^;']*?)px '[^\"]*?(?=[;\"])", r"font-size: \1px", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def themed(svg: str, components: int) -> str:
    """The same with the page's variables in place of the colours of paper."""
    names = {light: name for name, (light, _) in variables(components).items()}
    return re.sub(
        r"#[0-9a-f]{6}", lambda m: f"var(--{names[m[0]]})" if m[0] in names else m[0], svg
    )
