"""
Servers that answer but have no page of metrics to read: who they are and what helps.

Asked only after every path was refused, so no engine that can be read is mistaken for one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom_exporter.engines import common
from headroom_exporter.errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

KIND = "no_telemetry"
# What to ask, by the status of the refusal.
ASK: Mapping[int, str] = {400: "/props", 404: "/openapi.json", 501: "/props"}

# Routes of Hugging Face `transformers serve`: transformers 4.57 (commands/serving.py) has the first set, 5.23
# (cli/serving/server.py) both.
SERVE_ROUTES = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/models", "/health"})
MORE_SERVE_ROUTES = frozenset(
    {"/v1/completions", "/v1/systemone", "/v1/audio/transcriptions", "/load_model", "/reset"}
)


def page_to_ask(refused: Malformed) -> str | None:
    """The page of JSON that may tell who refused; None where nothing would help."""
    return None if refused.status is None else ASK.get(refused.status)


def explain(refused: Malformed, answer: Any) -> Malformed:
    """
    A better word for a refused page of metrics; the same one where there is none.

    Args:
        refused: What was wrong with the page.
        answer: The decoded JSON of ``page_to_ask``; None where there is none.
    """
    found = f"{str(refused).partition('. ')[0]}: "
    if refused.status in (401, 403):
        return Malformed(f"{found}give the server's API key in bearer_token_file", kind="status")
    if common.member(answer, "role") == "router":
        help_ = (
            "llama-server in router mode tells of one model at a time; poll each model's own server"
        )
    elif common.member(answer, "endpoint_metrics") is False or refused.status == 501:
        help_ = "llama-server has no metrics unless it is started with --metrics"
    elif is_transformers_serve(answer):
        help_ = (
            "Hugging Face transformers serve has no telemetry at all; serve the model with another "
            "engine, or measure at the gateway"
        )
    else:
        return refused
    return Malformed(found + help_, kind=KIND)


def is_transformers_serve(openapi: Any) -> bool:
    """Whether an OpenAPI document has its routes: all of the lasting ones, and its own or nobody else's."""
    paths = common.member(openapi, "paths")
    if not isinstance(paths, dict) or not paths.keys() >= SERVE_ROUTES:
        return False
    return paths.keys() <= SERVE_ROUTES | MORE_SERVE_ROUTES or "/load_model" in paths
