"""The bar chart: CPU per request of every server, a group of bars for each workload."""

from __future__ import annotations

from collections.abc import Mapping, Set
from html import escape

_WIDTH, _LABEL, _BAR, _GAP = 760, 130, 18, 34
_COLOURS = ("#c1432e", "#7f93a8")  # ours, the peers'


def bar_chart(groups: Mapping[str, Mapping[str, float]], ours: Set[str]) -> str:
    """An SVG image of ``{workload's title: {server: microseconds}}``."""
    shapes = []
    y = 30
    for title, bars in groups.items():
        if not bars:
            continue
        shapes.append(f'<text x="8" y="{y}" font-weight="bold">{escape(title)}</text>')
        y += 8
        scale = (_WIDTH - _LABEL - 80) / max(bars.values())
        for name, value in bars.items():
            width = value * scale
            middle = y + _BAR - 6
            shapes.append(
                f'<text x="{_LABEL - 6}" y="{middle}" text-anchor="end">{escape(name)}</text>'
                f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR - 4}" '
                f'fill="{_COLOURS[name not in ours]}"/>'
                f'<text x="{_LABEL + width + 5:.1f}" y="{middle}">{value:.1f}</text>'
            )
            y += _BAR
        y += _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" '
        'font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>'
        '<text x="8" y="14" font-size="11" fill="#555">Microseconds of server CPU for each '
        f"request, median; less is better</text>{''.join(shapes)}</svg>\n"
    )
