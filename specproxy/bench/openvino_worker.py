"""OpenVINO GenAI in a process of its own: answers token ids with token ids, as JSON lines.

Run by file name with a Python that has ``openvino_genai`` and need not have specproxy, so nothing of ours is imported
here. Arguments: the converted target, the converted draft model (or ``-``), threads, tokens drafted at a time.

Out, once: {"ready": {what runs}} or {"problem": text}. Then for each line in
{"way": "plain" | "draft" | "lookup", "ids": [...], "max_tokens": n}
a line out {"ids": [...], "ended": bool, "ttft_s": x, "total_s": y} or {"problem": text}. Times in seconds, from the
ready prompt ids to the last token's id, on this process's clock.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, Any

LOOKUP_NGRAM = 3
"""Longest run of tokens that prompt lookup looks for: the value of OpenVINO GenAI's own sample."""


class Ways:
    """One pipeline for each way of decoding, loaded when it is first asked for."""

    def __init__(self, target: str, draft: str, threads: int, drafted: int) -> None:
        """``drafted``: tokens at a time. Raises ImportError where the library is missing."""
        import openvino  # type: ignore[import-not-found,unused-ignore]
        import openvino_genai  # type: ignore[import-not-found,unused-ignore]

        self._ov, self._genai = openvino, openvino_genai
        self._target, self._draft = target, draft
        self._drafted = drafted
        self._settings = {"INFERENCE_NUM_THREADS": threads}
        self._pipelines: dict[str, Any] = {}
        self.ends = set(openvino_genai.GenerationConfig(f"{target}/generation_config.json").stop_token_ids)

    def facts(self) -> dict[str, str]:
        """Version, and the precision that this processor computes in unless told otherwise."""
        hint = self._ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
        return {"openvino_genai": self._genai.__version__, "openvino_precision": hint.to_string()}

    def answer(self, way: str, ids: list[int], max_tokens: int) -> dict[str, Any]:
        """One greedy answer."""
        import numpy as np

        pipeline, prompt = self._pipeline(way), np.asarray([ids], np.int64)
        tensors = (self._ov.Tensor(prompt), self._ov.Tensor(np.ones_like(prompt)))
        arrivals: list[float] = []

        def arrived(_: object) -> Any:
            arrivals.append(time.perf_counter())
            return self._genai.StreamingStatus.RUNNING

        started = time.perf_counter()
        result = pipeline.generate(
            self._genai.TokenizedInputs(*tensors), self._config(way, max_tokens), streamer=arrived
        )
        total = time.perf_counter() - started
        said = list(result.tokens[0])
        first = arrivals[0] - started if arrivals else total
        return {"ids": said, "ended": bool(said) and said[-1] in self.ends, "ttft_s": first, "total_s": total}

    def _pipeline(self, way: str) -> Any:
        if way not in self._pipelines:
            extra: dict[str, Any] = {"prompt_lookup": True} if way == "lookup" else {}
            if way == "draft":
                extra["draft_model"] = self._genai.draft_model(self._draft, "CPU", **self._settings)
            self._pipelines[way] = self._genai.LLMPipeline(self._target, "CPU", **extra, **self._settings)
        return self._pipelines[way]

    def _config(self, way: str, max_tokens: int) -> Any:
        config = self._genai.GenerationConfig(f"{self._target}/generation_config.json")
        config.max_new_tokens = max_tokens
        config.do_sample = False
        if way != "plain":
            config.num_assistant_tokens = self._drafted
        if way == "lookup":
            config.max_ngram_size = LOOKUP_NGRAM
        return config


def serve(ways: Any, requests: IO[str], answers: IO[str]) -> None:
    """Answer line by line until the requests end; a request that fails is answered with its problem."""
    for line in requests:
        try:
            asked = json.loads(line)
            said = ways.answer(asked["way"], asked["ids"], asked["max_tokens"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            said = {"problem": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


def main(arguments: list[str]) -> None:
    """See the module's text."""
    # A script's folder is searched first, and files of ours there have names that libraries have too.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    target, draft, threads, drafted = arguments
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the libraries print must not stand between the answers
    try:
        ways = Ways(target, draft, int(threads), int(drafted))
        hello: dict[str, Any] = {"ready": ways.facts()}
    except ImportError as error:
        ways, hello = None, {"problem": f"openvino_genai cannot be imported: {error}"}
    except RuntimeError as error:
        ways, hello = None, {"problem": str(error)}
    answers.write(json.dumps(hello) + "\n")
    answers.flush()
    if ways is not None:
        serve(ways, sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
