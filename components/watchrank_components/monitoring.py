"""Components that watch what serves: drift of features, skew between the offline and the online store."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from watchrank_components.image import component


@component
def report_skew(
    store: Input[Dataset],
    workspace: str,
    feature_repo: str,
    sample: int,
    metrics: Output[Metrics],
    report: Output[HTML],
):
    """Compare the online store's features of a sample of users and videos with the offline ones.

    Args:
        store: of `build_features`.
        workspace: holds Feast's registry and online store.
        feature_repo: folder of the Feast definitions.
        sample: users, and videos, to compare.
        metrics: how many features were compared, and how many differ.
        report: the page.
    """
    import shutil
    from pathlib import Path

    from watchrank.evaluation.skew import sampled_ids, skew_report
    from watchrank.feature_store import open_store
    from watchrank.schema import USER_PROFILE, VIDEO_PROFILE
    from watchrank.workspace import Workspace

    place, features = Workspace(Path(workspace)), Path(store.metadata["folder"])
    feast = open_store(Path(feature_repo), features, place.feature_store)
    users, videos = (sampled_ids(features, table, sample) for table in (USER_PROFILE, VIDEO_PROFILE))
    folder = Path(report.path).parent / "skew"
    found = skew_report(feast, users, videos, None, folder)
    metrics.log_metric("features", len(found["features"]))
    metrics.log_metric("differing", len(found["differing"]))
    shutil.copy(folder / "skew.html", report.path)


@component
def report_drift(
    dataset: Input[Dataset],
    request_log: str,
    events: str,
    drift: dict,
    metrics: Output[Metrics],
    report: Output[HTML],
):
    """Hold the features of now against those that the ranker was trained on.

    Args:
        dataset: of `build_dataset`.
        request_log: folder of a request log; empty for the test window of the dataset.
        events: folder of the events that followed the request log; empty for none.
        drift: settings of the report.
        metrics: the largest population stability index, and how many features have shifted.
        report: the page.
    """
    import shutil
    from pathlib import Path

    from watchrank.config import DriftSettings, parse
    from watchrank.datasets.ranking import RankingDataset
    from watchrank.evaluation.drift import drift_report

    data, settings = RankingDataset.open(Path(dataset.path)), parse(DriftSettings, drift, "drift")
    folder = Path(report.path).parent / "drift"
    current = Path(request_log) if request_log else data.split("test")
    followed = Path(events) if request_log and events else None
    found = drift_report(data.split("train"), current, folder, followed, settings)
    metrics.log_metric("largest_psi", found["features"][0]["psi"])
    shifted = [feature for feature in found["features"] if feature["psi"] >= settings.moderate_psi]
    metrics.log_metric("shifted", len(shifted))
    shutil.copy(folder / "drift.html", report.path)
