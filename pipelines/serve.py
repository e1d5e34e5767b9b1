"""MLflow's scoring server around one bundle, on this machine, with a guard in front of it."""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from pipelines.compare import refuse_taken_port
from shared.bundle import Bundle
from shared.errors import UsageError

if TYPE_CHECKING:
    from shared.pipeline import Pipeline

MAX_REQUEST_BYTES = 256 * 2**20
"""Four compressed full-size volumes as base64 text are about 20 MB."""
REQUEST_SECONDS = 1800
"""A full-size volume on a CPU takes minutes; MLflow's own limit is one."""
SHOWN_BYTES = 300

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def serve(
    pipeline: Pipeline,
    model: str | None,
    *,
    port: int,
    host: str,
    allow_remote: bool,
    say: Callable[[str], None],
) -> int:
    """Answer ``POST /invocations`` until Ctrl-C; 0. Raises `UsageError` for a host others can reach."""
    if not allow_remote:
        refuse_remote(host)
    refuse_taken_port(port, host)
    from shared.tracking.model import resolve_model, save_pyfunc

    bundle = Bundle.open(resolve_model(model, pipeline))
    with tempfile.TemporaryDirectory(prefix="pipelines-serve-") as scratch:
        say(f"{pipeline.name}: loading {model or 'builtin'}")
        folder = save_pyfunc(pipeline, bundle, Path(scratch) / "model")
        app = build_app(folder, None if allow_remote else LOOPBACK)
        if allow_remote:
            say(f"warning: {host} can be reached by other machines, and there is no login")
        say(_example_call(folder, host, port))
        _run(app, host, port)
    return 0


def refuse_remote(host: str) -> None:
    """Raise `UsageError` unless `host` is a loopback address."""
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = host == "localhost"
    if not inside:
        raise UsageError(
            f"--host {host}: other machines could reach it and there is no login; a loopback address wanted; "
            "put a proxy with login in front, or add --i-understand"
        )


def build_app(folder: Path, hosts: frozenset[str] | None) -> Any:
    """MLflow's ASGI application for the model in `folder`, guarded; `hosts` None lets every host name in."""
    from mlflow.pyfunc import load_model, scoring_server

    os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(REQUEST_SECONDS)
    return Guard(scoring_server.init(load_model(str(folder))), hosts)


LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Refuses what should not reach the model: foreign host names and origins, requests too large or of unknown size.

    A web page opened on this machine can send requests here; the two header checks stop it.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None, limit: int = MAX_REQUEST_BYTES) -> None:
        self._app = app
        self._hosts = hosts
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await _respond(send, *refusal)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if self._hosts is not None:
            if urlparse(f"//{headers.get('host', '')}").hostname not in self._hosts:
                return 403, "unknown host name; use localhost or 127.0.0.1"
            origin = headers.get("origin")
            if origin is not None and urlparse(origin).hostname not in self._hosts:
                return 403, "requests from web pages of other origins are refused"
        if scope["method"] == "POST":
            length = headers.get("content-length", "")
            if not length.isdigit():
                return 411, "Content-Length wanted"
            if int(length) > self._limit:
                return 413, f"{int(length):,} bytes; at most {self._limit:,}"
        return None


async def _respond(send: Send, status: int, text: str) -> None:
    body = text.encode()
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def _example_call(folder: Path, host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}/invocations"
    example = folder / "serving_input_example.json"
    data = "'{\"dataframe_records\": [{…}]}'"
    if example.is_file():
        text = json.dumps(json.loads(example.read_text(encoding="utf-8")))
        data = shlex.quote(text) if len(text) <= SHOWN_BYTES else f"@{example}"
    return f"try: curl -H 'Content-Type: application/json' -d {data} {url}   (Ctrl-C stops the server)"


def _run(app: Any, host: str, port: int) -> None:
    import uvicorn

    try:
        uvicorn.run(
            app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=5
        )
    except KeyboardInterrupt:
        return
