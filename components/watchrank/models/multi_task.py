"""What several tasks share between the input layer and their answers.

Ma, Zhao, Yi, Chen, Hong, Chi: Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018, section 3. For task k, with towers h, experts f and gates g:

| structure | y_k |
| --- | --- |
| `ShareBottom` | h_k(f(x)) |
| `MixtureOfExperts` of one gate (OMoE) | h_k(sum over i of g(x)_i f_i(x)) |
| `MixtureOfExperts` of a gate a task (MMoE) | h_k(sum over i of g_k(x)_i f_i(x)) |

Shapes: N rows, E experts, T tasks, W and D width of a row and of what a tower is given. Experts, and towers,
run side by side in batched products.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ShareBottom(nn.Module):
    """One stack of ReLU layers for all tasks: rows [N, W] to [N, T, D]."""

    def __init__(self, width: int, hidden: Sequence[int], tasks: int) -> None:
        """Make the stack; without hidden layers the towers are given the rows as they are."""
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise([width, *hidden]):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.bottom = nn.Sequential(*layers)
        self.tasks = tasks
        self.width = [width, *hidden][-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return what each tower is given [N, T, D]."""
        shared: Tensor = self.bottom(x)
        return shared.unsqueeze(1).expand(-1, self.tasks, -1)


class MixtureOfExperts(nn.Module):
    """Experts whose outputs each task weighs by a gate, its own or everyone's: rows [N, W] to [N, T, D]."""

    def __init__(self, width: int, hidden: Sequence[int], experts: int, tasks: int, *, gates: int) -> None:
        """Make the experts.

        Args:
            width: of a row.
            hidden: the ReLU layers of each expert, at least one.
            experts: how many.
            tasks: how many.
            gates: 1 for all tasks together (OMoE), or as many as tasks (MMoE).
        """
        super().__init__()
        assert hidden, "an expert has at least one layer"
        assert gates in (1, tasks), f"{gates} gates for {tasks} tasks"
        self.experts, self.tasks = experts, tasks
        self.first = nn.Linear(width, experts * hidden[0])
        self.rest = nn.ModuleList(
            SideBySide(experts, fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(hidden)
        )
        self.gate = nn.Linear(width, gates * experts, bias=False)
        self.width = hidden[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return what each tower is given [N, T, D]."""
        found: Tensor = F.relu(self.first(x)).view(-1, self.experts, self.first.out_features // self.experts)
        for layer in self.rest:
            found = F.relu(layer(found))
        return torch.bmm(self.gates(x), found)

    def gates(self, x: Tensor) -> Tensor:
        """Return how each task weighs the experts [N, T, E]; a row's weights of a task sum to 1."""
        gates = self.gate.out_features // self.experts
        weights: Tensor = self.gate(x).view(-1, gates, self.experts).softmax(-1)
        return weights if gates == self.tasks else weights.expand(-1, self.tasks, -1)


class Towers(nn.Module):
    """A stack of ReLU layers a task, ending in one number: [N, T, D] to [N, T].

    The last layer is in float32 also where mixed precision is on: exp of it would show every rounding.
    """

    def __init__(self, width: int, hidden: Sequence[int], tasks: int) -> None:
        super().__init__()
        widths = [width, *hidden]
        self.hidden = nn.ModuleList(
            SideBySide(tasks, fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(widths)
        )
        self.logit = SideBySide(tasks, widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a number for each row and task [N, T]."""
        for layer in self.hidden:
            x = F.relu(layer(x))
        with torch.autocast(x.device.type, enabled=False):
            logit: Tensor = self.logit(x.float())
        return logit.squeeze(-1)


class SideBySide(nn.Module):
    """G linear layers, each on rows of its own: [N, G, in] to [N, G, out]."""

    def __init__(self, groups: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(fan_in)  # that of nn.Linear
        self.weight = nn.Parameter(torch.empty(groups, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, fan_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Apply each layer to its rows."""
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1) + self.bias
