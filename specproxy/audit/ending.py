"""Whether an answer ended where and why its tokens say that it had to."""

from __future__ import annotations

from collections.abc import Set

from specproxy.bundle import AuditBundle, Finding
from specproxy.vocabulary import FinishReason


def ending_fault(bundle: AuditBundle, eos: Set[int], max_len: int) -> Finding | None:
    """What is wrong with the end of an answer. ``eos``: the model's end-of-sequence ids; ``max_len``: its context.

    Stop strings are judged on text, which is not computed here: where the request has some, "stop" may come anywhere.
    An aborted answer may end anywhere too, but not go on behind its end.
    """
    for index, token in enumerate(bundle.output[:-1]):
        reason = _reason(bundle, token, index + 1, eos, max_len)
        if reason is not None:
            text = f"the answer goes on behind a token that ends it ({reason})"
            return Finding(len(bundle.prompt) + index, "ending", token, text=text)
    last = bundle.output[-1] if bundle.output else -1
    reason = _reason(bundle, last, len(bundle.output), eos, max_len)
    wrong = _mismatch(bundle, last, reason)
    place = len(bundle.prompt) + max(0, len(bundle.output) - 1)
    return Finding(place, "ending", last, text=wrong) if wrong else None


def _reason(bundle: AuditBundle, token: int, count: int, eos: Set[int], max_len: int) -> FinishReason | None:
    """Why an answer ends with ``token``, its token number ``count``; ``None``: it goes on."""
    params = bundle.params
    if token in params.stop_token_ids or (token in eos and not params.ignore_eos):
        return "stop"
    return "length" if count >= params.max_tokens or len(bundle.prompt) + count >= max_len else None


def _mismatch(bundle: AuditBundle, last: int, reason: FinishReason | None) -> str:
    """How the end that was told differs from ``reason``; empty where it does not."""
    told, stop_token = bundle.finish_reason, bundle.stop_token
    if told == "abort" or (told == "stop" and stop_token is None and bundle.stop):
        return ""
    if told != reason:
        return f'finish_reason is "{told}"; its tokens say {f"{reason!r}" if reason else "that it was not over"}'
    if stop_token != (last if reason == "stop" else None):
        return f"stop_token is {stop_token}, and the last token {last}"
    return ""
