from __future__ import annotations

import numpy as np
import pytest

from scgpt_tl.pl._style import PALETTE, SHARES, ink, widest, wrapped


def luminance(color):
    linear = np.where(
        np.asarray(color) <= 0.04045, np.asarray(color) / 12.92, ((np.asarray(color) + 0.055) / 1.055) ** 2.4
    )
    return linear @ [0.2126, 0.7152, 0.0722]


def test_figures_read_on_every_shade():
    """Contrast of WCAG 2: 4.5 is what text of ordinary size needs."""
    for share in np.linspace(0, 1, 101):
        back, text = luminance(SHARES(share)[:3]), {"black": 0.0, "white": 1.0}[ink(SHARES(share))]
        high, low = max(back, text), min(back, text)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_shades_darken_all_the_way():
    assert (np.diff([luminance(SHARES(x)[:3]) for x in np.linspace(0, 1, 101)]) < 0).all()


@pytest.mark.parametrize("missing", ["red", "green"])
def test_palette_is_told_apart_by_dichromats(missing):
    """Linear cone model of Vienot et al. (1999) with one cone type gone: no two colours fall together."""
    from matplotlib.colors import to_rgb

    rgb = np.array([to_rgb(color) for color in PALETTE]) ** 2.2
    cones = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    lost = {
        "red": [[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]],
        "green": [[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]],
    }[missing]
    seen = np.clip(rgb @ cones.T @ np.array(lost).T @ np.linalg.inv(cones).T, 0, 1) ** (1 / 2.2)
    gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
    assert gaps.min() > 0.1


def test_long_names_are_cut_unless_they_would_read_alike():
    long = "CD4-positive, alpha-beta memory T cell of the "
    assert wrapped([long + "spleen and its other parts"], 20) == ["CD4-positive, alpha-\nbeta memory T cell …"]
    both = wrapped([long + "spleen", long + "thymus"], 20)
    assert [text.replace("\n", " ").split()[-1] for text in both] == ["spleen", "thymus"]
    assert wrapped(["B", 3]) == ["B", "3"]
    assert widest(["ab\ncde", "x"]) == 3
    assert widest([]) == 0
