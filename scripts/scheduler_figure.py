#!/usr/bin/env python3
"""Draws docs/scheduler.svg: how many jobs finish in time, by scheduler and load, from the first table of benches/README.md that
records `cargo bench --bench scheduler`.

    scripts/scheduler_figure.py [FILE]
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "benches/README.md"
FIGURE = ROOT / "docs/scheduler.svg"
HEADER = "| load | | in time |"
COLORS = {
    "step by step, deadlines known": "#0b6e4f",
    "step by step, deadlines unknown": "#6bbf59",
    "one at a time": "#b0562c",
    "equal batches": "#8a8f98",
}
WIDTH, HEIGHT = 760, 380
LEFT, TOP, BOTTOM, BAR, GAP = 56, 92, 64, 44, 6


def recorded():
    """The loads in order, each with what share of jobs is in time by scheduler."""
    lines = iter(RECORDED.read_text().splitlines())
    while not next(lines).startswith(HEADER):
        pass
    next(lines)
    loads = []
    for line in lines:
        if not line.startswith("|"):
            return loads
        load, scheduler, share = (cell.strip(" *") for cell in line.strip("|").split("|")[:3])
        if load:
            loads.append((re.match(r"[0-9.]+", load).group(0), {}))
        loads[-1][1][scheduler] = float(share.removesuffix("%").strip())
    return loads


def bar(left, share, color):
    height = (HEIGHT - TOP - BOTTOM) * share / 100
    top = HEIGHT - BOTTOM - height
    return [
        f'<rect x="{left}" y="{top:.1f}" width="{BAR}" height="{height:.1f}" fill="{color}"/>',
        f'<text x="{left + BAR / 2}" y="{top - 5:.1f}" text-anchor="middle" font-size="12">{share:.1f}</text>',
    ]


def figure():
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'role="img" aria-label="Jobs finished in time, by scheduler and load">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        '<g fill="#1c1f23">',
        f'<text x="{LEFT}" y="26" font-size="16" font-weight="bold">Jobs finished in time, in % (simulated H200)</text>',
    ]
    for index, (name, color) in enumerate(COLORS.items()):
        left, top = LEFT + 300 * (index % 2), 40 + 20 * (index // 2)
        parts.append(f'<rect x="{left}" y="{top}" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text x="{left + 18}" y="{top + 11}" font-size="13">{name}</text>')
    for share in (0, 25, 50, 75, 100):
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share / 100
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{y}" y2="{y}" stroke="#d8dbe0"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end" font-size="12">{share}</text>')
    group = (WIDTH - LEFT - 16) / 3
    for index, (load, shares) in enumerate(recorded()):
        width = len(shares) * (BAR + GAP) - GAP
        left = LEFT + group * index + (group - width) / 2
        for place, (scheduler, share) in enumerate(shares.items()):
            parts += bar(round(left + place * (BAR + GAP), 1), share, COLORS[scheduler])
        middle = LEFT + group * (index + 0.5)
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 22}" text-anchor="middle" font-size="13">load {load}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 14}" font-size="12">'
                 "Load 1.0 is what one image at a time can bear. In time: within five times the duration alone.</text>")
    return "\n".join([*parts, "</g>", "</svg>", ""])


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else FIGURE).write_text(figure())
