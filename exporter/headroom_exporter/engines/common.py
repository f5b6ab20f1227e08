"""Pages of JSON that several engines answer alike: ``/version`` and the OpenAI API's ``/v1/models``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom_exporter.engines.base import Beside, Page, clip_label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headroom_exporter.engines.base import Series

MAX_VERSION_LENGTH = 64


def info(name: str, **labels: Any) -> Mapping[str, Series]:
    """One series of value 1 whose labels are those of ``labels`` that are texts; {} where none is."""
    texts = {key: clip_label(value) for key, value in labels.items() if isinstance(value, str)}
    return {name: [(texts, 1.0)]} if any(texts.values()) else {}


def figure(name: str, value: Any) -> Mapping[str, Series]:
    """One series of a number above 0; {} where it is none. JSON knows no int; True is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        return {}
    return {name: [({}, float(value))]}


def member(answer: Any, *path: str | int) -> Any:
    """What stands at a path of keys and indices; None where the answer is built otherwise."""
    for step in path:
        if isinstance(answer, dict) and isinstance(step, str):
            answer = answer.get(step)
        elif isinstance(answer, list) and isinstance(step, int) and step < len(answer):
            answer = answer[step]
        else:
            return None
    return answer


def _version(answer: Any) -> Mapping[str, Series]:
    return info("/version", version=member(answer, "version"))


def _models(answer: Any) -> Mapping[str, Series]:
    listed = member(answer, "data")
    found = {**info("/v1/models", model=member(answer, "data", 0, "id"))}
    for model in listed if isinstance(listed, list) else []:
        length = figure("/v1/models.max_model_len", member(model, "max_model_len"))
        if length:
            return {**found, **length}
    return found


VERSION = Beside("/version", _version)
MODELS = Beside("/v1/models", _models)


def version(page: Page, name: str = "/version") -> str | None:
    """The version told at the start, at most MAX_VERSION_LENGTH long."""
    told = page.text(name, "version")
    return None if told is None else told[:MAX_VERSION_LENGTH]


def model(page: Page) -> str:
    """The first model of ``/v1/models``; empty where it is not known."""
    return page.text("/v1/models", "model") or ""


def max_model_length(page: Page, name: str = "/v1/models.max_model_len") -> int | None:
    """The longest sequence, tokens."""
    told = page.value(name)
    return None if told is None else int(told)
