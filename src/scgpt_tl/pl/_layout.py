"""Places of named points that are joined by lines: near what they are joined to, and no name on another."""

from __future__ import annotations

import numpy as np

_GAP = 0.25  # inches between parts that nothing joins


def layout(ends: np.ndarray, weights: np.ndarray, boxes: np.ndarray, *, ratio: float = 1.25) -> np.ndarray:
    """Centres of points in inches, the same for the same network.

    Each part that hangs together is laid out by itself (Kamada and Kawai 1989, from a circle: no chance in it), the
    stronger an edge the nearer its ends; the parts stand side by side, the largest first.

    Parameters
    ----------
    ends
        Two points of each edge, `(E, 2)`.
    weights
        Of edges, `(E,)`, positive.
    boxes
        Width and height that each point takes with its name, `(n, 2)` inches.
    ratio
        Width of the whole by its height, about.

    Returns
    -------
    `(n, 2)`; the lower left corner of the whole is at 0.
    """
    import igraph  # loaded on use

    lengths = 1.5 - weights / max(float(weights.max(initial=0)), 1e-12)
    graph = igraph.Graph(n=len(boxes), edges=ends, edge_attrs={"length": lengths})
    places = np.zeros((len(boxes), 2))
    parts = sorted((sorted(part) for part in graph.connected_components()), key=lambda part: (-len(part), part))
    for part in parts:
        inside = graph.induced_subgraph(part)
        drawn = np.array(inside.layout_kamada_kawai(weights=inside.es["length"]).coords)
        high = np.sqrt(3.5 * boxes[part].prod(axis=1).sum() / ratio)
        space = np.maximum(np.array([ratio * high, high]) - boxes[part].max(axis=0), 0.3 if len(part) > 1 else 0)
        places[part] = apart(_fitted(drawn, space), boxes[part])
    return _packed(places, boxes, parts, ratio)


def apart(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Centres `(n, 2)` of rectangles of sizes `(n, 2)`, moved until none lies on another, and little farther."""
    places, order = places.astype(float), np.arange(len(places))
    for _ in range(600):
        way = places[:, None] - places[None]
        deep = (boxes[:, None] + boxes[None]) / 2 - np.abs(way)
        hit = (deep > 1e-9).all(axis=2)
        np.fill_diagonal(hit, val=False)
        if not hit.any():
            break
        side = np.where(way == 0, np.sign(order[:, None] - order)[..., None], np.sign(way))
        axis = np.arange(2) == deep.argmin(axis=2)[..., None]  # the shorter way out
        places = places + 0.5 * np.where(hit[..., None] & axis, side * (deep + 0.01), 0).sum(axis=1)
    return places


def _fitted(places: np.ndarray, space: np.ndarray) -> np.ndarray:
    """Turned so that the longer side lies across, and stretched to the space, at most twice as far one way."""
    places = places - places.mean(axis=0)
    turned = places @ np.linalg.svd(places, full_matrices=False)[2].T if len(places) > 2 else places
    turned = turned - turned.min(axis=0)
    scale = space / np.maximum(turned.max(axis=0), 1e-9)
    return turned * np.minimum(scale, 2 * scale.min())


def _packed(places: np.ndarray, boxes: np.ndarray, parts: list[list[int]], ratio: float) -> np.ndarray:
    """Parts in rows from the top, each as wide as the whole allows."""
    low = [(places[part] - boxes[part] / 2).min(axis=0) for part in parts]
    sizes = [
        (places[part] + boxes[part] / 2).max(axis=0) - corner + _GAP for part, corner in zip(parts, low, strict=True)
    ]
    width = max(np.sqrt(ratio * 1.15 * sum(size.prod() for size in sizes)), *(size[0] for size in sizes), 0)
    packed, across, down, row = np.empty_like(places), 0.0, 0.0, 0.0
    for part, corner, size in zip(parts, low, sizes, strict=True):
        if across and across + size[0] > width + 1e-9:
            across, down, row = 0.0, down + row, 0.0
        packed[part] = places[part] - corner + [across, -down - size[1]]
        across, row = across + size[0], max(row, size[1])
    return packed + np.array([0, down + row])
