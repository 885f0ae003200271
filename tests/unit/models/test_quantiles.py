import numpy as np
import torch

from watchrank.models.quantiles import QuantileNormaliser, Unnormalised


def fitted(values, quantiles=5, *, powers=True):
    normaliser = QuantileNormaliser(values.shape[1], quantiles, powers=powers)
    normaliser.fit(values)
    return normaliser


def test_cumulative_is_linear_between_the_stored_quantiles():
    normaliser = fitted(np.array([[0.0], [10.0], [20.0], [40.0], [80.0]]))
    x = torch.tensor([[-5.0], [0.0], [5.0], [30.0], [80.0], [1e30], [float("inf")], [float("-inf")]])
    expected = [0, 0, 0.125, 0.625, 1, 1, 1, 0]
    torch.testing.assert_close(normaliser.cumulative(x).squeeze(1), torch.tensor(expected))


def test_cumulative_of_a_sample_is_uniform():
    values = np.random.default_rng(0).lognormal(size=(20_000, 1))
    share = fitted(values, 64).cumulative(torch.from_numpy(values).float()).numpy()
    assert abs(share.mean() - 0.5) < 0.01
    assert np.abs(np.quantile(share, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.02


def test_output_is_x_its_square_its_root_and_whether_it_is_missing():
    normaliser = fitted(np.array([[0.0, 1.0], [1.0, 1.0], [np.nan, 1.0]]), 2)
    out = normaliser(torch.tensor([[0.25, float("nan")]]))
    torch.testing.assert_close(out, torch.tensor([[0.25, 0, 0.0625, 0, 0.5, 0, 0, 1]]))
    assert fitted(np.ones((3, 2)), powers=False)(torch.zeros(1, 2)).shape == (1, 4)


def test_a_constant_or_unknown_column_stays_finite():
    normaliser = fitted(np.array([[7.0, np.nan], [7.0, np.nan]]))
    assert torch.isfinite(normaliser(torch.tensor([[7.0, 3.0], [8.0, -3.0], [6.0, 0.0]]))).all()


def test_a_value_of_many_quantiles_has_the_share_up_to_it():
    normaliser = fitted(np.array([[0.0]] * 50 + [[float(i)] for i in range(1, 51)]), 101)
    share = normaliser.cumulative(torch.tensor([[-0.1], [0.0], [0.5], [50.0]])).squeeze(1)
    torch.testing.assert_close(share, torch.tensor([0.0, 0.5, 0.505, 1.0]), atol=0.011, rtol=0)


def test_both_ways_to_the_share_agree():
    rng = np.random.default_rng(1)
    values = np.stack([rng.lognormal(size=999), rng.poisson(0.5, 999), np.full(999, 7.0)], 1)
    normaliser = fitted(values, 33)
    edges = torch.cat([normaliser.lower, normaliser.lower + normaliser.width], 1).T
    x = torch.cat(
        [torch.from_numpy(values).float(), edges, edges + 1e-3, edges - 1e-3, edges * 1e9, -edges * 1e9]
    )
    torch.testing.assert_close(normaliser._by_searching(x), normaliser._by_counting(x), atol=1e-6, rtol=0)


def test_without_normalisation_values_pass_as_they_are_with_a_flag_for_missing_ones():
    layer = Unnormalised(2)
    x = torch.tensor([[3e8, float("nan")], [-2.0, 0.5]])
    assert layer.out_features == 4
    assert layer(x).tolist() == [[3e8, 0, 0, 1], [-2, 0.5, 0, 0]]
