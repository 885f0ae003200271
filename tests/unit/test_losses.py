import pytest
import torch

from watchrank.training.losses import Weights, objective_weights, weighted_logistic_loss

N = 20_000


def log_of(click_rate):
    generator = torch.Generator().manual_seed(0)
    clicked = (torch.rand(N, generator=generator) < click_rate).double()
    return clicked, clicked * 60 * torch.rand(N, generator=generator).double()


def optimum(weights):
    """exp of the constant logit of the least loss"""
    logit = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = weighted_logistic_loss(logit.expand(N), weights).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logit.exp().item()


@pytest.mark.parametrize("click_rate", [0.05, 0.5, 0.95])
def test_the_optimum_of_each_objective_is_as_documented(click_rate):
    clicked, seconds = log_of(click_rate)
    share, mean = clicked.mean().item(), seconds.mean().item()
    expected = {"exact": mean, "youtube": mean / (1 - share), "logistic": share / (1 - share)}
    found = {name: optimum(objective_weights(name, clicked, seconds)) for name in expected}
    assert found == pytest.approx(expected, rel=1e-4)


def test_loss_by_hand_and_stable_at_extreme_logits():
    logit = torch.tensor([0.0, 0.0, 200.0, -200.0])
    seconds = torch.tensor([0.0, 3.0, 0.0, 2.0])
    loss = weighted_logistic_loss(logit, objective_weights("exact", (seconds > 0).float(), seconds))
    torch.testing.assert_close(loss, torch.tensor([0.6931, 4 * 0.6931, 200.0, 400.0]), rtol=1e-3, atol=0)


def test_derivative_is_as_documented():
    logit = torch.tensor([0.5, -1.0], requires_grad=True)
    seconds = torch.tensor([4.0, 0.0])
    weighted_logistic_loss(logit, Weights(seconds, torch.ones(2))).sum().backward()
    torch.testing.assert_close(logit.grad, ((logit.exp() - seconds) / (1 + logit.exp())).detach())
