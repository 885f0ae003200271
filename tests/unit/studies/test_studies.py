import json

import numpy as np
import pytest

from watchrank.studies.ranking import STUDIES
from watchrank.studies.runs import Estimate, Runs
from watchrank.workspace import Workspace

SMALL = ("ranking.hidden=256", "ranking.quantiles=16", "training.epochs=4", "training.batch_size=256")


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory) -> Runs:
    """Two seeds of a small model; the studies are kept apart from the shared workspace."""
    root = tmp_path_factory.mktemp("studies")
    for name in ("dataset", "truth"):
        (root / name).symlink_to(getattr(prepared.place, name))
    return Runs(Workspace(root), SMALL, seeds=2)


def test_an_estimate_is_students_interval():
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2
    assert estimate.half_width == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert f"{estimate:.2f}" == "2.00 ± 2.48"
    assert np.isnan(Estimate.of([5.0]).half_width)


def test_the_papers_objective_overstates_where_clicks_are_frequent(runs):
    study = STUDIES["objective"](runs)
    study.write(runs, "objective")
    written = json.loads((runs.place.studies / "objective.json").read_text())["rows"]
    rows = {row["surface"]: row for row in written}
    assert rows.keys() == {"home", "feed", "all"}
    factor = {name: float(row["E[T]/(1-P) / E[T]"]) for name, row in rows.items()}
    assert factor["feed"] > 1.5 > factor["home"] > 1
    youtube, exact = (float(rows["feed"][name].split()[0]) for name in ("youtube", "exact"))
    assert youtube > 1.3 * exact
    assert "<svg" in (runs.place.studies / "objective.html").read_text()


def test_runs_are_made_once_and_differ_by_seed(runs):
    (first, second) = runs.of({"default": []})["default"]
    assert not np.array_equal(first.predictions, second.predictions)
    stamp = (first.folder / "predictions.npy").stat().st_mtime_ns
    again = runs.of({"the same": ["ranking.powers=true"]})["the same"][0]
    assert again.folder == first.folder
    assert (again.folder / "predictions.npy").stat().st_mtime_ns == stamp


def test_the_other_studies_compare_their_variants(runs):
    weighting = STUDIES["weighting"](runs)
    assert [row["weighting"] for row in weighting.rows] == ["gradient", "resample"]
    assert weighting.rows[0]["training time"] == "× 1.00"
    assert float(weighting.rows[0]["spread over seeds, SD of ln(predicted)"]) > 0
    inputs = STUDIES["inputs"](runs)
    assert [row["variant"] for row in inputs.rows][:2] == ["default", "without powers"]
    assert inputs.rows[0]["per-user loss ↓"] != inputs.rows[1]["per-user loss ↓"]
