"""``specproxy train``: a drafting head or a draft model for any target, from its own answers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from specproxy.errors import StartError

if TYPE_CHECKING:
    from specproxy.train.loop import Progress as Step
    from specproxy.train.options import Options

DESCRIPTION = """\
Trains what drafts for a target, and writes it as published engines expect it:

  eagle3   an EAGLE-3 head: one layer that reads three of the target's states and drafts token by token. The best
           acceptance for its size; needs a GPU for anything but small targets.
  medusa   Medusa heads: each guesses a token further ahead from one state. Cheap to train and to run, weaker.
  draft    a small Llama of the target's tokenizer, distilled. Needs no access to the target's states.

The prompts of the training files are answered by the target first, as a drafter has to know what the target says, not
what others do; the answers stay in the output folder for the next run. A run that is interrupted goes on when the same
command is given again."""

EPILOG = """\
training files (.jsonl, .txt, each also .xz), one record a line:
  {"messages": [...], "tools": [...]}           a chat; everything before the last assistant turn is the prompt
  {"text": "..."}                               a text, of which the target continues the beginning
  {"prompt_tokens": [...], "answer_tokens": [...]}   captured traffic of this target, used as it is

examples:
  specproxy train eagle3 --model house --data chats.jsonl --held-out eval.jsonl --out heads/eagle3
  specproxy train medusa --model ORG/MODEL --data chats.jsonl.xz --out heads/medusa --layout full
  specproxy train draft --model house --data chats.jsonl --out drafts/small --init house/draft
  specproxy train eagle3 --init heads/eagle3 --steps 0 --held-out eval.jsonl --out report   only the report"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "train",
        help="train a drafting head or a draft model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_command)
    parser.add_argument("recipe", choices=["eagle3", "medusa", "draft"], help="what to train")
    parser.add_argument(
        "--model", default="house", metavar="PATH", help="the target: folder, Hugging Face id, or house"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results, answers and state go")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where answers are kept; default: the output folder")
    parser.add_argument("--device", default="auto", help="cuda or cpu; default: cuda where there is one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides everything random")
    parser.add_argument("--init", type=Path, metavar="DIR", help="begin with these weights instead of new ones")
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON on standard output, the rest on the other"
    )
    _add_data_flags(parser)
    _add_loop_flags(parser)
    _add_shape_flags(parser)


def run_command(args: argparse.Namespace) -> int:
    """Answer, train, write, evaluate. Imports torch. Raises StartError."""
    from specproxy.train.report import table
    from specproxy.train.run import run

    console = Console(file=sys.stderr if args.json else sys.stdout)
    options = _options(args)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        result = run(options, _Display(progress, options.steps or 0))
    if result.evaluation is not None:
        console.print(table(result.evaluation))
    console.print(f"{args.recipe} written to {args.out}")
    if args.json:
        import json

        print(json.dumps(result.training))
    return 0


class _Display:
    """Bars: one a phase."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._steps = steps
        self._tasks: dict[str, TaskID] = {}

    def phase(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` of a phase."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def step(self, step: Step, total: int) -> None:
        """One training step."""
        rates = " ".join(f"{rate:.2f}" for rate in step.acceptance)
        self.phase("training", step.step, total)
        self._progress.update(self._tasks["training"], description=f"training, loss {step.loss:.3f}, accepts {rates}")


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--data", type=Path, nargs="+", default=[], metavar="FILE", help="training files")
    group.add_argument("--held-out", type=Path, nargs="+", default=[], metavar="FILE", help="prompts for the report")
    group.add_argument("--limit", type=_count, metavar="N", help="records of a training file at most")
    group.add_argument("--greedy", type=float, default=0.5, metavar="SHARE", help="answers made greedily; default: 0.5")
    group.add_argument("--temperatures", type=_floats, default=(0.7, 1.0), metavar="T,T", help="of the other answers")
    group.add_argument("--answers", type=_count, default=1, metavar="N", help="answers to each prompt")
    group.add_argument("--max-answer", type=_count, default=256, metavar="N", help="tokens of an answer at most")
    group.add_argument("--max-prompt", type=_count, default=768, metavar="N", help="tokens; longer ones are left out")
    group.add_argument("--prefix", type=_count, default=128, metavar="N", help="tokens of a text that are kept")
    group.add_argument("--batch-tokens", type=_count, metavar="N", help="answered at a time; default: by the device")


def _add_loop_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=float, default=3.0, metavar="N", help="passes over the answers; default: 3")
    group.add_argument("--steps", type=int, metavar="N", help="instead of --epochs; 0: no training, only the report")
    group.add_argument("--length", type=_count, default=1024, metavar="N", help="tokens of a packed row")
    group.add_argument("--rows", type=_count, default=8, metavar="N", help="rows of a step")
    group.add_argument("--lr", type=float, default=5e-4, metavar="RATE", help="the highest learning rate")
    group.add_argument("--save-every", type=_count, default=500, metavar="N", help="steps between checkpoints")


def _add_shape_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shape")
    group.add_argument(
        "--guesses", type=_count, metavar="N", help="eagle3: steps of training-time test (7); medusa: heads (5)"
    )
    group.add_argument("--draft-vocab", type=_count, default=2048, metavar="N", help="eagle3: ids the head can say")
    group.add_argument(
        "--hidden-states", type=_counts, metavar="I,J,K", help="eagle3: states hs[i]; default: 2,L/2,L-3"
    )
    group.add_argument("--blocks", type=_count, default=1, metavar="N", help="medusa: residual blocks of a head")
    group.add_argument("--layout", choices=["shared", "full"], default="shared", help="medusa: whose output matrix")
    group.add_argument("--layers", type=_count, default=3, metavar="N", help="draft")
    group.add_argument("--hidden-size", type=_count, default=192, metavar="N", help="draft")
    group.add_argument("--heads", type=_count, metavar="N", help="draft (3), eagle3 (the target's)")
    group.add_argument("--kv-heads", type=_count, metavar="N", help="draft (1), eagle3 (the target's)")
    group.add_argument("--intermediate-size", type=_count, metavar="N", help="draft (512), eagle3 (the target's)")
    group.add_argument("--licence", default="", help="a sentence for the card, such as the weights' licence")


def _options(args: argparse.Namespace) -> Options:
    from specproxy.train.options import Options

    if not args.data and args.steps != 0:
        raise StartError("--data: expected at least one file, or --steps 0 with --init for the report alone")
    if args.steps == 0 and args.init is None:
        raise StartError("--steps 0 needs --init: there is nothing to report on")
    taken: dict[str, Any] = {name: value for name, value in vars(args).items() if name not in ("run", "json")}
    return Options(**taken)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)
