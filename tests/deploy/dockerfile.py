"""The Dockerfile as data: its stages and their instructions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template


@dataclass(frozen=True)
class Instruction:
    """``RUN``, ``COPY`` and so on, with the rest of its line; continued lines are joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of its text, those of a JSON list where it is one."""
        return json.loads(self.text) if self.text.startswith("[") else self.text.split()


@dataclass
class Stage:
    """``FROM base AS name`` and what follows."""

    name: str
    base: str
    instructions: list[Instruction]


def read_stages(file: Path) -> dict[str, Stage]:
    """Stages by name, in order; ``ARG`` before the first one gives the bases their values."""
    text = re.sub(r"^#.*\n", "", file.read_text("utf-8"), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    instructions: list[Instruction] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            instructions = []
            stages[stage] = Stage(stage, Template(base).substitute(arguments), instructions)
        elif name == "ARG" and not stages:
            arguments |= assignments(rest)
        elif name:
            instructions.append(Instruction(name, rest.strip()))
    return stages


def chain(stages: dict[str, Stage], target: str) -> list[Instruction]:
    """Every instruction that makes ``target``, those of the stages under it first."""
    stage = stages[target]
    below = chain(stages, stage.base) if stage.base in stages else []
    return below + stage.instructions


def assignments(text: str) -> dict[str, str]:
    """``A=1 B="two words"`` as a mapping."""
    return {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|\S*)', text)}


def settings(instructions: list[Instruction]) -> dict[str, str]:
    """The environment that ``ENV`` instructions leave, without the values that they expand."""
    made: dict[str, str] = {}
    for instruction in instructions:
        if instruction.name == "ENV":
            made |= assignments(instruction.text)
    return made


def last(instructions: list[Instruction], name: str) -> Instruction:
    """The instruction of this name that is in force. Raises KeyError where there is none."""
    for instruction in reversed(instructions):
        if instruction.name == name:
            return instruction
    raise KeyError(f"the Dockerfile has no {name}")
