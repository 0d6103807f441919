"""The runs as a picture: bits per byte of each arm and seed, and how the training loss fell. Plain SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT = 980, 330
LEFT, RIGHT = (190, 500), (590, 950)  # x of the two panels
TOP, BOTTOM = 60, 270
SMOOTHED = 5  # steps of the moving mean
COLOURS = ("#6b7280", "#1d4ed8", "#047857", "#b45309", "#be185d", "#6d28d9")


class Arm(NamedTuple):
    """What one arm reached: bits per byte a seed, and its loss a step where that compares."""

    label: str
    bits: Sequence[float]
    curve: Sequence[float]


def draw(arms: Sequence[Arm], *, marks: Mapping[str, float], title: str, path: Path) -> None:
    """Write the picture to `path`; `marks` are vertical lines, such as the base's bits per byte."""
    values = [bit for arm in arms for bit in arm.bits] + list(marks.values())
    low, high = min(values) - 0.01, max(values) + 0.01
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#111827">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(16, 24, title, weight="bold"),
        *_dots(arms, marks, low, high),
        *_curves([arm for arm in arms if arm.curve]),
        "</svg>",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _dots(arms: Sequence[Arm], marks: Mapping[str, float], low: float, high: float) -> list[str]:
    def x(value: float) -> float:
        return LEFT[0] + (value - low) / (high - low) * (LEFT[1] - LEFT[0])

    parts = [_text(LEFT[0], TOP - 14, "bits per byte of held-out answers, a dot a seed (lower is better)", size=12)]
    for label, value in marks.items():
        parts.append(
            f'<line x1="{x(value):.1f}" y1="{TOP}" x2="{x(value):.1f}" y2="{BOTTOM}" stroke="#9ca3af" '
            'stroke-dasharray="4 3"/>'
        )
        parts.append(_text(x(value), BOTTOM + 16, f"{label} {value:.3f}", anchor="middle", size=11))
    step = (BOTTOM - TOP) / len(arms)
    for number, arm in enumerate(arms):
        y, colour = TOP + step * (number + 0.5), COLOURS[number % len(COLOURS)]
        mean = sum(arm.bits) / len(arm.bits)
        parts.append(_text(LEFT[0] - 12, y + 4, arm.label, anchor="end"))
        parts.append(f'<line x1="{LEFT[0]}" y1="{y:.1f}" x2="{LEFT[1]}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts += [
            f'<circle cx="{x(bit):.1f}" cy="{y:.1f}" r="4.5" fill="{colour}" fill-opacity="0.75"/>' for bit in arm.bits
        ]
        parts.append(_text(x(mean), y - 9, f"{mean:.4f}", anchor="middle", size=11))
    return parts


def _curves(arms: Sequence[Arm]) -> list[str]:
    smooth = [_moving_mean(arm.curve) for arm in arms]
    if not smooth:
        return []
    low, high = min(map(min, smooth)) - 0.02, max(map(max, smooth)) + 0.02
    longest = max(map(len, smooth))
    parts = [
        _text(
            RIGHT[0], TOP - 14, f"cross-entropy of the training text, nats a token, mean of {SMOOTHED} steps", size=12
        ),
        _text(RIGHT[1], BOTTOM + 16, f"step {longest + SMOOTHED - 1}", anchor="end", size=11),
    ]
    for value in (low + 0.02, high - 0.02):
        y = BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)
        parts.append(f'<line x1="{RIGHT[0]}" y1="{y:.1f}" x2="{RIGHT[1]}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(_text(RIGHT[0] - 6, y + 4, f"{value:.2f}", anchor="end", size=11))
    for number, (arm, curve) in enumerate(zip(arms, smooth, strict=True)):
        points = " ".join(
            f"{RIGHT[0] + index / max(longest - 1, 1) * (RIGHT[1] - RIGHT[0]):.1f},"
            f"{BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP):.1f}"
            for index, value in enumerate(curve)
        )
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(_text(RIGHT[0] + 90 * number, BOTTOM + 40, arm.label, colour=colour, size=11))
    return parts


def _moving_mean(values: Sequence[float]) -> list[float]:
    return [sum(values[at : at + SMOOTHED]) / SMOOTHED for at in range(len(values) - SMOOTHED + 1)]


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 13,
    weight: str = "normal",
    colour: str = "#111827",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}">{escape(text)}</text>'
    )
