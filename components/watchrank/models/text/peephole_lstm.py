"""An LSTM whose gates see the cell: its last hidden state, forwards and backwards.

Gers, Schraudolph, Schmidhuber: Learning Precise Timing with LSTM Recurrent Networks, JMLR 2002. Input and
forget gate see the cell before the step, the output gate the cell after it:

    i = sigmoid(W_i x + R_i h + P_i c + b_i)        c' = f c + i tanh(W_g x + R_g h + b_g)
    f = sigmoid(W_f x + R_f h + P_f c + b_f)        h' = o tanh(c')
    o = sigmoid(W_o x + R_o h + P_o c' + b_o)

The weights lie as in ONNX: gates in the order i, o, f, g; peepholes in the order i, o, f.
Shapes: B texts, L steps, D width of the input, H of the state; N = steps of all texts. Steps are packed as
`torch.nn.utils.rnn` packs them: the longest text first, all texts' first steps, then all second ones, ...
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence


class PeepholeLstm(nn.Module):
    """Steps [B, L, D] and lengths to last hidden states [B, H]."""

    def __init__(self, width: int, hidden: int) -> None:
        """Make the cell for inputs of width `width` and a state of width `hidden`."""
        super().__init__()
        self.input = nn.Linear(width, 4 * hidden)
        self.recurrent = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.peepholes = nn.Parameter(torch.zeros(3, hidden))
        bound = hidden**-0.5
        for weight in (self.input.weight, self.recurrent):
            nn.init.uniform_(weight, -bound, bound)
        with torch.no_grad():
            self.input.bias[2 * hidden : 3 * hidden] = 1.0  # at first it remembers

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """Return the hidden state [B, H] after `lengths` [B] steps, each at least 1, of `steps` [B, L, D]."""
        if torch.onnx.is_in_onnx_export():
            return self._operator(steps, lengths)
        packed = pack_padded_sequence(steps, lengths.cpu(), batch_first=True, enforce_sorted=False)
        projected = self.input(packed.data).to(self.recurrent.dtype)
        last: Tensor = _Recurrence.apply(  # type: ignore[no-untyped-call]
            projected, self.recurrent, self.peepholes, packed.batch_sizes.tolist()
        )
        return last[packed.unsorted_indices]

    def _operator(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """Leave ONNX's own LSTM in the graph."""
        hidden = self.recurrent.shape[1]
        bias = torch.cat([self.input.bias, torch.zeros_like(self.input.bias)])
        weights = (weight.unsqueeze(0) for weight in (self.input.weight, self.recurrent, bias))
        _, last = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            (steps.transpose(0, 1), *weights, lengths.int(), None, None, self.peepholes.reshape(1, -1)),
            {"hidden_size": hidden},
            dtypes=(steps.dtype, steps.dtype),
            shapes=((steps.shape[1], 1, steps.shape[0], hidden), (1, steps.shape[0], hidden)),
        )
        return last[0]


class _Recurrence(torch.autograd.Function):
    """Packed, projected inputs [N, 4H] to the last hidden states [B, H], longest text first."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, recurrent: Tensor, peepholes: Tensor, sizes: list[int]
    ) -> Tensor:
        """Step through the texts; `sizes` says how many of them have each step."""
        gates = projected.clone()  # of all steps; each step's slice is turned into its gates in place
        cells, squashed, hidden = (projected.new_empty(len(gates), recurrent.shape[1]) for _ in range(3))
        peep_i, peep_o, peep_f = peepholes
        h = c = hidden.new_zeros(sizes[0], recurrent.shape[1])
        ended, first = [], 0
        for size in sizes:
            step = slice(first, first + size)
            ended.append(h[size:])
            h, c = h[:size], c[:size]
            i, o, f, g = gates[step].addmm_(h, recurrent.T).chunk(4, 1)
            i.addcmul_(peep_i, c).sigmoid_()
            f.addcmul_(peep_f, c).sigmoid_()
            c = torch.mul(f, c, out=cells[step]).addcmul_(i, g.tanh_())
            o.addcmul_(peep_o, c).sigmoid_()
            h = torch.mul(o, torch.tanh(c, out=squashed[step]), out=hidden[step])
            first += size
        ctx.sizes = sizes
        ctx.save_for_backward(gates, cells, squashed, hidden, recurrent, peepholes)
        return torch.cat([h, *reversed(ended)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Step back; all that does not depend on the step after it is computed for all steps at once."""
        gates, cells, squashed, hidden, recurrent, peepholes = ctx.saved_tensors
        sizes: list[int] = ctx.sizes
        peep_i, peep_o, peep_f = peepholes
        i, o, f, g = gates.chunk(4, 1)
        cells_before, hidden_before = _shifted(cells, sizes), _shifted(hidden, sizes)
        by_i, by_f, by_g = g * i * (1 - i), cells_before * f * (1 - f), i * (1 - g * g)  # d c / d gate
        by_o, by_c = squashed * o * (1 - o), o * (1 - squashed * squashed)  # d h / d gate, d h / d c
        d_gates = torch.empty_like(gates)
        d_h = d_c = grad[:0]
        last = len(gates)
        for size in reversed(sizes):
            step = slice(last - size, last)
            d_h = torch.cat([d_h, grad[len(d_h) : size]])
            d_c = F.pad(d_c, (0, 0, 0, size - len(d_c)))
            d_i, d_o, d_f, d_g = d_gates[step].chunk(4, 1)
            torch.mul(d_h, by_o[step], out=d_o)
            d_c = d_c.addcmul(d_h, by_c[step]).addcmul_(d_o, peep_o)
            torch.mul(d_c, by_i[step], out=d_i)
            torch.mul(d_c, by_f[step], out=d_f)
            torch.mul(d_c, by_g[step], out=d_g)
            d_c = (d_c * f[step]).addcmul_(d_i, peep_i).addcmul_(d_f, peep_f)
            d_h = d_gates[step] @ recurrent
            last -= size
        d_i, d_o, d_f, _ = d_gates.chunk(4, 1)
        d_peepholes = torch.stack(
            [(d_i * cells_before).sum(0), (d_o * cells).sum(0), (d_f * cells_before).sum(0)]
        )
        return d_gates, d_gates.T @ hidden_before, d_peepholes, None


def _shifted(states: Tensor, sizes: list[int]) -> Tensor:
    """Return the state before each packed step [N, H]: that after the step before, zero before the first."""
    before = torch.zeros_like(states)
    first = 0
    for size, following in pairwise(sizes):
        before[first + size : first + size + following] = states[first : first + following]
        first += size
    return before
