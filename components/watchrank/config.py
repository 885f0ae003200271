"""Every setting there is, on one page, with its default and its unit.

Settings are frozen and refuse unknown keys. They come from a YAML file and from `--set a.b=value`;
nothing is read from the environment.
"""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from watchrank.errors import InputError


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys fail."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class SparkSessionSettings(Settings):
    """The Spark session; one that spark-submit gives is taken as it is where this says nothing."""

    master: str | None = Field(None, description="the cluster; without it spark-submit's, or else local[*]")
    conf: dict[str, str] = Field({}, description="Spark's own properties, such as spark.driver.memory")
    folder: Path | None = Field(
        None,
        description="temporary files, where driver and executors see them; the system's when not set",
    )


class EngineSettings(Settings):
    """The engine that runs ingestion and features."""

    kind: Literal["duckdb", "spark"] = Field("duckdb", description="spark needs the extra of that name")
    memory_limit: str = Field("4GB", description="memory DuckDB may take before it spills to disk")
    threads: int = Field(0, ge=0, description="threads DuckDB may use; 0 for all cores")
    spark: SparkSessionSettings = SparkSessionSettings()

    @property
    def duckdb(self) -> "EngineSettings":
        """DuckDB in the same memory, for what Spark has no part in."""
        return self.model_copy(update={"kind": "duckdb"})


class SimulationSettings(Settings):
    """A log with known expected watch time."""

    seed: int = 0
    start: date = Field(date(2026, 1, 1), description="first day of the log")
    days: int = Field(14, ge=1)
    impressions: int = Field(1_000_000, ge=1, description="how many impressions, about")
    users: int = Field(8_000, ge=1)
    videos: int = Field(5_000, ge=1)
    channels: int = Field(400, ge=1)
    slate: int = Field(8, ge=1, description="impressions a request")
    chunk_impressions: int = Field(1_000_000, ge=1, description="impressions held in memory at once")


class IngestionSettings(Settings):
    """What counts as a good row."""

    max_watch_seconds: float = Field(86_400, gt=0, description="a longer watch is absurd")
    max_watch_ratio: float = Field(
        20, gt=0, description="a watch longer than this times the duration is wrong"
    )
    as_of: datetime | None = Field(None, description="later rows are in the future; now when not set")
    max_quarantine_share: float = Field(
        0.05, ge=0, le=1, description="above this share of bad rows the run stops"
    )
    max_quarantine_share_a_day: float = Field(
        0.5, ge=0, le=1, description="above this share of a day's bad rows the run stops"
    )
    max_user_rows_a_day: int = Field(
        5_000, ge=1, description="a user with more impressions, or searches, in a day is no person"
    )


class ValidationSettings(Settings):
    """Bounds of the suites that go beyond the schema."""

    min_rows_a_day: int = Field(100, ge=1)
    max_volume_change: float = Field(
        10, gt=1, description="a day's rows against the median day's, as a factor"
    )
    min_click_rate: float = Field(0.001, ge=0, le=1)
    max_click_rate: float = Field(0.95, ge=0, le=1)
    max_user_share: float = Field(0.2, gt=0, le=1, description="of a day's rows, those of its busiest user")
    max_new_share: float = Field(
        0.95,
        gt=0,
        le=1,
        description="of a day's rows, those of users, or videos, that no day before has; from the 8th day on",
    )
    max_repeated_rise: float = Field(
        0.2,
        gt=0,
        le=1,
        description="share of a day's rows whose user and video were there before, on it or the day before, "
        "above the median day's",
    )
    batch_rows: int = Field(2_000_000, ge=1, description="rows validated at once; bounds memory")


class FeatureSettings(Settings):
    """How often features are renewed."""

    activity_cadence_seconds: int = Field(
        0, ge=0, description="cadence of user activity snapshots; 0 for one after every event"
    )
    statistics_cadence_seconds: int = Field(3_600, ge=1, description="cadence of video statistics")
    user_statistics_cadence_seconds: int = Field(86_400, ge=1, description="cadence of user statistics")
    user_statistics_lag_seconds: int = Field(
        86_400, ge=0, description="how long user statistics are held back; see the README on why"
    )


class SplitSettings(Settings):
    """Which days train, validate and test. The test window is the last one."""

    until: date | None = Field(
        None, description="last day to test; nothing later is seen. The log's last day when not set"
    )
    train_days: int | None = Field(
        None, ge=1, description="days to train on, before those that validate and test; all when not set"
    )
    test_days: int = Field(2, ge=1)
    validation_days: int = Field(2, ge=0, description="days that stop training and calibrate")


HIDDEN_PRESETS: dict[str, tuple[int, ...]] = {
    "none": (),
    "256": (256,),
    "512": (512,),
    "1024": (1024,),
    "512-256": (512, 256),
    "1024-512": (1024, 512),
    "1024-512-256": (1024, 512, 256),
}
"""The seven variants of Covington et al. 2016, table 1."""


def _preset(name: Any) -> str:
    """Take 512, as YAML reads it, for "512"; refuse what is no preset."""
    if str(name) not in HIDDEN_PRESETS:
        raise ValueError(f"must be one of {', '.join(HIDDEN_PRESETS)}")
    return str(name)


class TaskSettings(Settings):
    """What a tower of the ranker predicts of an impression."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Literal["binary", "watch_time", "regression"] = Field(
        description="a probability, seconds under `training.objective`, or a mean"
    )
    label: str = Field(description="column of the impressions; where it is missing the task has no part")
    weight: float = Field(1.0, gt=0, description="of the task's loss")
    score_weight: float = Field(
        0.0, description="of the task's answer in the score, for each request to change"
    )


WATCH_TIME = TaskSettings(name="watch_time", kind="watch_time", label="watch_seconds")
CLICK = TaskSettings(name="click", kind="binary", label="clicked")

ModelKind = Literal["ranking", "share_bottom", "omoe", "mmoe"]


class RankingSettings(Settings):
    """The architecture of the ranking model."""

    model: ModelKind = Field("ranking", description="watch time alone, or a structure for several tasks")
    tasks: tuple[TaskSettings, ...] = Field(
        (CLICK, WATCH_TIME.model_copy(update={"weight": 0.1})),  # losses of about one size
        min_length=1,
        description="what the structures for several tasks predict",
    )
    hidden: Annotated[str, BeforeValidator(_preset)] = Field(
        "512-256",
        description=f"hidden layers of ranking and share_bottom: one of {', '.join(HIDDEN_PRESETS)}",
    )
    experts: int = Field(4, ge=2, description="experts of omoe and mmoe")
    expert_hidden: tuple[PositiveInt, ...] = Field(
        (256, 128), min_length=1, description="widths of an expert's layers"
    )
    tower_hidden: tuple[PositiveInt, ...] = Field((64,), description="widths of a task's own layers")
    position_bias: bool = Field(
        False, description="learn what the place in the list does by a tower that is left out at serving"
    )
    exclude: tuple[str, ...] = Field(
        ("watched_seconds", "candidate_source"),
        description="raw features to leave out, beside those the source lacks; see the README on these",
    )
    video_dim: int = Field(16, ge=1, description="width of a video's embedding")
    channel_dim: int = Field(8, ge=1, description="width of a channel's embedding")
    category_dim: int = Field(
        8, ge=1, description="width of languages', categories', surfaces' ... embeddings"
    )
    max_videos: int = Field(1_000_000, ge=1, description="videos with an embedding: the most clicked")
    max_channels: int = Field(200_000, ge=1, description="channels with an embedding: the most clicked")
    quantiles: int = Field(64, ge=2, description="stored quantiles of a continuous feature")
    id_dropout: float = Field(
        0.3, ge=0, lt=1, description="share of training impressions whose video and channel count as unknown"
    )
    normalisation: Literal["quantile", "none"] = Field(
        "quantile", description="continuous features as quantiles, or as they are (an ablation)"
    )
    powers: bool = Field(True, description="give the network quantiles x, x squared and the root of x")
    max_watch_seconds: float = Field(86_400, gt=1, description="no answer exceeds this: exp cannot overflow")

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: tuple[TaskSettings, ...]) -> tuple[TaskSettings, ...]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks have one name: {', '.join(names)}")
        if sum(task.kind == "watch_time" for task in tasks) > 1:
            raise ValueError("only one task may be of the kind watch_time")
        return tasks

    @property
    def trained_tasks(self) -> tuple[TaskSettings, ...]:
        """What the model predicts, in the order of its towers."""
        return (WATCH_TIME,) if self.model == "ranking" else self.tasks


Objective = Literal["exact", "youtube", "logistic"]
Weighting = Literal["gradient", "resample"]


class FitSettings(Settings):
    """One run of `fit`."""

    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU when there is one")
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(2_048, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    embedding_rate: float = Field(
        0.1, gt=0, description="learning rate of embedding tables, as a share of the others'"
    )
    weight_decay: float = Field(1e-5, ge=0)
    patience: int = Field(2, ge=1, description="epochs without a better validation loss before it stops")
    checkpoint_steps: int = Field(500, ge=1, description="steps between two checkpoints")
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the hidden layers in training; the answer is float32 in any case"
    )
    compile: bool = Field(False, description="let torch.compile fuse the model's kernels")
    sparse_rows: int = Field(
        500_000,
        ge=1,
        description="embedding tables of so many rows are trained by the rows of each batch alone",
    )


class TrainingSettings(FitSettings):
    """The training of the ranking model."""

    objective: Objective = Field("exact", description="what exp(logit) is: see `training.losses`")
    weighting: Weighting = Field(
        "gradient", description="weigh an impression's gradient, or draw it in proportion to its weight"
    )
    calibrate: bool = Field(True, description="fit the calibration on the validation window")
    task_weighting: Literal["fixed", "uncertainty"] = Field(
        "fixed", description="weigh the tasks' losses as set, or by learned uncertainties beside that"
    )


class ExampleSettings(Settings):
    """Which watches are examples of candidate generation."""

    positive: Literal["completed", "clicked", "long_view"] = Field(
        "completed", description="what counts as a watch to predict"
    )
    completed_share: float = Field(
        0.5, gt=0, le=1, description="share of the duration that completes a watch"
    )
    max_a_user: int = Field(50, ge=1, description="training examples a user, the latest")


class CandidateSettings(Settings):
    """The architecture of candidate generation."""

    depth: int = Field(
        3,
        ge=0,
        le=4,
        description="hidden layers of the user tower, each twice as wide as the next; 0: linear",
    )
    dim: int = Field(128, ge=1, description="width of the last layer and of the videos' vectors")
    tied: bool = Field(False, description="one table for watched videos and for the softmax's weights")
    recent: int = Field(5, ge=0, le=50, description="last watches that also make a bag of their own; 0: none")
    exclude: tuple[str, ...] = Field((), description="features to leave out, beside those the source lacks")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the embedded inputs left out in training")
    feature_dim: int = Field(16, ge=1, description="width of the tokens' and categories' embeddings")
    max_videos: int = Field(2_000_000, ge=1, description="videos with a class: the most watched")
    max_tokens: int = Field(200_000, ge=1, description="search tokens with an embedding: the most frequent")


class CandidateTrainingSettings(FitSettings):
    """The training of candidate generation."""

    epochs: int = Field(6, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    embedding_rate: float = Field(1.0, gt=0)
    loss: Literal["full", "sampled", "in_batch", "two_level"] = Field(
        "in_batch", description="the softmax: see `training.softmax`"
    )
    negatives: int = Field(4_096, ge=1, description="shared negatives a batch of the sampled softmax")
    background: Literal["unigram", "log_uniform", "uniform"] = Field(
        "unigram", description="what negatives are drawn from"
    )
    correction: bool = Field(True, description="subtract the log of the expected count (logQ)")


class TextSettings(Settings):
    """Text matching of searches and titles: its examples, its towers and their loss."""

    positive: Literal["auto", "told", "first_click"] = Field(
        "auto",
        description="the watch that a search led to: what the log tells, or the first click after it; "
        "auto: told where the log has it",
    )
    click_seconds: int = Field(600, ge=1, description="how long after a search the first click may come")
    max_words: int = Field(32, ge=1, description="words of a title that are read")
    max_ngrams: int = Field(12, ge=1, description="n-grams of a word that are read")
    max_ngram_ids: int = Field(30_000, ge=1, description="n-grams with an embedding: the most frequent")
    tower: Literal["bag_of_words", "cnn", "lstm"] = Field(
        "cnn", description="how a text becomes a vector; both towers share it"
    )
    width: int = Field(300, ge=1, description="of a word's vector, and of the layers after it")
    dim: int = Field(128, ge=1, description="width of the texts' vectors")
    fields: bool = Field(True, description="read a video's channel and category beside its title")
    loss: Literal["in_batch", "negatives"] = Field(
        "in_batch", description="against the batch's videos (logQ), or against each search's own negatives"
    )
    negatives: int = Field(4, ge=1, description="random videos a search of the loss `negatives`")
    gamma: float = Field(10, gt=0, lt=100, description="smoothing of the softmax over cosines")
    gamma_learned: bool = Field(True, description="whether gamma is trained, from that value on")


class TextTrainingSettings(FitSettings):
    """The training of text matching."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    embedding_rate: float = Field(1.0, gt=0)
    sparse_rows: int = Field(1, ge=1)


class IndexSettings(Settings):
    """The index of candidate generation."""

    k: int = Field(200, ge=1, description="videos an answer")
    search_k: int = Field(50, ge=1, description="videos that the user's last search adds as candidates")
    search_seconds: int = Field(86_400, ge=0, description="how long after a search it adds candidates")
    variant: Literal["auto", "exact", "inverted_file"] = Field(
        "auto", description="how videos are searched; auto: exact up to 200,000, else an inverted file"
    )
    lists: int | None = Field(
        None, ge=1, description="lists of the inverted file; about 8 times the root of N"
    )
    probes: int | None = Field(None, ge=1, description="lists that a search reads; 32 or more")


class ToleranceSettings(Settings):
    """How much worse than the champion a metric of the ranker may be, as a share of the champion's value."""

    per_user_loss: float = Field(0.03, ge=0, description="of the watch time")
    log_loss: float = Field(0.02, ge=0, description="of a probability")
    auc: float = Field(0.01, ge=0, description="of a probability")
    rmse: float = Field(0.02, ge=0, description="of a regression")


class GateSettings(Settings):
    """What candidate generation and the ranker must beat before they may be released."""

    baselines: tuple[Literal["popularity", "segment_popularity", "last_items_knn"], ...] = Field(
        ("popularity", "last_items_knn"), description="of candidate generation"
    )
    metrics: tuple[str, ...] = Field(
        ("recall@100", "map"), description="of candidate generation: each must be above each baseline's"
    )
    tolerances: ToleranceSettings = ToleranceSettings()
    min_sum_ratio: float = Field(0.9, gt=0, description="least sum of a task's answers over its labels'")
    max_sum_ratio: float = Field(1.1, gt=0, description="greatest sum of a task's answers over its labels'")
    segment_tolerance: float = Field(
        0.1,
        ge=0,
        description="in a segment: of the loss, as a share of the champion's; of |ln sum ratio|",
    )
    min_segment_impressions: int = Field(1_000, ge=1, description="a smaller segment is not judged")
    resamples: int = Field(500, ge=200, description="resamples of users, for the confidence intervals")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals")
    allow_fewer_tasks: bool = Field(False, description="let the ranker lack a task that the champion serves")
    force: bool = Field(False, description="let a ranker pass that fails; the reasons are kept")


class ExportSettings(Settings):
    """The ONNX file: what the oldest supported Triton (24.10) loads, and how exact it must be."""

    opset: int = Field(20, le=21)
    ir_version: int = Field(10, le=10)
    tolerance: float = Field(1e-4, gt=0, description="largest relative difference to torch, of any row")
    parity_rows: int = Field(2_000, ge=1)
    score_weights: dict[str, float] = Field(
        {"watch_time": 1.0},
        description="what a unit of each task's answer is worth in the score, which `recommend` ranks by",
    )


class DeploymentSettings(Settings):
    """Where Triton listens and what it serves from."""

    grpc_url: str = "127.0.0.1:8001"
    http_url: str = "127.0.0.1:8000"
    metrics_url: str = "127.0.0.1:8002"
    timeout_seconds: float = Field(30, gt=0)
    rollout_seconds: float = Field(
        600, gt=0, description="within which a Triton that follows a release store must serve what it names"
    )
    keep_releases: int = Field(2, ge=1, description="releases that stay loaded; the others are unloaded")
    max_graph_bytes: int = Field(
        2**31 - 1, ge=1, le=2**31 - 1, description="a larger ONNX file of a release is refused"
    )
    admin_key_file: Path | None = Field(
        None, description="file of the key that the server wants for loading and unloading models"
    )


class ServingSettings(Settings):
    """The HTTP service in front of Triton. Each process of it counts for itself."""

    host: str = "127.0.0.1"
    port: int = Field(8_080, ge=1, le=65_535)
    timeout_seconds: float = Field(
        2, gt=0, description="how long an answer may take; what is left out by then has a fallback"
    )
    retry_seconds: float = Field(
        5, ge=0, description="how long Triton or the online store is left alone after it failed"
    )
    challenger: int | None = Field(
        None, ge=1, description="release to try beside what serves; `watchrank deploy --no-switch` loads it"
    )
    challenger_share: float = Field(
        0.05, ge=0, le=1, description="share of the users whom it answers, or for whom it is asked"
    )
    challenger_mode: Literal["canary", "shadow"] = Field(
        "canary", description="canary: it answers its users; shadow: it is asked too, and only measured"
    )
    log_share: float = Field(0, ge=0, le=1, description="share of the users whose requests are logged")
    max_request_bytes: int = Field(100_000, ge=1, description="a longer request is refused")
    receive_seconds: float = Field(10, gt=0, description="how long a request's body may take to come in")
    max_users: int = Field(100, ge=1, description="users a request")
    requests_per_second: float = Field(
        0, ge=0, description="of each address that asks, with bursts of a second's; 0: no limit"
    )
    token_file: Path | None = Field(
        None, description="file of the token that callers must bear; anyone may ask when not set"
    )


class DriftSettings(Settings):
    """The drift report."""

    sample_rows: int = Field(200_000, ge=1, description="requests, and impressions, drawn from each side")
    seed: int = Field(0, ge=0)
    moderate_psi: float = Field(
        0.1, gt=0, description="from this population stability index on a feature has shifted"
    )
    major_psi: float = Field(
        0.25, gt=0, description="from this population stability index on a feature is another one"
    )
    window_seconds: int = Field(
        3_600, ge=1, description="how long after a request an impression may come of it"
    )


class KubeflowSettings(Settings):
    """The Kubeflow Pipelines server that pipelines are submitted to. Secrets are named by their files."""

    host: str = Field(
        "http://127.0.0.1:8888",
        pattern="^https?://[^@]+$",
        description="address of the API: of a port forward, of the service ml-pipeline, or of the gateway",
    )
    namespace: str = Field("", description="the profile's namespace; empty where Kubeflow has one user")
    experiment: str = Field("watchrank", min_length=1, description="what groups the runs in the UI")
    service_account: str | None = Field(None, description="whom the runs act as; Kubeflow's own when not set")
    token_file: Path | None = Field(
        None,
        description="file of the bearer token, read at each request; in a pod that projects one: "
        "/var/run/secrets/kubeflow/pipelines/token",
    )
    cookie_file: Path | None = Field(
        None, description="file of a Dex session's cookie, as name=value, to come in by the gateway"
    )
    ca_file: Path | None = Field(None, description="certificate authority of the host, in PEM")


Quantity = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?(m|k|[KMGTPE]i|[MGTPE])?)?$")]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
SecretKey = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
MaybeName = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")]


class TolerationSettings(Settings):
    """A taint of nodes that pods may bear."""

    key: str = Field("", description="of the taint; empty with `Exists`: every one")
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    seconds: int | None = Field(None, description="how long, with `NoExecute`; for ever when not set")


class PodSettings(Settings):
    """What every pod has: its image, the volume of the workspace, the names of its secrets."""

    image: str = Field("", description="image that holds the project")
    workspace_claim: MaybeName = Field("", description="PersistentVolumeClaim of the workspace; empty: none")
    workspace_path: Path = Field(Path("/workspace"), description="where that volume is mounted in every pod")
    secrets: dict[ObjectName, dict[SecretKey, Variable]] = Field(
        {}, description="Secret -> its keys -> the environment variables that hold their values"
    )


class TrainingPodSettings(PodSettings):
    """What a pod that trains has beside that. Amounts are Kubernetes quantities; empty: not set."""

    cpu: Quantity = Field("", description="cores, requested and allowed, such as 4 or 500m")
    memory: Quantity = Field("", description="requested and allowed, such as 16Gi")
    shared_memory: Quantity = Field("", description="size of /dev/shm, part of the memory, such as 2Gi")
    accelerator: str = Field("nvidia.com/gpu", description="resource name of the accelerator")
    accelerators: int = Field(0, ge=0, description="accelerators a pod")
    node_selector: dict[str, str] = Field({}, description="labels of the nodes that may run it")
    tolerations: tuple[TolerationSettings, ...] = ()


class OperatorSettings(Settings):
    """How an operator's job is followed."""

    namespace: MaybeName = Field("", description="of the job; in a pod its own when empty")
    timeout_seconds: float = Field(86_400, ge=1, description="after which the job is given up")
    poll_seconds: float = Field(5, gt=0, description="from one look at the job to the next")


class ClusterSettings(TrainingPodSettings):
    """How compiled pipelines sit on a cluster. Quantities, accelerators and nodes are of training tasks."""

    image: str = Field("", description="image of the tasks; empty: the one that components name")
    training_image: str = Field("", description="image of training tasks, with CUDA; empty: as the others")
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""


class LaunchSettings(TrainingPodSettings, OperatorSettings):
    """Training on several processes, or on several nodes by a TrainJob of Kubeflow Trainer."""

    nodes: int = Field(1, ge=1, description="more than one: a TrainJob; dataset and output on the workspace")
    processes: int = Field(1, ge=1, description="processes a node; with accelerators one each")
    runtime: ObjectName = Field("torch-distributed", description="ClusterTrainingRuntime of the TrainJob")

    @model_validator(mode="after")
    def _an_accelerator_each(self) -> Self:
        if 0 < self.accelerators < self.processes:
            raise ValueError(f"{self.processes} processes a node share {self.accelerators} accelerators")
        return self


class SparkSettings(PodSettings, OperatorSettings):
    """Ingestion and features on a cluster by a SparkApplication of the Spark Operator."""

    spark_version: str = Field("4.0.5", description="of the image")
    application: str = Field(
        "",
        description="URL of the image's file that runs `watchrank`, such as local:///app/__main__.py; "
        "empty: where this installation has it",
    )
    service_account: ObjectName = Field("watchrank-spark", description="by which the driver makes pods")
    driver_cores: int = Field(1, ge=1)
    driver_memory: str = Field("2g", description="as Spark reads it", pattern=r"^\d+[kmgt]$")
    executors: int = Field(2, ge=1)
    executor_cores: int = Field(2, ge=1)
    executor_memory: str = Field("4g", description="as Spark reads it", pattern=r"^\d+[kmgt]$")
    arguments: tuple[str, ...] = Field((), description="further words of the `watchrank` command")


class Config(Settings):
    """The whole configuration of a run."""

    engine: EngineSettings = EngineSettings()
    simulation: SimulationSettings = SimulationSettings()
    ingestion: IngestionSettings = IngestionSettings()
    validation: ValidationSettings = ValidationSettings()
    features: FeatureSettings = FeatureSettings()
    split: SplitSettings = SplitSettings()
    ranking: RankingSettings = RankingSettings()
    training: TrainingSettings = TrainingSettings()
    examples: ExampleSettings = ExampleSettings()
    candidates: CandidateSettings = CandidateSettings()
    candidate_training: CandidateTrainingSettings = CandidateTrainingSettings()
    text: TextSettings = TextSettings()
    text_training: TextTrainingSettings = TextTrainingSettings()
    index: IndexSettings = IndexSettings()
    gates: GateSettings = GateSettings()
    export: ExportSettings = ExportSettings()
    deployment: DeploymentSettings = DeploymentSettings()
    drift: DriftSettings = DriftSettings()
    serving: ServingSettings = ServingSettings()
    kubeflow: KubeflowSettings = KubeflowSettings()
    cluster: ClusterSettings = ClusterSettings()
    launch: LaunchSettings = LaunchSettings()
    spark: SparkSettings = SparkSettings()

    @classmethod
    def load(cls, path: Path | None = None, overrides: list[str] | None = None) -> Self:
        """Read a YAML file (or the defaults) and lay `section.key=value` overrides over it.

        Raises:
            InputError: the file is missing or no YAML mapping, a key is unknown or a value is wrong.
        """
        values = _read_file(path) if path else {}
        for override in overrides or []:
            _lay_over(values, override)
        return parse(cls, values, str(path or "the settings"))


S = TypeVar("S", bound=Settings)

SHOWN_FAULTS = 5

NO_YAML = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What PyYAML raises on a text: its own error, or what a tagged value or a 13th month made Python raise."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the key {twice[0]!r} is there twice")
        return super().construct_mapping(node, deep)


def parse(kind: type[S], values: Any, where: str) -> S:
    """Build settings of `kind` from plain values; name the key, the fault and the place in one sentence."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}" for fault in error.errors()
        ]
        more = [f"and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        told = " ".join("; ".join([*faults[:SHOWN_FAULTS], *more]).split())
        raise InputError(f"Wrong setting in {where}: {told}. `watchrank settings` lists all.") from None


def read_yaml(text: str) -> Any:
    """Return the plain values of a YAML text.

    Raises:
        ValueError: it is no YAML, or a value is not what it is said to be; the text is one line.
    """
    try:
        return _UniqueKeys(text).get_single_data()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{error.problem}{where}") from None
    except NO_YAML as error:
        raise ValueError(" ".join(str(error).split())) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the configuration {path}: {error}. Give a YAML file.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"The configuration {path} is no mapping of sections. Give `section: {{key: value}}`."
        )
    return values


def _lay_over(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    section, dot, key = path.partition(".")
    if not (equals and dot and section and key):
        raise InputError(f"Cannot read the override {override!r}. Write section.key=value.")
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise InputError(
            f"Cannot read the override {override!r}: {error}. Write section.key=value, the value as YAML."
        ) from None
    block = values.get(section)
    values[section] = {**(block if isinstance(block, dict) else {}), key: value}
