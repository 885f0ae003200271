import json
import math

import numpy as np
import pytest
import torch

from watchrank.errors import InputError
from watchrank.studies.multi_task import (
    CORRELATIONS,
    STRUCTURES,
    Setup,
    Source,
    hypotheses,
    multi_task,
    new_model,
    train,
)
from watchrank.studies.runs import Runs
from watchrank.workspace import Workspace

SMALL = Setup(steps=6, batch=8, held_out=16, points=3)


def test_tasks_are_the_papers_and_as_related_as_asked():
    source = Source([3, 4])
    x, noise = source.draw(20_000)
    assert noise.var().item() == pytest.approx(0.01, rel=0.03)
    u1, u2 = source.directions[1].T
    for p in CORRELATIONS:
        w = torch.stack([u1, p * u1 + math.sqrt(1 - p**2) * u2])
        z = x[1] @ w.T
        assert torch.corrcoef(z.T)[0, 1].item() == pytest.approx(p, abs=0.02)
        y = z + torch.sin(z + 1) + torch.sin(2 * z + 2) + torch.sin(3 * z + 3) + noise[1]
        torch.testing.assert_close(source.labels(x, noise, p)[1], y, rtol=0, atol=1e-4)


def test_seeds_have_rows_and_weights_of_their_own_whichever_others_there_are():
    both, alone = Source([3, 4]), Source([4])
    (x, noise), (x_alone, noise_alone) = both.draw(5), alone.draw(5)
    assert not torch.equal(x[0], x[1])
    torch.testing.assert_close(x[1:], x_alone)
    torch.testing.assert_close(noise[1:], noise_alone)
    assert not torch.equal(both.draw(5)[0], x)
    for name in STRUCTURES:
        one, other = (new_model(name, seed).state_dict() for seed in (3, 4))
        assert not any(torch.equal(one[key], other[key]) for key in one)


def test_the_structures_have_as_many_parameters():
    sizes = [sum(parameter.numel() for parameter in new_model(name, 0).parameters()) for name in STRUCTURES]
    assert max(sizes) / min(sizes) < 1.02


def test_a_seed_learns_among_others_as_it_would_alone():
    together = train([5, 6, 7], SMALL)
    for (name, p), found in together.items():
        assert found.shape == (3, 3)
        assert found[:, 1] == pytest.approx(_alone(name, p, 6), rel=1e-4)


def _alone(name: str, p: float, seed: int) -> list[float]:
    """Train one model by torch's own loop; return the held-out loss after every second step."""
    source, model = Source([seed]), new_model(name, seed)
    held_out, losses = source.draw(SMALL.held_out), []
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(SMALL.steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / SMALL.steps)) / 2
        x, noise = source.draw(SMALL.batch)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x[0]), source.labels(x, noise, p)[0]).backward()
        optimizer.step()
        with torch.no_grad():
            error = model(held_out[0][0]) - source.labels(*held_out, p)[0]
        losses.append(error.square().mean().item())
    return losses[1::2]


def test_hypotheses_are_shown_where_the_losses_say_so():
    rng = np.random.default_rng(0)
    usual, wide = rng.normal(0.03, 0.001, 30), rng.normal(0.05, 0.01, 30)
    final = {(name, p): rng.normal(usual, 1e-5) for name in STRUCTURES for p in CORRELATIONS}
    assert shown(final) == {("2: loss of OMoE near MMoE", "1")}
    final |= {("ShareBottom", 0.5): wide, ("OMoE", 0.5): usual + 0.01}
    assert shown(final) == {
        ("1: loss of OMoE < ShareBottom", "0.5"),
        ("1: loss of MMoE < ShareBottom", "0.5"),
        ("2: loss of MMoE < OMoE", "0.5"),
        ("2: loss of OMoE near MMoE", "1"),
        ("2: OMoE / MMoE grows as correlation falls", "1 to 0.5"),
        ("3: spread of ShareBottom > OMoE", "0.5"),
        ("3: spread of ShareBottom > MMoE", "0.5"),
    }
    final |= {("OMoE", 1.0): 1.06 * usual, ("OMoE", 0.9): wide}
    assert ("2: loss of OMoE near MMoE", "1") not in shown(final)
    assert ("4: spread of OMoE > MMoE", "0.9") in shown(final)


def shown(final: dict[tuple[str, float], np.ndarray]) -> set[tuple[str, str]]:
    return {(row["hypothesis"], row["correlation"]) for row in hypotheses(final) if row["shown"] == "yes"}


def test_the_page_has_every_hypothesis_and_plot(tmp_path):
    runs = Runs(Workspace(tmp_path), (), seeds=3)
    study = multi_task(runs, SMALL)
    study.write(runs, "multi_task")
    rows = json.loads((tmp_path / "studies" / "multi_task.json").read_text())["rows"]
    assert [row["hypothesis"][0] for row in rows] == [*"111111", *"2222", *"333333", *"44"]
    assert (tmp_path / "studies" / "multi_task.html").read_text().count("<svg") == 6
    assert "3 seeds; 6 steps of 8 fresh rows" in study.note


@pytest.mark.parametrize(("overrides", "seeds"), [(("training.epochs=1",), 3), ((), 1)])
def test_what_the_study_cannot_do_is_said(tmp_path, overrides, seeds):
    with pytest.raises(InputError, match=r"training\.epochs=1|--seeds 50"):
        multi_task(Runs(Workspace(tmp_path), overrides, seeds))
