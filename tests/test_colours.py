"""Colours are told apart with any colour vision: the palettes are looked at through simulated eyes."""

from itertools import combinations

import numpy as np
import pytest

from latentlens.values.markup import HEAT
from latentlens.views.figures.style import CONTROL, DIVERGING, SEQUENTIAL, SERIES, TIME, VERMILLION

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
EYES = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(1)


def lab(colour, eyes="normal"):
    """CIE Lab of `#rrggbb` or (r, g, b) as seen by these eyes: white is (100, 0, 0)."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)] if isinstance(colour, str) else colour
    c = np.array(rgb, dtype=float) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(EYES[eyes]) @ linear, 0, 1)
    t = TO_XYZ @ seen / WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(a, b, eyes):
    return float(np.linalg.norm(lab(a, eyes) - lab(b, eyes)))


def along(scale, n=9):
    """Colours at even steps of a scale, mixed as plotly mixes them."""
    at, stops = [s[0] for s in scale], np.array([[int(s[1][i : i + 2], 16) for i in (1, 3, 5)] for s in scale])
    return [tuple(np.interp(x, at, stops[:, k]) for k in range(3)) for x in np.linspace(0, 1, n)]


def test_the_ruler_is_right():
    np.testing.assert_allclose(lab("#ffffff"), [100, 0, 0], atol=0.1)
    np.testing.assert_allclose(lab("#ff0000"), [53.2, 80.1, 67.2], atol=0.3)
    assert apart("#ff0000", "#00a000", "normal") > 100
    assert apart("#b05000", "#808000", "deuteranopia") < apart("#b05000", "#808000", "normal") / 2  # it does confuse


@pytest.mark.parametrize("eyes", EYES)
def test_lines_of_one_figure_are_told_apart(eyes):
    for a, b in combinations((*SERIES, VERMILLION, CONTROL), 2):
        assert apart(a, b, eyes) > 15, (a, b)


@pytest.mark.parametrize("eyes", EYES)
def test_a_scale_of_one_sign_grows_lighter_all_along(eyes):
    lightness = [lab(c, eyes)[0] for c in along(SEQUENTIAL)]
    assert (np.diff(lightness) > 4).all(), lightness


@pytest.mark.parametrize("eyes", EYES)
def test_a_scale_of_two_signs_has_two_hues_and_a_light_middle(eyes):
    colours = along(DIVERGING)
    lightness = np.array([lab(c, eyes)[0] for c in colours])
    assert (np.diff(lightness[:5]) > 4).all()
    assert (np.diff(lightness[4:]) < -4).all()
    for low, high in zip(colours[:4], colours[:4:-1]):
        assert apart(low, high, eyes) > 15
    assert apart(*(tuple(map(int, HEAT[sign].split(","))) for sign in (1, -1)), eyes) > 40  # coloured tokens


@pytest.mark.parametrize("eyes", EYES)
def test_early_and_late_are_told_apart(eyes):
    assert apart(TIME[0][1], TIME[-1][1], eyes) > 40
