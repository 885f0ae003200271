"""The HTTP service in front of `Recommender`: JSON answers, health, metrics, and a page to look at."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tritonclient.grpc.aio as triton
import uvicorn
from fastapi import BackgroundTasks, FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from tritonclient.utils import InferenceServerException

from watchrank import __version__
from watchrank.config import DeploymentSettings, ServingSettings
from watchrank.errors import InputError, WatchrankError
from watchrank.serving.client import TritonClient
from watchrank.serving.guard import Guard, read_token
from watchrank.serving.metrics import CountOutcomes, Metrics
from watchrank.serving.page import explain, render
from watchrank.serving.popular import PopularVideos
from watchrank.serving.question import LARGEST_INTEGER, Arrays, Fallback, Question, Recommendation
from watchrank.serving.recommend import Recommender, rows_of
from watchrank.serving.request_log import RequestLog
from watchrank.serving.search import Found, search
from watchrank.serving.traffic import Traffic

if TYPE_CHECKING:
    from feast import FeatureStore

MOST_VIDEOS = 1_000
MOST_EXCLUDED = 10_000
MOST_WEIGHTS = 100
MOST_LETTERS = 1_000

WARM_UP_SECONDS = 5
"""How long the first read of the online store may take, which also reads Feast's registry."""

HEALTH_SECONDS = 2
"""How long Triton and the online store may take to count as ready."""

FLUSH_SECONDS = 60
"""How long a logged request waits at most for its file."""

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"

_NO_ROUTE = {
    400: (422, "Bad input: the body cannot be read as JSON."),
    404: (404, "There is nothing at this address; /openapi.json lists what there is."),
    405: (405, "This address does not take this method; /openapi.json lists those that it takes."),
}
"""What FastAPI's own refusals become: status and sentence."""

Id = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Videos = Annotated[int, Field(ge=1, le=MOST_VIDEOS, description="videos to answer")]


class Ask(BaseModel):
    """A request for several users."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_ids: list[Id] = Field(min_length=1, description="users; one that is not known counts as a newcomer")
    k: Videos = 10
    excluded: list[Id] = Field(
        [], max_length=MOST_EXCLUDED, description="videos not to answer, beside the last watched ones"
    )
    surface: str | None = Field(None, max_length=100, description="where the videos will be shown")
    diversity: float = Field(0, ge=0, le=1, description="how unlike each other: 0 (off) to 1")
    channel_limit: int = Field(0, ge=0, le=MOST_VIDEOS, description="most videos of one channel; 0: no limit")
    score_weights: dict[str, float] = Field(
        {},
        max_length=MOST_WEIGHTS,
        description="what a unit of a task's answer is worth, by task, for a release that has several",
    )
    now: int | None = Field(
        None, ge=0, le=LARGEST_INTEGER, description="time of the request, seconds since 1970; now when null"
    )

    def question(self) -> Question:
        """Return what is asked for every user, with the time of now when none is given."""
        now = int(time.time()) if self.now is None else self.now
        return Question(**self.model_dump(exclude={"user_ids", "now"}), now=now)


class AskOne(BaseModel):
    """What an address asks for one user; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    k: Videos = 10


class AskPage(AskOne):
    """What the page asks."""

    user_id: Id | None = Field(None, description="the user; only the form when not given")


class AskSearch(AskOne):
    """What a search asks."""

    query: str = Field(max_length=MOST_LETTERS, description="what the user typed")


class Answer(BaseModel):
    """One user's videos, best first, with as many seconds and scores."""

    user_id: int
    video_ids: list[int]
    expected_watch_seconds: list[float] = Field(
        description="expected seconds of watching, if it is shown; empty without Triton"
    )
    candidate_scores: list[float] = Field(description="of candidate generation; empty without Triton")
    answers: dict[str, list[float]] = Field(
        description="of a release with several tasks: the score, by which it ranks, and each task's answer"
    )
    release: int = Field(description="number of the release that answered")
    fallback: Fallback | None = Field(
        description="what the answer does without. features: nothing is known of the user: new, or the "
        "online store is empty or does not answer; triton: the most watched videos. Else null"
    )


class SearchAnswer(BaseModel):
    """The videos whose titles match a query best, best first."""

    query: str
    video_ids: list[int]
    scores: list[float] = Field(description="cosines of the query's and the titles' vectors")


class Health(BaseModel):
    """Whether the service can answer, if need be by its fallback."""

    live: bool = True
    ready: bool = Field(description="Triton is ready, or there are popular videos to answer instead")
    triton: bool = Field(description="Triton's model `recommend` is ready")
    store: bool = Field(description="the online store answers; without it all users are newcomers")
    popular: bool = Field(description="the popular videos of a release are known")


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="one sentence")


REFUSALS: dict[int | str, dict[str, object]] = {
    401: {"model": Refusal, "description": "The token is missing or wrong"},
    408: {"model": Refusal, "description": "The request came in too slowly"},
    413: {"model": Refusal, "description": "The request is too long"},
    414: {"model": Refusal, "description": "The address is too long"},
    415: {"model": Refusal, "description": "The body is not said to be JSON"},
    422: {"model": Refusal, "description": "Bad input"},
    429: {"model": Refusal, "description": "Too many requests; `Retry-After` says when to ask again"},
    503: {"model": Refusal, "description": "Triton does not answer, and there is no fallback"},
}
_PAGE_REFUSALS: dict[int | str, dict[str, object]] = {
    status: {
        "description": refusal["description"],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}},
    }
    for status, refusal in REFUSALS.items()
    if status != 503  # the page shows that one itself
}


class Service:
    """What the routes share; usable while `running`."""

    recommender: Recommender
    traffic: Traffic

    def __init__(
        self,
        store: "FeatureStore",
        deployment: DeploymentSettings,
        settings: ServingSettings,
        log: Path,
        popular: PopularVideos,
    ) -> None:
        """Describe the service; see `create_app`."""
        self.log = RequestLog(log, settings.log_share)
        self.metrics = Metrics(self.log)
        self._store, self._settings, self._popular = store, settings, popular
        self._deployment = deployment.model_copy(update={"timeout_seconds": settings.timeout_seconds})

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Keep the connection to Triton open, and write the log now and then."""
        async with TritonClient(self._deployment) as client:
            self.recommender = Recommender(
                self._store,
                client,
                self.metrics.observe_stage,
                popular=self._popular,
                retry_seconds=self._settings.retry_seconds,
                fail=self.metrics.failures.add,
            )
            await self.recommender.features.answers(WARM_UP_SECONDS)
            self.traffic = Traffic(self.recommender, self._settings, self.metrics)
            flushing = asyncio.create_task(self._flush_log())
            try:
                yield
            finally:
                flushing.cancel()
                await self.traffic.close()
                self.recommender.features.close()
                await asyncio.to_thread(self.log.close)

    async def recommend(
        self, user_ids: Sequence[int], question: Question
    ) -> tuple[list[Recommendation], Arrays]:
        """Return the answers, and the features that Triton was sent.

        Raises:
            InputError: there are too many users, or the server refuses the request.
            DeploymentError: Triton does not answer, and no popular videos are known.
        """
        deadline = self.recommender.deadline()
        most = self._settings.max_users
        if len(user_ids) > most:
            raise InputError(f"The request has {len(user_ids)} users; ask for {most} at most.")
        features = await self.recommender.user_features(user_ids, deadline)
        answers = await self.traffic.recommend(user_ids, features, question, deadline)
        self.metrics.count_answers(answers)
        return answers, features | question.tensors(len(user_ids))

    async def health(self) -> Health:
        """Return what of the service answers."""
        triton_ready, store_answers = await asyncio.gather(
            self._triton_is_ready(), self.recommender.features.answers(HEALTH_SECONDS)
        )
        popular = self._popular.release is not None
        return Health(
            ready=triton_ready or popular, triton=triton_ready, store=store_answers, popular=popular
        )

    async def _triton_is_ready(self) -> bool:
        async with triton.InferenceServerClient(self._deployment.grpc_url) as client:
            try:
                return bool(await client.is_model_ready("recommend", client_timeout=HEALTH_SECONDS))
            except InferenceServerException:
                return False

    async def _flush_log(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await asyncio.to_thread(self.log.flush)


def create_app(
    store: "FeatureStore",
    deployment: DeploymentSettings,
    settings: ServingSettings,
    log: Path,
    popular: PopularVideos,
) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        store: opened by `feature_store.open_store`, materialised.
        deployment: where Triton listens.
        settings: of the service.
        log: folder of the request log; it appears when `settings.log_share` is above 0.
        popular: what to answer while Triton does not.

    Raises:
        InputError: the file of the token cannot be read or is empty.
    """
    service = Service(store, deployment, settings, log, popular)
    app = FastAPI(
        title="watchrank",
        version=__version__,
        description="Videos for users, ranked by expected watch time.",
        lifespan=service.running,
        docs_url=None,
        redoc_url=None,
    )
    _add_refusals(app)
    _add_recommend(app, service)
    _add_search(app, service)
    _add_operation(app, service)
    _add_page(app, service)
    token = read_token(settings.token_file) if settings.token_file else None
    app.add_middleware(Guard, settings=settings, token=token)
    app.add_middleware(CountOutcomes, metrics=service.metrics)
    return app


def listen(settings: ServingSettings) -> socket.socket:
    """Return a socket that listens where the settings say.

    Raises:
        InputError: something else listens there, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror}; "
            "set another serving.host or serving.port."
        ) from None


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer on `listener` until Ctrl-C or SIGTERM; requests that are under way are answered first."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
    with listener, contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def _fault(kind: str, place: tuple[int | str, ...], message: str) -> str:
    """Say what is wrong with a request, and where; `place` begins with the part of the request."""
    if kind == "json_invalid":
        return f"the body is no JSON from character {place[-1]} on ({message})"
    return f"{'.'.join(map(str, place[1:])) or 'the request'}: {message}"


def _add_refusals(app: FastAPI) -> None:
    """Let every error be one sentence and its status; what is unexpected is in the service's log only."""

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(_fault(fault["type"], fault["loc"], fault["msg"]) for fault in error.errors())
        return JSONResponse({"detail": f"Bad input: {faults}."}, 422)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        status, sentence = _NO_ROUTE.get(error.status_code, (error.status_code, error.detail))
        return JSONResponse({"detail": sentence}, status, error.headers)

    @app.exception_handler(WatchrankError)
    async def refused(request: Request, error: WatchrankError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, _status(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "The service failed; its log says how."}, 500)


def _status(error: WatchrankError) -> int:
    return 422 if isinstance(error, InputError) else 503


def _add_recommend(app: FastAPI, service: Service) -> None:
    async def answered(
        user_ids: list[int], question: Question, after: BackgroundTasks
    ) -> list[Recommendation]:
        answers, request = await service.recommend(user_ids, question)
        ranked = [row for row, answer in enumerate(answers) if answer.fallback != "triton"]
        if service.log.share and ranked:
            after.add_task(service.log.append, rows_of(request, ranked), [answers[row] for row in ranked])
        return answers

    @app.post("/recommend", response_model=list[Answer], responses=REFUSALS, summary="Videos for users")
    async def recommend(ask: Ask, after: BackgroundTasks) -> list[Recommendation]:
        """Answer each user, in the order of the request."""
        return await answered(ask.user_ids, ask.question(), after)

    @app.get("/recommend/{user_id}", response_model=Answer, responses=REFUSALS, summary="Videos for one user")
    async def recommend_one(
        user_id: Annotated[Id, PathParameter(description="the user")],
        ask: Annotated[AskOne, Query()],
        after: BackgroundTasks,
    ) -> Recommendation:
        """Answer one user."""
        (answer,) = await answered([user_id], Ask(user_ids=[user_id], k=ask.k).question(), after)
        return answer


def _add_search(app: FastAPI, service: Service) -> None:
    @app.get("/search", response_model=SearchAnswer, responses=REFUSALS, summary="Videos for a query")
    async def find(ask: Annotated[AskSearch, Query()]) -> Found:
        """Answer with the videos whose titles match the query best."""
        (found,) = await search(service.recommender.client, [ask.query], ask.k)
        return found


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses={503: {"model": Health, "description": "Not ready"}}, summary="Readiness")
    async def health(response: Response) -> Health:
        """Answer 200 when the service can answer, else 503; either way it is live. Needs no token."""
        found = await service.health()
        response.status_code = 200 if found.ready else 503
        return found

    @app.get("/metrics", response_class=Response, summary="Counters, for Prometheus")
    async def metrics() -> Response:
        """Answer the counters of this process."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI, service: Service) -> None:
    @app.get(
        "/",
        response_class=HTMLResponse,
        responses=_PAGE_REFUSALS,
        summary="A page that shows how an answer comes about",
    )
    async def page(ask: Annotated[AskPage, Query()]) -> HTMLResponse:
        """Show a user's history, candidates and ranking, and the time each stage took."""
        user_id, k = ask.user_id, ask.k
        status, shown = 200, {"answer": None, "error": ""}
        if user_id is not None:
            question = Ask(user_ids=[user_id], k=k).question()
            try:
                shown |= await explain(service.recommender, service.traffic, user_id, question)
            except WatchrankError as error:
                status, shown["error"] = _status(error), str(error)
        html = render(user_id=user_id, k=k, most_videos=MOST_VIDEOS, **shown)
        return HTMLResponse(html, status, {"Content-Security-Policy": _PAGE_POLICY})
