"""The ranker: watch time alone, or several tasks over one input layer.

Covington, Adams, Sargin: Deep Neural Networks for YouTube Recommendations, RecSys 2016, section 4: a stack of
ReLU layers over the input layer ends in one logit z a candidate. Trained by weighted logistic regression
(`training.losses`), exp(z) is the expected watch time in seconds. For several tasks the stack is one of the
structures of `models.multi_task`, with a tower a task.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from watchrank.config import HIDDEN_PRESETS, RankingSettings, TaskSettings
from watchrank.errors import InputError
from watchrank.models.calibration import Calibration
from watchrank.models.inputs import Features, InputLayer
from watchrank.models.multi_task import MixtureOfExperts, ShareBottom, Towers
from watchrank.schema import CANDIDATES, RANKING_OUTPUTS, SCORE, score_weight
from watchrank.schema import Tensor as TensorSpec

POSITIONS = 128
"""Places that the position tower tells apart; those below count as the last one."""

POSITION_WIDTH = 16
POSITION_DROPOUT = 0.1

LARGEST_WEIGHT = 1e6
"""Of a task in the score, up or down: the score stays finite."""


class RankingModel(nn.Module):
    """Features of B requests and their K candidates to logits [B, K, T] of T tasks.

    The last step is a calibration of each task, fitted on a later window after training.
    """

    scale: Tensor

    def __init__(self, inputs: InputLayer, settings: RankingSettings) -> None:
        super().__init__()
        self.inputs = inputs
        self.kind = settings.model
        self.tasks = settings.trained_tasks
        self.max_logit = math.log(settings.max_watch_seconds)
        self.structure = _structure(inputs.width, settings)
        towers = () if settings.model == "ranking" else settings.tower_hidden
        self.towers = Towers(self.structure.width, towers, len(self.tasks))
        self.position = PositionTower(len(self.tasks)) if settings.position_bias else None
        self.calibrations = nn.ModuleList(Calibration() for _ in self.tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)), requires_grad=False)
        self.register_buffer("scale", torch.ones(len(self.tasks)))

    def forward(self, x: Features) -> Tensor:
        """Return the logits of every candidate [B, K, T]; of a regression, the prediction.

        With `position` [B, K] among the features, as in training, they are those of a video at that place.
        """
        logits = self.towers(self.structure(self.inputs(x).flatten(0, 1)))  # [B * K, T]
        logits = logits.unflatten(0, x["video_id"].shape) * self.scale
        if self.position is not None and "position" in x:
            logits = logits + self.position(x["position"])
        parts = [calibration(logits[..., task]) for task, calibration in enumerate(self.calibrations)]
        return torch.stack(parts, -1)

    def gates(self, x: Features) -> Tensor | None:
        """Return how each task weighs the experts [B * K, T, E], or None where there are none."""
        if not isinstance(self.structure, MixtureOfExperts):
            return None
        return self.structure.gates(self.inputs(x).flatten(0, 1))


class PositionTower(nn.Module):
    """What the place in the list adds to each task's logit: places [B, K] to [B, K, T]; 0 where unknown.

    Zhao et al.: Recommending What Video to Watch Next: A Multitask Ranking System, RecSys 2019, section 4.3.
    Left out at serving. One place in ten is hidden in training, so that the ranker learns to do without.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.place = nn.Embedding(POSITIONS, POSITION_WIDTH)
        self.bias = nn.Linear(POSITION_WIDTH, tasks, bias=False)

    def forward(self, position: Tensor) -> Tensor:
        """Return the biases; a position below 0 is unknown."""
        known = position >= 0
        if self.training:
            known = known & (torch.rand(position.shape, device=position.device) >= POSITION_DROPOUT)
        bias: Tensor = self.bias(F.relu(self.place(position.clamp(0, POSITIONS - 1))))
        return bias * known.unsqueeze(-1)


class Answers(nn.Module):
    """Each task's answer [B, K, T]: a probability, seconds of at most `max_watch_seconds`, a mean."""

    def __init__(self, model: RankingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Features) -> Tensor:
        """Return the answers; those of probabilities and seconds are always finite."""
        logits, model = self.model(x), self.model
        parts = []
        for place, task in enumerate(model.tasks):
            z = logits[..., place]
            match task.kind:
                case "watch_time":
                    parts.append(torch.exp(z.clamp(max=model.max_logit)))
                case "binary":
                    parts.append(torch.sigmoid(z))
                case "regression":
                    parts.append(z)
        return torch.stack(parts, -1)


class ServedRanking(nn.Module):
    """The served head: what `served_outputs` names, each [B, K].

    The score is the sum of each task's answer times its weight: with the watch time's weight 1, seconds, to
    which a like adds as many as it is worth. A request may bring weights [B, 1] of its own, as
    `weight_inputs` names them; NaN stands for those given here.
    """

    def __init__(self, model: RankingModel, weights: Mapping[str, float] | None = None) -> None:
        """Make the head.

        Args:
            model: the ranker.
            weights: of the tasks in the score, by name; 0 for the others.

        Raises:
            InputError: a weight is of no task.
        """
        super().__init__()
        self.answers = Answers(model)
        self.tasks = model.tasks
        self.weights = dict(weights or {})
        names = [task.name for task in model.tasks]
        if unknown := sorted(self.weights.keys() - set(names)):
            raise InputError(
                f"export.score_weights names {', '.join(unknown)}; the ranker's tasks are {', '.join(names)}."
            )

    @property
    def maxima(self) -> list[float]:
        """What no output exceeds, up or down."""
        longest = math.exp(self.answers.model.max_logit)
        largest = {"watch_time": longest, "binary": 1.0, "regression": math.inf}
        answers = [largest[task.kind] for task in self.tasks]
        return answers if len(answers) == 1 else [*answers, LARGEST_WEIGHT * sum(answers)]

    def forward(self, x: Features) -> tuple[Tensor, ...]:
        """Return the answers of the tasks and, when there are several, the score."""
        answers: tuple[Tensor, ...] = self.answers(x).unbind(-1)
        if len(answers) == 1:
            return answers
        score = torch.zeros_like(answers[0])
        for task, spec, answer in zip(self.tasks, weight_inputs(self.tasks), answers, strict=True):
            asked = x[spec.name]
            weight = torch.where(torch.isnan(asked), self.weights.get(task.name, 0.0), asked)
            score = score + weight.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT) * answer
        return (*answers, score)


def served_outputs(tasks: tuple[TaskSettings, ...]) -> list[TensorSpec]:
    """Return the outputs of `ServedRanking`, in its order."""
    outputs = [_output(task) for task in tasks]
    return [*outputs, SCORE] if len(tasks) > 1 else outputs


def weight_inputs(tasks: tuple[TaskSettings, ...]) -> list[TensorSpec]:
    """Return the inputs by which a request weighs the tasks in the score; one task needs none."""
    return [score_weight(task.name) for task in tasks] if len(tasks) > 1 else []


def _output(task: TaskSettings) -> TensorSpec:
    if task.kind == "watch_time":
        return RANKING_OUTPUTS[0]
    name, description = {
        "binary": (f"{task.name}_probability", f"probability of {task.label}"),
        "regression": (f"expected_{task.name}", f"expected {task.label}"),
    }[task.kind]
    return TensorSpec(name=name, dtype="float32", dims=(CANDIDATES,), description=description)


def _structure(width: int, settings: RankingSettings) -> ShareBottom | MixtureOfExperts:
    tasks = len(settings.trained_tasks)
    if settings.model in ("ranking", "share_bottom"):
        return ShareBottom(width, HIDDEN_PRESETS[settings.hidden], tasks)
    gates = tasks if settings.model == "mmoe" else 1
    return MixtureOfExperts(width, settings.expert_hidden, settings.experts, tasks, gates=gates)
