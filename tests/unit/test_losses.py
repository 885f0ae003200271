import torch

from watchrank.training.losses import exact_watch_time_loss


def test_optimum_is_the_mean_watch_time_at_any_click_rate():
    generator = torch.Generator().manual_seed(0)
    for click_rate in (0.05, 0.5, 0.95):
        clicked = torch.rand(20_000, generator=generator) < click_rate
        seconds = torch.where(clicked, 60 * torch.rand(20_000, generator=generator), 0.0).double()
        logit = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([logit], max_iter=100, tolerance_grad=1e-12)

        def closure(logit=logit, seconds=seconds, optimizer=optimizer):
            optimizer.zero_grad()
            loss = exact_watch_time_loss(logit.expand_as(seconds), seconds).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        torch.testing.assert_close(logit.exp().detach(), seconds.mean(), rtol=1e-4, atol=0)


def test_loss_by_hand_and_stable_at_extreme_logits():
    loss = exact_watch_time_loss(torch.tensor([0.0, 0.0, 200.0, -200.0]), torch.tensor([0.0, 3.0, 0.0, 2.0]))
    expected = torch.tensor([0.6931, 4 * 0.6931, 200.0, 400.0])
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


def test_derivative_is_as_documented():
    logit = torch.tensor([0.5, -1.0], requires_grad=True)
    seconds = torch.tensor([4.0, 0.0])
    exact_watch_time_loss(logit, seconds).sum().backward()
    torch.testing.assert_close(logit.grad, ((logit.exp() - seconds) / (1 + logit.exp())).detach())
