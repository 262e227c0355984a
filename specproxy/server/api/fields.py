"""Every top-level request field that specproxy has an opinion on, in one table.

*Honoured* fields do what the API says. *Inert* ones have, by their definition, nothing to do here. *Refused* ones would
change the answer in a way that is not built: a 400 names them, unless they carry a neutral value, one that asks for
nothing. Fields that stand in neither list are ignored and logged once. docs/api-fields.md is written from this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from specproxy.errors import InvalidRequest

Status = Literal["honoured", "inert", "refused"]
Where = Literal["both", "chat", "completions"]


class ApiField(Struct, frozen=True):
    """One field. ``note``: the meaning, or why it is refused. ``neutral``: values of a refused field that pass;
    ``null`` always does.
    """

    name: str
    status: Status
    where: Where
    note: str
    neutral: tuple[Any, ...] = ()


def _rows(status: Status, where: Where, rows: dict[str, str]) -> list[ApiField]:
    return [ApiField(name, status, where, note) for name, note in rows.items()]


def _refused(where: Where, why: str, rows: dict[str, tuple[Any, ...]]) -> list[ApiField]:
    return [ApiField(name, "refused", where, why, neutral) for name, neutral in rows.items()]


FIELDS: tuple[ApiField, ...] = (
    *_rows(
        "honoured",
        "chat",
        {
            "messages": "roles system, developer, user, assistant, tool, function; content a string or text parts",
            "max_completion_tokens": "≥ 1; wins over `max_tokens`; absent: what the context leaves",
            "top_logprobs": "0 to 20; needs `logprobs: true`",
            "add_generation_prompt": "true, unless `continue_final_message`",
            "continue_final_message": "go on with the final message instead of beginning a new one",
            "chat_template_kwargs": "further variables for the chat template",
            "reasoning_effort": "given to the chat template under this name",
            "verbosity": "given to the chat template under this name",
            "response_format": "`text`, `json_object`, `json_schema`; strict: a keyword that no grammar has is a 400",
            "tools": "functions; up to 128; a strict one's schema, or that of one that must be called, is kept to",
            "tool_choice": "`none`, `auto`, `required`, a function's name, or `allowed_tools`",
            "parallel_tool_calls": "false: one call in an answer at most",
            "functions": "the older form of `tools`, answered by `function_call`",
            "function_call": "the older form of `tool_choice`",
        },
    ),
    *_rows(
        "honoured",
        "completions",
        {
            "prompt": "a string, token ids, or a list of either; each gets `n` choices",
            "echo": "repeats the prompt before the answer, with its logprobs if asked for",
            "best_of": "must equal `n`: every choice is returned",
        },
    ),
    *_rows(
        "honoured",
        "both",
        {
            "model": "a served name or alias; anything else is 404",
            "max_tokens": "chat ≥ 1, absent: what the context leaves; completions ≥ 0, absent: 16",
            "temperature": "0 to 2, absent 1; 0 is greedy, and so is anything below 0.00001",
            "top_p": "above 0, up to 1",
            "top_k": "≥ 1; 0 and -1 switch it off",
            "min_p": "0 to 1",
            "presence_penalty": "-2 to 2",
            "frequency_penalty": "-2 to 2",
            "repetition_penalty": "0.01 to 100; 1 is neutral",
            "logit_bias": "token id to a number from -100 to 100",
            "seed": "any integer, taken modulo 2^53; absent: drawn; returned either way in x-specproxy-seed",
            "stop": "up to 4 strings of up to 4096 characters; the answer ends before the first that completes",
            "stop_token_ids": "end the answer like the end-of-sequence token",
            "ignore_eos": "the model's own end-of-sequence tokens do not end the answer",
            "min_tokens": "nothing ends the answer before",
            "include_stop_str_in_output": "the answer ends behind the stop string instead of before it",
            "skip_special_tokens": "true: special tokens have no text",
            "n": "1 to 128 choices, which share the prompt's pages",
            "logprobs": "chat: true or false; completions: 0 to 20",
            "stream": "server-sent events",
            "stream_options": "`include_usage`, `continuous_usage_stats`; `include_obfuscation` is accepted, not done",
            "prediction": "text expected in the answer, as drafts; a free choice of other parameters beside it",
            "return_token_ids": "`prompt_token_ids` and `token_ids` beside the text",
            "add_special_tokens": "chat false, completions true: what the tokenizer puts around a text, such as BOS",
            "cache_salt": "a request shares cached prompt pages only with the same salt (and the same key)",
            "metadata": "matched by policies; echoed when not streaming",
            "service_tier": "echoed when not streaming; there is one tier",
            "specproxy": "`speculate`: its own choice, where the route allows one; `shadow: false`: stay out of shadow",
        },
    ),
    *_rows(
        "inert",
        "both",
        {
            "user": "an end user's name, for the provider's abuse control",
            "safety_identifier": "as `user`",
            "prompt_cache_key": "names the conversation for policies; pages are shared by content anyway",
            "prompt_cache_options": "pages are kept as long as memory lasts",
            "prompt_cache_retention": "as `prompt_cache_options`",
            "store": "answers are not kept for later retrieval",
            "moderation": "a choice of the provider's filters; there are none",
            "cache_prompt": "llama.cpp's switch; prompts are always cached, by content and salt",
            "request_id": "the id of a request comes from x-request-id",
            "rid": "as `request_id`",
            "session_id": "routing to a replica; there is one",
        },
    ),
    *_refused(
        "chat",
        "thoughts come as `reasoning_content`, as they are made",
        {"include_reasoning": (True,), "separate_reasoning": (True,), "stream_reasoning": (True,)},
    ),
    *_refused("completions", "chat completions have it", {"response_format": ({"type": "text"},)}),
    *_refused("chat", "text only", {"modalities": (["text"],), "audio": (), "mm_processor_kwargs": ()}),
    *_refused("chat", "there is no web search", {"web_search_options": ()}),
    *_refused(
        "chat",
        "the model's own template is used",
        {"chat_template": (), "documents": ([],)},
    ),
    *_refused("completions", "the model continues text, it does not fill in", {"suffix": ("",)}),
    *_refused("completions", "prompts are text or token ids", {"prompt_embeds": ()}),
    *_refused("chat", "completions have it", {"echo": (False,)}),
    *_refused("both", "`echo` with `logprobs` gives them in completions", {"prompt_logprobs": ()}),
    *_refused(
        "both",
        "use `response_format`",
        {
            "structured_outputs": (),
            "guided_json": (),
            "guided_regex": (),
            "guided_choice": (),
            "guided_grammar": (),
            "structural_tag": (),
            "json_schema": (),
            "grammar": ("",),
            "regex": (),
            "ebnf": (),
        },
    ),
    *_refused(
        "both",
        "a sampler of other engines",
        {
            "use_beam_search": (False,),
            "length_penalty": (1,),
            "typical_p": (1,),
            "mirostat": (0,),
            "dry_multiplier": (0,),
            "xtc_probability": (0,),
            "logits_processors": ([],),
            "allowed_token_ids": ([],),
            "bad_words": ([],),
        },
    ),
    *_refused("both", "use `stop`", {"stop_regex": ()}),
    *_refused("both", "use `include_stop_str_in_output`", {"no_stop_trim": (False,)}),
    *_refused("both", "use `max_tokens`", {"n_predict": (-1,), "thinking_token_budget": ()}),
    *_refused("both", "a prompt is never cut", {"truncate_prompt_tokens": ()}),
    *_refused("both", "logprobs name tokens by text and bytes", {"return_tokens_as_token_ids": (False,)}),
    *_refused("both", "requests are served in order", {"priority": (0,)}),
    *_refused("both", "one model, no adapters", {"lora_path": ("",), "kv_transfer_params": (), "vllm_xargs": ({},)}),
)


def fields_of(endpoint: Literal["chat", "completions"], fields: Iterable[ApiField] = FIELDS) -> dict[str, ApiField]:
    """The table's rows for one endpoint, by name."""
    return {field.name: field for field in fields if field.where in ("both", endpoint)}


def refuse_unsupported(body: dict[str, Any], table: dict[str, ApiField]) -> None:
    """Raise InvalidRequest for the first refused field of ``body`` that does not carry a neutral value."""
    for name, value in body.items():
        field = table.get(name)
        if field is None or field.status != "refused" or value is None or value in field.neutral:
            continue
        passing = [f"`{msgspec.json.encode(neutral).decode()}`" for neutral in field.neutral]
        hint = f"; leave it out or set it to {' or '.join(passing)}" if passing else "; leave it out"
        raise InvalidRequest(f"`{name}` is not supported ({field.note}){hint}", param=name)


def markdown_table() -> str:
    """The table of docs/api-fields.md."""
    lines = ["| Field | Endpoint | Status | Meaning, or why | Neutral values |", "|---|---|---|---|---|"]
    for field in sorted(FIELDS, key=lambda field: (field.status, field.name, field.where)):
        neutral = ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in field.neutral)
        lines.append(f"| `{field.name}` | {field.where} | {field.status} | {field.note} | {neutral} |")
    return "\n".join(lines) + "\n"
