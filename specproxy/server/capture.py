"""Finished answers kept for training, beside the event loop: a bounded queue, one thread, one directory.

A record is a JSON object a line. It holds what the model read and said, and how the answer was drawn:

    time, model, fingerprint, route, revision, seed, choice, params, stop, finish_reason
    messages                            a chat; the answer is its last assistant turn
    prompt, answer                      a completion; prompt is left out where the client sent token ids
    prompt_tokens, answer_tokens        token ids as the target read and sampled them, end-of-sequence token included

Never headers, keys or their ids, the fields user and metadata, names of participants. Training reads these names.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import UNSET, Struct, UnsetType

from specproxy.config.schema import CaptureConfig
from specproxy.errors import ConfigError
from specproxy.policy.schema import CaptureTo
from specproxy.server.api import ParsedRequest
from specproxy.server.api.messages import template_messages
from specproxy.server.capture_files import CaptureFiles, claim_folder
from specproxy.server.metrics import SHORT_REVISION, Metrics
from specproxy.vocabulary import RequestRecord, Submission

OPT_OUT = "x-specproxy-no-capture"
"""Header by which a client stays out, whatever its value."""

MAX_WAITING = 256
"""Requests whose records wait to be written; beyond that the disk is too slow, and records are dropped."""

MIB = 2**20

CLOSE_S = 5.0
"""How long the end of the server waits for the disk, in seconds."""

_KEPT = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id")
"""Keys of a message that are kept: what a template shows the model. Others could name somebody."""

_NOT_SAMPLING = ("logprobs", "prompt_logprobs")


class Captured(Struct, kw_only=True):
    """One choice of an answer as it is written."""

    time: str
    model: str
    fingerprint: str
    route: str
    revision: str
    seed: int
    choice: int
    params: dict[str, Any]
    stop: Sequence[str]
    finish_reason: str
    messages: list[dict[str, Any]] | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    answer: str | UnsetType = UNSET
    prompt_tokens: list[int]
    answer_tokens: list[int]


class Transcript:
    """What one request asked and what each of its choices says, as that grows. ``submissions[i]`` is choice i."""

    def __init__(self, parsed: ParsedRequest, submissions: Sequence[Submission], fingerprint: str) -> None:
        self._parsed = parsed
        self._submissions = submissions
        self._fingerprint = fingerprint
        self._tokens: list[list[int]] = [[] for _ in submissions]
        self._texts: list[list[str]] = [[] for _ in submissions]
        self._record: RequestRecord | None = None

    def __len__(self) -> int:
        return len(self._submissions)

    def add(self, index: int, tokens: Sequence[int], text: str) -> None:
        """Choice ``index`` goes on."""
        self._tokens[index] += tokens
        self._texts[index].append(text)

    def finish(self, record: RequestRecord) -> None:
        """Every choice is complete; ``record`` has their finish reasons."""
        self._record = record

    def records(self) -> Iterator[Captured]:
        """A record of each choice that says anything. Takes a while for long ones: not for the event loop."""
        record = self._record
        if record is None:
            raise RuntimeError("records() of a request that is not finished")
        time = f"{datetime.fromtimestamp(record.started, UTC):%Y-%m-%dT%H:%M:%SZ}"
        chat = self._parsed.endpoint == "chat"
        for index, submission in enumerate(self._submissions):
            if not self._tokens[index]:
                continue
            params = msgspec.structs.asdict(submission.params)
            text = "".join(self._texts[index])
            prompt = self._parsed.prompts[index // self._parsed.n].text
            yield Captured(
                time=time,
                model=record.model,
                fingerprint=self._fingerprint,
                route=record.route,
                revision=record.revision[:SHORT_REVISION],
                seed=submission.seed,
                choice=submission.choice,
                params={name: value for name, value in params.items() if name not in _NOT_SAMPLING},
                stop=self._parsed.stop,
                finish_reason=record.finish_reasons[index],
                messages=self._messages(text) if chat else UNSET,
                prompt=UNSET if chat or not prompt else prompt,
                answer=UNSET if chat else text,
                prompt_tokens=submission.prompt,
                answer_tokens=self._tokens[index],
            )

    def _messages(self, answer: str) -> list[dict[str, Any]]:
        """The conversation as the template got it, and the answer. One that the answer goes on with becomes one."""
        body, form = self._parsed.body, self._parsed.context.form
        messages = [{key: m[key] for key in _KEPT if key in m} for m in template_messages(body["messages"], form)]
        if body.get("continue_final_message") and messages[-1]["role"] == "assistant":
            messages[-1]["content"] += answer
        else:
            messages.append({"role": "assistant", "content": answer})
        return messages


class Capture:
    """Writes transcripts to ``files``. Nothing that happens here reaches an answer: what cannot be kept is counted.

    ``claim``: the directory is not known to be writable and private yet.
    """

    def __init__(self, files: CaptureFiles, metrics: Metrics, *, claim: bool = False) -> None:
        self._files = files
        self._claim = claim
        self._metrics = metrics
        self._waiting: queue.Queue[Transcript | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        self._told = False

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def offer(self, transcript: Transcript) -> None:
        """Keep a finished transcript, if there is room for it. Returns at once."""
        try:
            self._waiting.put_nowait(transcript)
        except queue.Full:
            self._metrics.capture_dropped.labels("queue_full").inc(len(transcript))

    def close(self) -> None:
        """Write what waits, and end. Blocks, some seconds at most."""
        try:
            self._waiting.put(None, timeout=CLOSE_S)
        except queue.Full:
            pass  # The thread hangs in the disk, which is said below.
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            structlog.get_logger().warning("captured answers are lost: the disk hangs", waiting=self._waiting.qsize())

    def _work(self) -> None:
        may_write = not self._claim or self._claimed()
        while (transcript := self._waiting.get()) is not None:
            if may_write:
                self._keep(transcript)
            else:
                self._metrics.capture_dropped.labels("error").inc(len(transcript))
        self._files.close()

    def _claimed(self) -> bool:
        """Whether the directory of a policy may be used. The server runs already: what is wrong goes to the log."""
        try:
            claim_folder(self._files.folder)
        except ConfigError as error:
            structlog.get_logger().error("a route's answers cannot be kept", reason=str(error))
            return False
        return True

    def _keep(self, transcript: Transcript) -> None:
        """Write a transcript's records. After an error the rest of them would most likely meet it too."""
        left = len(transcript)
        try:
            for record in transcript.records():
                if self._files.write(msgspec.json.encode(record) + b"\n"):
                    self._metrics.captured.inc()
                else:
                    self._metrics.capture_dropped.labels("too_large").inc()
                left -= 1
        except Exception as error:  # noqa: BLE001 - a thread that ended would let the queue fill for good
            self._metrics.capture_dropped.labels("error").inc(left)
            if not self._told:
                self._told = True
                reason = f"{type(error).__name__}: {error}"
                structlog.get_logger().error("captured answers are not written; said once, then counted", reason=reason)


class Captures:
    """What keeps the answers of each route: in the directory of the start configuration, or in one of the route's own,
    which is opened when its first answer is to be kept."""

    def __init__(self, config: CaptureConfig, metrics: Metrics) -> None:
        self._metrics = metrics
        self._own: dict[CaptureTo, Capture] = {}
        self._common: Capture | None = None
        if config.dir:
            self._common = Capture(CaptureFiles(Path(config.dir), config.max_mb * MIB), metrics)

    def start(self) -> None:
        """Begin to write."""
        if self._common is not None:
            self._common.start()

    def of(self, wanted: bool | CaptureTo) -> Capture | None:
        """What keeps the answers of a route that says so."""
        if not isinstance(wanted, CaptureTo):
            return self._common if wanted else None
        found = self._own.get(wanted)
        if found is None:
            files = CaptureFiles(Path(wanted.dir), wanted.max_mb * MIB)
            found = self._own[wanted] = Capture(files, self._metrics, claim=True)
            found.start()
        return found

    def close(self) -> None:
        """Write what waits, and end."""
        for capture in (self._common, *self._own.values()):
            if capture is not None:
                capture.close()
