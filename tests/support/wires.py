"""Where wires of a stored workflow run: the page's splines, and the nodes that they pass behind."""

from __future__ import annotations

from typing import Any

TITLE, SLOT = 30, 20
Box = tuple[float, float, float, float]


def box_of(node: dict[str, Any]) -> Box:
    """Left, top, right and bottom of a node with its title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - (0 if node["type"] == "Reroute" else TITLE), x + width, y + height


def socket(node: dict[str, Any], place: int, output: bool) -> tuple[float, float]:
    """Where a socket is; a widget's lies lower, at the widget."""
    x, y = node["pos"]
    if node["type"] == "Reroute":
        return x + (node["size"][0] if output else 0), y + node["size"][1] / 2
    if output:
        return x + node["size"][0], y + (place + 0.7) * SLOT
    entries = node["inputs"]
    plain = [entry for entry in entries if "widget" not in entry]
    if "widget" in entries[place]:
        return x, y + len(plain) * SLOT + 20
    return x, y + (plain.index(entries[place]) + 0.7) * SLOT


def curve(a: tuple[float, float], b: tuple[float, float], steps: int = 60) -> list[tuple[float, float]]:
    """Points of the spline between an output and an input."""
    reach = 0.25 * ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5
    xs, ys = (a[0], a[0] + reach, b[0] - reach, b[0]), (a[1], a[1], b[1], b[1])

    def at(values: tuple[float, ...], t: float) -> float:
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    return [(at(xs, i / steps), at(ys, i / steps)) for i in range(1, steps)]


def hidden_wires(workflow: dict[str, Any]) -> list[str]:
    """Every wire that runs behind a node."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    found = []
    for _, source, out, target, into, kind in workflow["links"]:
        points = curve(socket(nodes[source], out, True), socket(nodes[target], into, False))
        for node in nodes.values():
            left, top, right, bottom = box_of(node)
            if any(left + 1 < x < right - 1 and top < y < bottom for x, y in points):
                named = [f"{nodes[n].get('title', 'Reroute')} ({n})" for n in (source, target, node["id"])]
                found.append(f"{kind} from {named[0]} to {named[1]} behind {named[2]}")
    return found
