import numpy as np
import pytest
import torch

from watchrank.models.calibration import Calibration
from watchrank.training.calibration import fit_calibration


def fitted(logits, seconds):
    calibration = Calibration()
    fit_calibration(calibration, np.asarray(logits), np.asarray(seconds))
    return lambda z: calibration(torch.as_tensor(z).float()).double().numpy()


def observed(true, rng, click_rate=0.3):
    return np.exp(true) * rng.exponential(size=true.size) * (rng.random(true.size) < click_rate) / click_rate


def test_it_puts_a_bold_model_right_in_every_tenth():
    rng = np.random.default_rng(0)
    true = rng.normal(2, 1.5, 200_000)
    logits = (true - 0.5) / 0.7
    calibrate = fitted(logits, observed(true, rng))
    fresh = rng.normal(2, 1.5, 200_000)
    predicted, right = np.exp(calibrate((fresh - 0.5) / 0.7)), np.exp(fresh)
    assert predicted.sum() == pytest.approx(right.sum(), rel=0.06)
    tenths = np.array_split(np.argsort(fresh), 10)
    raw = [np.exp((fresh[rows] - 0.5) / 0.7).sum() / right[rows].sum() for rows in tenths]
    ratios = [predicted[rows].sum() / right[rows].sum() for rows in tenths]
    assert max(abs(np.array(raw) - 1)) > 0.5
    assert max(abs(np.array(ratios) - 1)) < 0.08


def test_the_sum_of_the_window_is_met_and_the_order_stays():
    rng = np.random.default_rng(1)
    logits = rng.normal(1, 2, 5_000)
    seconds = observed(rng.normal(1, 1, 5_000), rng)  # nothing to do with the logits
    calibrate = fitted(logits, seconds)
    assert np.exp(calibrate(logits)).sum() == pytest.approx(seconds.sum(), rel=1e-4)
    assert (np.diff(calibrate(np.linspace(-9, 9, 500))) > 0).all()


def test_few_watches_move_a_tenth_little():
    logits = np.linspace(-2, 4, 10_000)
    seconds = np.exp(logits)
    seconds[:1000] = 0
    seconds[500] = 3 * np.exp(logits[:1000]).sum()  # one watch says three times as much
    assert np.exp(fitted(logits, seconds)(logits[:1000]) - logits[:1000]).mean() < 1.1


@pytest.mark.parametrize(
    ("logits", "seconds"), [([], []), ([1.0] * 99, [0.0] * 99)], ids=["empty", "nothing watched"]
)
def test_without_evidence_it_is_the_identity(logits, seconds):
    assert fitted(logits, seconds)(np.array([-3.0, 0.5])).tolist() == [-3.0, 0.5]


def test_it_puts_bold_probabilities_right_in_every_tenth():
    rng = np.random.default_rng(0)
    true = rng.normal(-1, 2, 200_000)
    clicked = rng.random(true.size) < 1 / (1 + np.exp(-true))
    calibration = Calibration()
    fit_calibration(calibration, (true - 0.5) / 0.7, clicked, "binary")
    fresh = rng.normal(-1, 2, 200_000)
    calibrated = torch.sigmoid(calibration(torch.as_tensor((fresh - 0.5) / 0.7).float())).double().numpy()
    right = 1 / (1 + np.exp(-fresh))
    for rows in np.array_split(np.argsort(fresh), 10):
        assert calibrated[rows].mean() == pytest.approx(right[rows].mean(), rel=0.1, abs=0.005)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_probabilities_of_one_class_are_left_alone(share):
    calibration = Calibration()
    fit_calibration(calibration, np.linspace(-1, 1, 99), np.full(99, share), "binary")
    assert calibration(torch.tensor([-3.0, 0.5])).tolist() == [-3.0, 0.5]
