"""Facts: what a policy may ask about one request, extracted once from the decoded body.

``None`` (or an empty dict) means that the request does not give the field. Values that say the same as nothing count as
absent: ``tools: []``, ``response_format: {type: text}``, ``logprobs: false``. Extraction never fails: a field of the
wrong type counts as absent here, since refusing it is the request parser's job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

OVERRIDE_HEADER = "x-specproxy-speculate"
OVERRIDE_FIELD = "specproxy"


class Facts(Struct, frozen=True, kw_only=True):
    """Everything that a match condition, a limit or an override can see of one request.

    ``headers`` has lower-case names. ``api_key`` is the key's id, never the key. ``response_format`` is its type,
    ``tools`` the functions' names, ``tool_choice`` a mode or the forced function's name. ``logprobs`` counts the
    alternatives asked for beside the chosen token. ``prompt`` is the text of the last user message (or the last
    prompt of a completion), ``turns`` the number of user messages, ``tool_calls`` those made so far in ``messages``.
    ``load`` is the queue depth in requests. ``override_header`` and ``override_body`` are the request's own wishes,
    not yet parsed.
    """

    path: str
    model: str = ""
    headers: Mapping[str, str] = {}
    api_key: str = ""
    response_format: str | None = None
    tools: tuple[str, ...] | None = None
    tool_choice: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    n: int | None = None
    prompt_tokens: int | None = None
    turns: int = 1
    stream: bool | None = None
    logprobs: int | None = None
    prediction: str | None = None
    prompt: str = ""
    metadata: Mapping[str, str] = {}
    load: int = 0
    conversation: str = ""
    tool_calls: int = 0
    override_header: str | None = None
    override_body: object = None


def extract_facts(
    path: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    *,
    api_key: str = "",
    prompt_tokens: int | None = None,
    load: int = 0,
) -> Facts:
    """Facts of a request to ``path`` with the decoded JSON ``body``; header names may have any case.

    ``prompt_tokens`` is ``None`` where nothing was tokenised: conditions on it then do not hold and its limit cannot
    be checked.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    messages = [m for m in _list(body.get("messages")) if isinstance(m, dict)]
    users = [m for m in messages if m.get("role") == "user"]
    prompt = text_of(users[-1].get("content")) if users else _completion_prompt(body.get("prompt"))
    metadata = _metadata(body.get("metadata"))
    return Facts(
        path=path,
        model=_str(body.get("model")) or "",
        headers=lower,
        api_key=api_key,
        response_format=_response_format(body.get("response_format")),
        tools=_tools(body),
        tool_choice=_tool_choice(body),
        temperature=_float(body.get("temperature")),
        top_p=_float(body.get("top_p")),
        max_tokens=_first_int(body.get("max_completion_tokens"), body.get("max_tokens")),
        n=_first_int(body.get("n")),
        prompt_tokens=prompt_tokens,
        turns=len(users) if messages else 1,
        stream=body["stream"] if isinstance(body.get("stream"), bool) else None,
        logprobs=_logprobs(body),
        prediction=_prediction(body.get("prediction")),
        prompt=prompt,
        metadata=metadata,
        load=load,
        conversation=_conversation(body, metadata, api_key, messages, users, prompt),
        tool_calls=_count_tool_calls(messages),
        override_header=lower.get(OVERRIDE_HEADER),
        override_body=body.get(OVERRIDE_FIELD),
    )


def text_of(content: object) -> str:
    """Text of a message's content: the string itself, or its text parts joined; other parts have none."""
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in _list(content) if isinstance(part, dict)]
    return "".join(part for part in parts if isinstance(part, str))


def _completion_prompt(prompt: object) -> str:
    """The text of a completion's prompt; token ids have none."""
    if isinstance(prompt, str):
        return prompt
    texts = [item for item in _list(prompt) if isinstance(item, str)]
    return texts[-1] if texts else ""


def _conversation(
    body: Mapping[str, Any],
    metadata: Mapping[str, str],
    api_key: str,
    messages: Sequence[Mapping[str, Any]],
    users: Sequence[Mapping[str, Any]],
    prompt: str,
) -> str:
    """What stays the same over the turns of one conversation."""
    given = _str(body.get("prompt_cache_key")) or metadata.get("conversation_id")
    if given:
        return given
    system = [text_of(m.get("content")) for m in messages if m.get("role") in ("system", "developer")]
    first = text_of(users[0].get("content")) if users else prompt
    digest = hashlib.blake2b(digest_size=16)
    for part in (api_key, *system, "\0", first):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _count_tool_calls(messages: Sequence[Mapping[str, Any]]) -> int:
    calls = sum(len(_list(m.get("tool_calls"))) for m in messages)
    return calls + sum(isinstance(m.get("function_call"), dict) for m in messages)


def _response_format(value: object) -> str | None:
    kind = _str(value.get("type")) if isinstance(value, dict) else None
    return None if kind == "text" else kind


def _tools(body: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the offered functions, in today's form or the older ``functions``."""
    names = []
    for tool in _list(body.get("tools")) + _list(body.get("functions")):
        inner = tool.get("function", tool.get("custom", tool)) if isinstance(tool, dict) else None
        names.append((_str(inner.get("name")) if isinstance(inner, dict) else None) or "")
    return tuple(names) or None


def _tool_choice(body: Mapping[str, Any]) -> str | None:
    choice = body.get("tool_choice", body.get("function_call"))
    if isinstance(choice, str):
        return choice
    if not isinstance(choice, dict):
        return None
    inner = choice.get("function", choice)
    return (_str(inner.get("name")) if isinstance(inner, dict) else None) or _str(choice.get("type"))


def _logprobs(body: Mapping[str, Any]) -> int | None:
    """Chat says ``logprobs: true, top_logprobs: 5``; a completion says ``logprobs: 5``."""
    asked = body.get("logprobs")
    if asked is True:
        return _first_int(body.get("top_logprobs")) or 0
    return _first_int(asked)


def _prediction(value: object) -> str | None:
    return text_of(value.get("content")) if isinstance(value, dict) else None


def _metadata(value: object) -> dict[str, str]:
    """Values as strings: the API says that they are, clients send numbers too."""
    if not isinstance(value, dict):
        return {}
    return {key: _scalar(item) for key, item in value.items() if isinstance(key, str) and item is not None}


def _scalar(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _str(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _first_int(*values: object) -> int | None:
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)
