import pytest
import torch
from torch.nn import functional as F

from watchrank.models.multi_task import MixtureOfExperts, ShareBottom, SideBySide, Towers

ROWS, WIDTH, TASKS, EXPERTS = 5, 7, 3, 4


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(ROWS, WIDTH)


@pytest.mark.parametrize("gates", [1, TASKS], ids=["omoe", "mmoe"])
@pytest.mark.parametrize("hidden", [(6,), (6, 5)])
def test_a_tower_is_given_the_experts_weighed_by_its_gate(x, hidden, gates):
    model = MixtureOfExperts(WIDTH, hidden, EXPERTS, TASKS, gates=gates)
    found = model(x)
    assert found.shape == (ROWS, TASKS, model.width)
    first, bias = model.first.weight.view(EXPERTS, hidden[0], WIDTH), model.first.bias.view(EXPERTS, -1)
    gate = model.gate.weight.view(gates, EXPERTS, WIDTH)
    for row in range(ROWS):
        for task in range(TASKS):
            weights = torch.softmax(gate[task if gates > 1 else 0] @ x[row], 0)
            mixture = torch.zeros(model.width)
            for expert in range(EXPERTS):
                value = F.relu(first[expert] @ x[row] + bias[expert])
                for layer in model.rest:
                    value = F.relu(value @ layer.weight[expert] + layer.bias[expert])
                mixture += weights[expert] * value
            torch.testing.assert_close(found[row, task], mixture)


def test_gates_sum_to_one_and_only_mmoe_has_one_a_task(x):
    one, own = (MixtureOfExperts(WIDTH, (6,), EXPERTS, TASKS, gates=gates).gates(x) for gates in (1, TASKS))
    for gates in (one, own):
        assert gates.shape == (ROWS, TASKS, EXPERTS)
        torch.testing.assert_close(gates.sum(-1), torch.ones(ROWS, TASKS))
    assert torch.equal(one[:, 0], one[:, 2])
    assert not torch.allclose(own[:, 0], own[:, 2])


def test_all_tasks_share_the_bottom(x):
    model = ShareBottom(WIDTH, (6, 5), TASKS)
    found = model(x)
    assert found.shape == (ROWS, TASKS, model.width) == (ROWS, TASKS, 5)
    for task in range(TASKS):
        torch.testing.assert_close(found[:, task], model.bottom(x))


def test_without_layers_the_towers_are_given_the_rows(x):
    model = ShareBottom(WIDTH, (), TASKS)
    torch.testing.assert_close(model(x)[:, 1], x)
    assert model.width == WIDTH


def test_a_tower_sees_its_own_rows_and_learns_from_its_own_task():
    towers = Towers(4, (6,), TASKS)
    x = torch.randn(ROWS, TASKS, 4, requires_grad=True)
    towers(x)[:, 1].sum().backward()
    assert x.grad[:, 1].abs().sum() > 0
    assert x.grad[:, [0, 2]].abs().sum() == 0
    for layer in (*towers.hidden, towers.logit):
        assert layer.weight.grad[1].abs().sum() > 0
        assert layer.weight.grad[[0, 2]].abs().sum() == 0


def test_side_by_side_is_a_linear_layer_for_each_group():
    layer = SideBySide(TASKS, 4, 6)
    x = torch.randn(ROWS, TASKS, 4)
    for group in range(TASKS):
        alone = F.linear(x[:, group], layer.weight[group].T, layer.bias[group])
        torch.testing.assert_close(layer(x)[:, group], alone)
