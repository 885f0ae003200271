import pytest
import torch
from torch import nn

from watchrank.models.text.peephole_lstm import PeepholeLstm

LENGTHS = torch.tensor([3, 6, 1, 6, 2])


def step_by_step(model: PeepholeLstm, steps, lengths):
    """Follow the paper's formulas, one text and one step at a time."""
    r_i, r_o, r_f, r_g = model.recurrent.chunk(4)
    p_i, p_o, p_f = model.peepholes
    last = []
    for text, length in zip(steps, lengths.tolist(), strict=True):
        h = c = torch.zeros(model.peepholes.shape[1], dtype=steps.dtype)
        for x in text[:length]:
            x_i, x_o, x_f, x_g = model.input(x).chunk(4)
            i = torch.sigmoid(x_i + r_i @ h + p_i * c)
            f = torch.sigmoid(x_f + r_f @ h + p_f * c)
            c = f * c + i * torch.tanh(x_g + r_g @ h)
            o = torch.sigmoid(x_o + r_o @ h + p_o * c)
            h = o * torch.tanh(c)
        last.append(h)
    return torch.stack(last)


def lstm(width=5, hidden=4) -> PeepholeLstm:
    torch.manual_seed(0)
    model = PeepholeLstm(width, hidden)
    nn.init.normal_(model.peepholes)
    return model


def gradients(model, answer, steps):
    weights = torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype).view_as(answer)
    return torch.autograd.grad((answer * weights).sum(), [steps, *model.parameters()])


def test_states_and_gradients_are_those_of_the_formulas():
    model = lstm().double()
    steps = torch.randn(5, 6, 5, dtype=torch.float64, requires_grad=True)
    answer, expected = model(steps, LENGTHS), step_by_step(model, steps, LENGTHS)
    torch.testing.assert_close(answer, expected)
    for own, right in zip(gradients(model, answer, steps), gradients(model, expected, steps), strict=True):
        torch.testing.assert_close(own, right)


def test_without_peepholes_it_is_torchs_lstm():
    model = lstm()
    nn.init.zeros_(model.peepholes)
    known = nn.LSTM(5, 4, batch_first=True)
    order = torch.tensor([0, 2, 3, 1])  # torch's gates are i, f, g, o
    with torch.no_grad():
        known.weight_ih_l0.copy_(model.input.weight.view(4, 4, 5)[order].flatten(0, 1))
        known.weight_hh_l0.copy_(model.recurrent.view(4, 4, 4)[order].flatten(0, 1))
        known.bias_ih_l0.copy_(model.input.bias.view(4, 4)[order].flatten())
        known.bias_hh_l0.zero_()
    steps = torch.randn(3, 7, 5)
    torch.testing.assert_close(model(steps, torch.full((3,), 7)), known(steps)[1][0][0])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_peephole_changes_the_state(place):
    model, steps = lstm(), torch.randn(2, 4, 5)
    before = model(steps, torch.tensor([4, 4]))
    with torch.no_grad():
        model.peepholes[place] += 1
    assert (model(steps, torch.tensor([4, 4])) - before).abs().max() > 1e-3


def test_it_trains_under_lower_precision():
    model, steps = lstm(), torch.randn(2, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = model(steps, torch.tensor([4, 2]))
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, model(steps, torch.tensor([4, 2])), rtol=0.05, atol=0.02)
    answer.sum().backward()
    assert model.recurrent.grad.dtype == torch.float32
