"""The OpenAI API as data: bodies become submissions, deltas become answers. Pure functions, no sockets.

A handler does::

    request = parse_chat(body, context)                       # or parse_completion; CPU work, may run in a thread
    seed = request.seed if request.seed is not None else draw_seed()
    submissions = request.submissions(decision, seed, salt=key_id, id_prefix=request_id)
    answer = request.answer(meta)                             # submissions[i] is choice i of the answer
    for each delta of submissions[i]:
        pushed = answer.push(i, delta)                        # .data: bytes to write now; .done: close that sequence
    last = answer.finish({...specproxy object...})            # the rest of the stream, or the whole JSON body
"""

from specproxy.server.api.answer import Answer, AnswerMeta, Pushed
from specproxy.server.api.chat import parse_chat
from specproxy.server.api.completions import parse_completion
from specproxy.server.api.context import ApiContext
from specproxy.server.api.errors import error_body, error_event, error_of
from specproxy.server.api.formats import wants_format
from specproxy.server.api.models import model_list, model_object
from specproxy.server.api.parsed import ParsedRequest, Prompt, draw_seed

__all__ = [
    "Answer",
    "AnswerMeta",
    "ApiContext",
    "ParsedRequest",
    "Prompt",
    "Pushed",
    "draw_seed",
    "error_body",
    "error_event",
    "error_of",
    "model_list",
    "model_object",
    "parse_chat",
    "parse_completion",
    "wants_format",
]
