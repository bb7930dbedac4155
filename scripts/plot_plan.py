#!/usr/bin/env python3
"""Draws predicted against measured step times of tables as an SVG, for docs/plan.md:

    for t in layouts_*.csv; do ./train_gpt plan --validate $t --rows --format json >$t.json; done
    scripts/plot_plan.py NAME=TABLE.csv.json ... >data/results/plan.svg

Standard library alone.
"""
import json
import math
import sys

SIZE, LEFT, BOTTOM, TOP, RIGHT = 580, 60, 50, 16, 30
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


def main():
    tables = []
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
        tables.append((name, table, [(r["measured_ms"], r["predicted_ms"]) for r in table["each"] if "predicted_ms" in r]))
    if not tables:
        sys.exit(__doc__)
    values = [v for _, _, points in tables for point in points for v in point]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    plot = SIZE - LEFT - RIGHT

    def x(value):
        return LEFT + (math.log10(value) - low) / (high - low) * plot

    def y(value):
        return TOP + plot - (math.log10(value) - low) / (high - low) * plot

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {TOP + plot + BOTTOM}" '
           'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>']
    for decade in range(low, high + 1):
        v = 10.0**decade
        label = f"{v / 1e3:g} s" if v >= 1e3 else f"{v:g} ms"
        out.append(f'<path d="M{x(v):.1f} {TOP}V{TOP + plot}M{LEFT} {y(v):.1f}H{LEFT + plot}" stroke="#ddd"/>')
        out.append(f'<text x="{x(v):.1f}" y="{TOP + plot + 16}" text-anchor="middle">{label}</text>')
        out.append(f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{label}</text>')
    out.append(f'<path d="M{LEFT} {TOP + plot}L{LEFT + plot} {TOP}" stroke="#888"/>')
    for (name, table, points), colour in zip(tables, COLOURS):
        dots = "".join(f"M{x(m):.1f} {y(p):.1f}h0" for m, p in points)
        out.append(f'<path d="{dots}" stroke="{colour}" stroke-width="4" stroke-linecap="round" stroke-opacity="0.45"/>')
    for i, ((name, table, points), colour) in enumerate(zip(tables, COLOURS)):
        top = TOP + plot - 12 - 18 * (len(tables) - 1 - i)
        out.append(f'<circle cx="{LEFT + 54}" cy="{top - 4}" r="4" fill="{colour}"/>')
        out.append(f'<text x="{LEFT + 64}" y="{top}">{name}: {len(points)} rows, error {100 * table["mean_error"]:.1f} %, '
                   f'median {100 * table["median_error"]:.1f} %</text>')
    out.append(f'<text x="{LEFT + plot / 2}" y="{TOP + plot + 38}" text-anchor="middle">measured step time</text>')
    out.append(f'<text transform="translate(14 {TOP + plot / 2}) rotate(-90)" text-anchor="middle">predicted</text>')
    out.append("</svg>")
    print("\n".join(out))


if __name__ == "__main__":
    main()
