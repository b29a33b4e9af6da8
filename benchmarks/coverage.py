"""Write docs/coverage.md: what compiles, how much of it is fused, and how fast it is against eager.

    make coverage                       # all of it, in ten minutes
    python benchmarks/coverage.py bert  # one row, printed

Models are random, two layers of the sizes of a base model (convolutional ones whole): right for counts and ratios, not for
answers. The models and inputs are those of the tests.
"""

from __future__ import annotations

import dataclasses
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import media  # noqa: E402
import tiny  # noqa: E402

from cpuc.compiler.architectures import ARCHITECTURES, TEXT, Architecture  # noqa: E402
from cpuc.compiler.branches import one_way  # noqa: E402
from cpuc.compiler.capture import Inputs, capture, to_tensors  # noqa: E402
from cpuc.compiler.flash import ATTENTION, KERNEL  # noqa: E402
from cpuc.compiler.fusion import FusedGraph, fuse  # noqa: E402
from cpuc.compiler.loading import quiet  # noqa: E402
from cpuc.compiler.neighbours import layers_in  # noqa: E402
from cpuc.compiler.precision import PRECISIONS  # noqa: E402
from cpuc.compiler.tasks import TASKS  # noqa: E402

TABLE = ROOT / "docs" / "coverage.md"
ROUNDS = 15
TOKENS, SAMPLES = 128, 48_000
# What the tests' small sizes are in a base model.
BASE = {128: 768, 512: 3072, 256: 512}
LINEAR, XSMM, CONVOLUTION = "LinearOpContext", "tpp_linear", "ConvolutionOpContext"
# Where these are left, something of the kind was not fused.
LEFT = {
    "attention": ("aten::softmax", "aten::_softmax"),
    "linear": ("aten::linear", "aten::addmm", "aten::matmul", "aten::mm", "aten::bmm", "aten::einsum"),
    "convolution": ("aten::_convolution", "aten::_convolution_mode", "aten::conv1d", "aten::conv2d"),
}
HEAD = """# Coverage

Written by `make coverage`; a test compares it with the tables of the compiler and with the graphs.

*attention*, *linear* and *convolution* count the layers of a model that run as one fused operator, of all that it has. Models
have two layers of the sizes of a base model and random weights; convolutional ones are whole. *speed* is how many times as
fast as the same model in eager transformers (float32, its default attention) one input is: 128 tokens, one image, or
3 seconds of sound; ratio of medians of {rounds} calls, interleaved in one process, on {machine}. "–" means that there is none.

| architecture | tasks | attention | linear | convolution | unfused | speed fp32 | speed bf16 |
|---|---|---|---|---|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to count and time: makes it anew, with the inputs to trace and to time it with."""

    architecture: Architecture
    make: Callable[[], Any]
    example: Inputs
    timed: Inputs
    outputs: tuple[str, ...]


def scale(settings: dict[str, Any]) -> dict[str, Any]:
    """The tests' small sizes as those of a base model: heads of 64 stay, there are more of them."""

    def scaled(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return scale(value)
        if "head" in key and value == 2:
            return 12
        if key == "num_conv_pos_embedding_groups":
            return 16
        return BASE.get(value, value) if isinstance(value, int) and "head" not in key else value

    return {key: scaled(key, value) for key, value in settings.items()}


def text_subject(kind: str) -> Subject:
    """A model of text with its head for questions, or for tokens."""
    overrides = scale({**tiny.INSTEAD.get(kind, tiny.SIZES), **tiny.EXTRA.get(kind, {})})
    model = tiny.new_model(kind, **overrides)
    answers = "question-answering" in ARCHITECTURES[kind].tasks
    outputs = tuple(TASKS["question-answering" if answers else "token-classification"].outputs)
    return Subject(
        ARCHITECTURES[kind],
        lambda: tiny.new_model(kind, **overrides),
        tiny.random_tokens(model, 3, 37),
        tiny.random_tokens(model, 1, TOKENS),
        outputs,
    )


def media_subject(kind: str) -> Subject:
    """The first of the tests' cases of this architecture, as large as a base model."""
    case = next(case for case in media.CASES.values() if case.kind == kind)
    # Convolutional models are of real size unless they are told otherwise.
    settings = scale(case.settings) if case.attentions in (2, 3) else {}
    if kind == "efficientnet":
        settings = {**case.settings, "image_size": 224}
    case = dataclasses.replace(case, settings=settings)
    length = SAMPLES if case.architecture.inputs else 224
    # Packed for the size that it will meet, as a compile does.
    example = case.inputs(3, length if case.architecture.inputs is None else length // 3)
    return Subject(case.architecture, case.model, example, case.inputs(1, length), case.outputs)


def subject_of(kind: str) -> Subject:
    """What is counted and timed of an architecture."""
    return (text_subject if ARCHITECTURES[kind].tasks <= TEXT else media_subject)(kind)


def compiled(subject: Subject, dtype: str) -> FusedGraph:
    """The fused graph in a precision."""
    model = subject.make()
    subject.architecture.prepare(model)
    names = list(subject.example)
    with quiet():
        frozen = capture(model.to(getattr(torch, dtype)), names, subject.outputs, subject.example)
        # As the pipeline does: what is free but in its batch is packed for one row.
        fixed = subject.architecture.inputs is None and "pixel_values" in names
        example = {name: array[:1] for name, array in subject.example.items()} if fixed else subject.example
        return fuse(frozen, names, example, fixed=fixed)


def counts(graph: FusedGraph) -> dict[str, str]:
    """``fused/all`` for attention, linear layers and convolutions; "–" where there is none."""
    nodes = list(one_way(graph.graph))
    values = [str(value.type()) for node in nodes for value in node.inputs()]
    on_xsmm = sum(layers_in(node) for node in nodes if XSMM in node.kind())
    fused = {
        "attention": sum(graph.fused.get(operator, 0) for operator in (ATTENTION, KERNEL)),
        "linear": on_xsmm + sum(value.endswith(LINEAR) for value in values),
        "convolution": sum(value.endswith(CONVOLUTION) for value in values),
    }
    left = {kind: sum(graph.unfused.get(operator, 0) for operator in LEFT[kind]) for kind in fused}
    return {kind: f"{n}/{n + left[kind]}" if n + left[kind] else "–" for kind, n in fused.items()}


def ratios(subject: Subject, graphs: list[FusedGraph]) -> list[float]:
    """How many times as fast as eager each graph is: ratios of medians of interleaved calls."""
    model = subject.make()
    with quiet():
        model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
    eager = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in subject.timed.items()}
    tensors = to_tensors(subject.timed, list(subject.timed))
    programs = [torch.jit.load(io.BytesIO(graph.saved())) for graph in graphs]
    calls = [lambda: model(**eager), *(lambda program=program: program(*tensors) for program in programs)]
    times: list[list[float]] = [[] for _ in calls]
    for number in range(ROUNDS + 2):
        for call, taken in zip(calls, times, strict=True):
            optimise = call is calls[0]
            with torch.inference_mode(), torch.jit.optimized_execution(optimise):
                start = time.perf_counter()
                call()
                if number > 1:
                    taken.append(time.perf_counter() - start)
    medians = [statistics.median(taken) for taken in times]
    return [medians[0] / median for median in medians[1:]]


def row(kind: str) -> str:
    """The table's line of one architecture."""
    subject = subject_of(kind)
    graphs = [compiled(subject, PRECISIONS[precision].dtype) for precision in ("fp32", "bf16")]
    fused = counts(graphs[0])
    unfused = ", ".join(f"{name} {count}" for name, count in graphs[0].unfused.items()) or "–"
    speed = [f"{ratio:.2f}" for ratio in ratios(subject, graphs)]
    tasks = ", ".join(sorted(ARCHITECTURES[kind].tasks))
    return f"| {' | '.join([kind, tasks, *fused.values(), unfused, *speed])} |"


def machine() -> str:
    """The processor's name and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}"


def main() -> None:
    """Print the rows that are asked for, or write the table."""
    if sys.argv[1:]:
        for kind in sys.argv[1:]:
            print(row(kind), flush=True)
        return
    rows = []
    for kind in ARCHITECTURES:
        rows.append(row(kind))
        print(rows[-1], file=sys.stderr, flush=True)
    TABLE.write_text(HEAD.format(rounds=ROUNDS, machine=machine()) + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
