import numpy as np
import pytest

from tests.train.html_reader import Reader
from train.report.figures import raster, sorted_by_first_spike, thinned


def test_rows_of_a_raster_are_the_spiking_neurons_by_first_spike():
    spikes = np.array([[0, 1, 0, 0, 1], [1, 0, 0, 0, 1], [0, 0, 0, 1, 0]], bool)
    expected = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], bool)
    np.testing.assert_array_equal(sorted_by_first_spike(spikes), expected)


@pytest.mark.parametrize("neurons", [0, 1, 7, 4096])
def test_the_inked_area_of_a_raster_is_the_share_of_spikes(neurons):
    spikes = np.random.default_rng(neurons).integers(0, 2, (4, neurons), np.uint8)
    if neurons:
        spikes[0, 0] = 1
    drawing = Reader(raster(spikes, "spikes"))
    marks = [attrs for attrs in drawing.all("rect") if "class" not in attrs]
    ink = sum(float(a["height"]) * float(a.get("opacity", 1)) for a in marks) / 160
    rows = sorted_by_first_spike(spikes.astype(bool))
    assert ink == pytest.approx(rows.mean(0).sum() if len(rows) else 0, abs=0.02)
    assert len(marks) <= 4 * 160


def test_long_curves_are_averaged_and_short_ones_left_alone():
    assert thinned([1.0, 2.0]).tolist() == [1.0, 2.0]
    assert len(thinned(range(10_000))) == 300
    assert thinned(range(9_000)).tolist() == [30 * i + 14.5 for i in range(300)]
