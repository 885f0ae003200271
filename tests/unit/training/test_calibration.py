import numpy as np
import pytest

from watchrank.training.calibration import fit_calibration


def test_it_finds_the_slope_and_offset_of_a_bold_model():
    rng = np.random.default_rng(0)
    true = rng.normal(2, 1.5, 200_000)
    seconds = np.exp(true) * rng.exponential(size=true.size) * (rng.random(true.size) < 0.3) / 0.3
    slope, offset = fit_calibration((true - 0.5) / 0.7, seconds)
    assert slope == pytest.approx(0.7, abs=0.02)
    assert offset == pytest.approx(0.5, abs=0.04)
    predicted = np.exp(slope * (true - 0.5) / 0.7 + offset)
    assert predicted.sum() == pytest.approx(seconds.sum(), rel=2e-3)


def test_it_leaves_a_right_model_alone_and_few_rows_move_it_little():
    z = np.log(np.array([1.0, 10.0, 100.0] * 1000))
    assert fit_calibration(z, np.exp(z)) == pytest.approx((1, 0), abs=1e-6)
    slope, offset = fit_calibration(np.array([1.0, 2.0]), np.array([900.0, 0.0]))
    assert 0 < slope < 2
    assert np.isfinite(offset)


@pytest.mark.parametrize(
    ("logits", "seconds"),
    [([], []), ([1.0, 2.0], [0.0, 0.0]), ([0.0, 5.0] * 5_000, [100.0, 0.0] * 5_000)],
    ids=["empty", "nothing watched", "the wrong way round"],
)
def test_without_evidence_or_against_the_order_there_is_no_calibration(logits, seconds):
    assert fit_calibration(np.array(logits), np.array(seconds)) == (1.0, 0.0)
