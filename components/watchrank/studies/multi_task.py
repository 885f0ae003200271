"""What a structure for several tasks is worth by how related they are: the synthetic data of the MMoE paper.

Ma, Zhao, Yi, Chen, Hong, Chi: Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018, section 3.2 for the data and section 5 for the models. With orthonormal u1, u2:

    w1 = c u1,  w2 = c (p u1 + sqrt(1 - p^2) u2),  x ~ N(0, I)
    y_k = w_k.x + sum over i of sin(alpha_i w_k.x + beta_i) + e_k,  e_k ~ N(0, 0.01), the variance

p is the correlation of the tasks. The paper leaves c, alpha and beta open: here they are `SCALE` and `WAVES`.

Every seed has directions u, rows, noise and first weights of its own; within a seed all structures and
correlations have the same directions, rows and noise. Each step takes fresh rows, so that nothing is
overfitted. The models of all seeds are trained at once, their parameters stacked.

Shapes: S seeds, N rows, W width of a row, T tasks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from watchrank.errors import InputError
from watchrank.evaluation.page import BLUE, GREEN, ORANGE, svg
from watchrank.models.multi_task import MixtureOfExperts, ShareBottom, Towers
from watchrank.studies.runs import Estimate, Row, Runs, Study

CORRELATIONS = (0.5, 0.9, 1.0)
WIDTH, TASKS, EXPERTS, TOWER = 100, 2, 8, 8
SCALE = 1.0
WAVES = torch.arange(1.0, 4.0)
"""alpha_i and beta_i, both i."""

NOISE_VARIANCE = 0.01
FIRST_DATA_SEED = 1_000_000
"""The data's random numbers are others than those of the first weights."""

STRUCTURES: dict[str, Callable[[], ShareBottom | MixtureOfExperts]] = {
    "ShareBottom": lambda: ShareBottom(WIDTH, (126,), TASKS),
    "OMoE": lambda: MixtureOfExperts(WIDTH, (17,), EXPERTS, TASKS, gates=1),
    "MMoE": lambda: MixtureOfExperts(WIDTH, (16,), EXPERTS, TASKS, gates=TASKS),
}
"""MMoE is the paper's; the others are so wide that they have as many parameters, gates included."""

COLOURS = dict(zip(STRUCTURES, (ORANGE, GREEN, BLUE), strict=True))
LEVEL = 0.05
MARGIN = 0.05
"""Losses that differ by less than this share are near each other."""

Losses = dict[tuple[str, float], np.ndarray]
"""Mean squared error on held-out rows by structure and correlation [points, S]."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How long the models are trained: by Adam, its rate falling to 0 by a half cosine."""

    steps: int = 4_000
    batch: int = 64
    learning_rate: float = 0.01
    held_out: int = 2_000
    points: int = 30
    """Measurements of the held-out loss, evenly spread; the last one is the final loss."""


def multi_task(runs: Runs, setup: Setup | None = None) -> Study:
    """Train every structure at every correlation and test the claims made for them; reads no workspace.

    Raises:
        InputError: settings were given, of which this study has none, or a single seed.
    """
    if runs.overrides:
        raise InputError(f"The study multi_task reads no settings. Leave out {', '.join(runs.overrides)}.")
    if runs.seeds < 2:
        raise InputError("The study multi_task tests differences over seeds. Give it several: --seeds 50.")
    setup = setup or Setup()
    losses = train(range(runs.seeds), setup)
    final = {key: found[-1] for key, found in losses.items()}
    sizes = ", ".join(f"{name} {_size(new_model(name, 0)):,}" for name in STRUCTURES)
    rows = hypotheses(final)
    return Study(
        "ShareBottom, OMoE and MMoE by the correlation of two tasks",
        "The synthetic data of Ma et al. 2018, section 3.2: two regressions that are the more alike, the "
        f"nearer their correlation is to 1. Parameters: {sizes}. Loss: mean squared error on "
        f"{setup.held_out:,} held-out rows, of which {NOISE_VARIANCE} is noise.",
        rows,
        f"{runs.seeds} seeds; {setup.steps:,} steps of {setup.batch} fresh rows, Adam from "
        f"{setup.learning_rate}, the same for all. Losses: mean ± half its 95 % confidence interval. "
        "1 and 2: Wilcoxon's signed-rank test, one-sided, paired by seed; near: two one-sided t-tests on ln "
        f"of the ratio, within ± {MARGIN:.0%}. 3 and 4: Brown-Forsythe's deviations from the median, in a "
        f"one-sided t-test paired by seed. Shown: p < {LEVEL} / {len(rows)} (Bonferroni).",
        [
            *(svg(f"Loss, correlation {p:g}", partial(_curves, losses, p, setup)) for p in CORRELATIONS),
            *(svg(f"Final losses, correlation {p:g}", partial(_histogram, final, p)) for p in CORRELATIONS),
        ],
    )


STUDIES: dict[str, Callable[[Runs], Study]] = {"multi_task": multi_task}


# -- Data -----------------------------------------------------------------------------------------------


class Source:
    """The rows of each seed, drawn from a generator of its own."""

    def __init__(self, seeds: Sequence[int]) -> None:
        """Draw the orthonormal directions u1, u2 of each seed [S, W, 2]."""
        self.generators = [torch.Generator().manual_seed(FIRST_DATA_SEED + seed) for seed in seeds]
        self.directions = torch.linalg.qr(self._normal(WIDTH, 2))[0]

    def draw(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return fresh rows x [S, N, W] and the noise of their labels [S, N, T]."""
        return self._normal(rows, WIDTH), math.sqrt(NOISE_VARIANCE) * self._normal(rows, TASKS)

    def labels(self, x: Tensor, noise: Tensor, correlation: float) -> Tensor:
        """Return y [S, N, T] of rows [S, N, W] and their noise, the tasks being so correlated."""
        mixing = torch.tensor([[1.0, correlation], [0.0, math.sqrt(1 - correlation**2)]])
        linear: Tensor = x @ (SCALE * self.directions @ mixing)
        waves = torch.sin(WAVES * linear.unsqueeze(-1) + WAVES).sum(-1)
        return linear + waves + noise

    def _normal(self, *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


# -- Training -------------------------------------------------------------------------------------------


def new_model(structure: str, seed: int) -> nn.Sequential:
    """Return a structure with its towers: rows [N, W] to [N, T]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shared = STRUCTURES[structure]()
        return nn.Sequential(shared, Towers(shared.width, (TOWER,), TASKS))


class Stack:
    """A model for each seed, as one: every parameter has the seeds as its first dimension.

    Adam and the sum of the seeds' losses treat each seed as if it were alone.
    """

    def __init__(self, models: Sequence[nn.Module], setup: Setup) -> None:
        """Stack models that differ in their parameters only."""
        self.parameters, _ = stack_module_state(list(models))
        self._answer = vmap(lambda parameters, x: functional_call(models[0], parameters, (x,)))
        self.optimizer = torch.optim.Adam(self.parameters.values(), setup.learning_rate, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: (1 + math.cos(math.pi * step / setup.steps)) / 2
        )

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error of each seed [S] on its rows [S, N, W] and labels [S, N, T]."""
        found: Tensor = (self._answer(self.parameters, x) - y).square().mean((1, 2))
        return found

    def step(self, x: Tensor, y: Tensor) -> None:
        """Learn from a batch a seed: rows [S, N, W], labels [S, N, T]."""
        self.optimizer.zero_grad()
        self.losses(x, y).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()


def train(seeds: Sequence[int], setup: Setup) -> Losses:
    """Train every structure at every correlation; return the held-out losses [points, S] of each."""
    source = Source(seeds)
    x_held_out, noise_held_out = source.draw(setup.held_out)
    stacks = {
        (name, p): Stack([new_model(name, seed) for seed in seeds], setup)
        for name in STRUCTURES
        for p in CORRELATIONS
    }
    measured: dict[tuple[str, float], list[np.ndarray]] = {key: [] for key in stacks}
    for step in range(1, setup.steps + 1):
        x, noise = source.draw(setup.batch)
        for (_, p), stack in stacks.items():
            stack.step(x, source.labels(x, noise, p))
        if step in _measured_at(setup):
            for (name, p), stack in stacks.items():
                with torch.no_grad():
                    found = stack.losses(x_held_out, source.labels(x_held_out, noise_held_out, p))
                measured[name, p].append(found.numpy())
    return {key: np.stack(found) for key, found in measured.items()}


def _measured_at(setup: Setup) -> list[int]:
    return [setup.steps * (point + 1) // setup.points for point in range(setup.points)]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# -- Hypotheses -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A test of one hypothesis: what was compared, how large the effect is, and the p-value."""

    hypothesis: str
    correlation: str
    figures: str
    effect: str
    p: float


def hypotheses(final: dict[tuple[str, float], np.ndarray]) -> list[Row]:
    """Test what is said of the structures on their final losses [S], paired by seed."""
    mixtures = ("OMoE", "MMoE")
    results = [
        *(_lower(final, name, "ShareBottom", p, "1") for p in CORRELATIONS for name in mixtures),
        *(_lower(final, "MMoE", "OMoE", p, "2") for p in CORRELATIONS if p < 1),
        _near(final, 1.0),
        _grows(final, 1.0, 0.5),
        *(_spreads_more(final, "ShareBottom", name, p, "3") for p in CORRELATIONS for name in mixtures),
        *(_spreads_more(final, "OMoE", "MMoE", p, "4") for p in CORRELATIONS if p < 1),
    ]
    return [
        {
            "hypothesis": result.hypothesis,
            "correlation": result.correlation,
            "figures": result.figures,
            "effect": result.effect,
            "p": "<0.0001" if result.p < 1e-4 else f"{result.p:.4f}",
            "shown": "yes" if result.p < LEVEL / len(results) else "no",
        }
        for result in results
    ]


def _lower(final: dict[tuple[str, float], np.ndarray], low: str, high: str, p: float, number: str) -> Result:
    """Test that a structure's losses are lower than another's."""
    a, b = final[low, p], final[high, p]
    return Result(
        f"{number}: loss of {low} < {high}",
        f"{p:g}",
        f"{Estimate.of(a):.4f}, {Estimate.of(b):.4f}",
        f"{a.mean() / b.mean() - 1:+.1%}; lower in {np.sum(a < b)} of {len(a)} seeds",
        float(stats.wilcoxon(a, b, alternative="less").pvalue),
    )


def _near(final: dict[tuple[str, float], np.ndarray], p: float) -> Result:
    """Test that the losses of OMoE and MMoE are the same but for `MARGIN`, by two one-sided t-tests."""
    a, b = final["OMoE", p], final["MMoE", p]
    ratio, bound = np.log(a / b), math.log1p(MARGIN)
    above = stats.ttest_1samp(ratio, -bound, alternative="greater").pvalue
    below = stats.ttest_1samp(ratio, bound, alternative="less").pvalue
    return Result(
        "2: loss of OMoE near MMoE",
        f"{p:g}",
        f"{Estimate.of(a):.4f}, {Estimate.of(b):.4f}",
        f"ratio {math.exp(ratio.mean()):.3f}",
        float(max(above, below)),
    )


def _grows(final: dict[tuple[str, float], np.ndarray], related: float, unrelated: float) -> Result:
    """Test that OMoE's loss over MMoE's is larger where the tasks are less related."""
    close, far = (np.log(final["OMoE", p] / final["MMoE", p]) for p in (related, unrelated))
    return Result(
        "2: OMoE / MMoE grows as correlation falls",
        f"{related:g} to {unrelated:g}",
        f"{math.exp(close.mean()):.3f}, {math.exp(far.mean()):.3f}",
        f"larger in {np.sum(far > close)} of {len(far)} seeds",
        float(stats.wilcoxon(far, close, alternative="greater").pvalue),
    )


def _spreads_more(
    final: dict[tuple[str, float], np.ndarray], wide: str, narrow: str, p: float, number: str
) -> Result:
    """Test that a structure's losses lie farther from their median than another's."""
    a, b = final[wide, p], final[narrow, p]
    from_median = [np.abs(losses - np.median(losses)) for losses in (a, b)]
    return Result(
        f"{number}: spread of {wide} > {narrow}",
        f"{p:g}",
        f"SD {a.std(ddof=1):.4f}, {b.std(ddof=1):.4f}",
        f"ratio {a.std(ddof=1) / b.std(ddof=1):.2f}; worst seed {a.max():.3f}, {b.max():.3f}",
        float(stats.ttest_rel(*from_median, alternative="greater").pvalue),
    )


# -- Plots ----------------------------------------------------------------------------------------------


def _curves(losses: Losses, p: float, setup: Setup, axes: Axes) -> None:
    for name, colour in COLOURS.items():
        axes.plot(_measured_at(setup), losses[name, p].mean(1), color=colour, label=name)
    axes.set(xlabel="step", ylabel="mean loss over seeds", yscale="log")
    axes.legend(frameon=False)


def _histogram(final: dict[tuple[str, float], np.ndarray], p: float, axes: Axes) -> None:
    together = np.concatenate([final[name, p] for name in STRUCTURES])
    bins = np.linspace(together.min(), together.max(), 30).tolist()
    for name, colour in COLOURS.items():
        axes.hist(final[name, p], bins=bins, histtype="step", linewidth=1.6, color=colour, label=name)
    axes.set(xlabel="final loss", ylabel="seeds")
    axes.legend(frameon=False)
