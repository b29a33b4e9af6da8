"""What the tests share: the embedded model and bundles of it, the command line, and folders that may be absent."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hub import Hub
from programs import environment, run_forked
from sources import NAME, TINY, Publish, User, new_user, write

import cpuc
from cpuc.compiler.branches import one_way
from cpuc.compiler.by_rows import has_both
from cpuc.compiler.flash import ATTENTION, KERNEL
from cpuc.compiler.neighbours import layers_in
from cpuc.compiler.precision import PRECISIONS
from cpuc.compiler.xsmm import XSMM
from cpuc.runtime.engine import cpu_offers

if TYPE_CHECKING:
    from evaluation import Models, Write
    from keys import Keys
    from native_tokenizer import Native

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

Run = Callable[..., subprocess.CompletedProcess[str]]


def needs_avx512() -> None:
    """Skip a test that runs bf16 where the CPU cannot."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("bf16 needs AVX-512")


def here(precision: str) -> str:
    """`precision`, or the form of an int8 one that this CPU runs; skips the test if it runs none."""
    if precision == "bf16":
        needs_avx512()
    return f"{precision}-fp32" if precision.startswith("int8") and not cpu_offers(PRECISIONS[precision].isa) else precision


def attentions(operators: Mapping[str, int]) -> int:
    """How many of these are attention in one kernel, torch's or IPEX's; it may have another form beside that."""
    return sum(operators.get(name, 0) for name in (ATTENTION, KERNEL))


INT8 = ("onednn::qlinear", "quantized::linear")  # oneDNN's and FBGEMM's operators for layers in int8
LINEAR = (XSMM, "ipex_prepack::linear", *INT8)  # libxsmm's, oneDNN's, quantised ones


def int8_layers(operators: Mapping[str, int]) -> int:
    """How many of these compute layers in int8."""
    return sum(count for name, count in operators.items() if name.startswith(INT8))


def linear_layers(graph: Any) -> int:
    """How many of a model's linear layers the fused operators of its graph are."""
    return sum(layers_in(node) for node in one_way(graph) if node.kind().startswith(LINEAR))


@pytest.fixture(scope="session")
def fbgemm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in int8 compiled as on a CPU with neither AVX-512 nor VNNI."""
    path = tmp_path_factory.mktemp("fbgemm") / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cpuc.compiler.forms.cpu_offers", lambda _: False)
        patch.setattr("cpuc.compiler.forms.has_vnni", lambda: False)
        manifest = cpuc.compile(str(tiny_model), path, precision="int8-fp32")
    assert not any(name.startswith(INT8[0]) for name in manifest.build.fused)
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The embedded question-answering model."""
    return ROOT / "examples" / "minilm-qa"


@pytest.fixture(scope="session")
def fp32(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the embedded model at fp32."""
    path = tmp_path_factory.mktemp("bundles") / "fp32.pt"
    cpuc.compile(str(minilm), path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random question-answering model of two layers."""
    from tiny import make_model  # imports transformers

    return make_model(tmp_path_factory.mktemp("models") / "tiny", "bert")


def packed_twice() -> int:
    """Bytes of the layers of examples/minilm-qa that have two kernels on this CPU, and weights in both forms (see by_rows)."""
    layers = 6 * [(1152, 384), (384, 384), (1536, 384), (384, 1536)]
    return sum(4 * outputs * inputs for outputs, inputs in layers if has_both(torch.float32, outputs, inputs))


@pytest.fixture(scope="session")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that model: 2 MB, for tests that take it apart."""
    path = tmp_path_factory.mktemp("bundles") / "tiny.pt"
    cpuc.compile(str(tiny_model), path)
    return path


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The keys of somebody who is trusted."""
    from keys import make_keys

    return make_keys(tmp_path_factory.mktemp("keys"), "trusted")


@pytest.fixture(scope="session")
def bf16(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the embedded model at bf16."""
    needs_avx512()
    path = tmp_path_factory.mktemp("bundles") / "bf16.pt"
    cpuc.compile(str(minilm), path, precision="bf16")
    return path


@pytest.fixture(scope="session")
def model(fp32: Path) -> cpuc.Model:
    """The fp32 bundle, loaded."""
    return cpuc.load(fp32)


@pytest.fixture(scope="session")
def cli() -> Run:
    """Runs the installed program as a user does, in a process of its own; returns what it printed.

    It is a fork of one that has imported torch, unless it is to have an environment of its own: modules read some of it once
    and for all.
    """
    before = environment()

    def run(*arguments: object, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        if not changes and environment() == before:
            return run_forked([*map(str, arguments)], stdin)
        return subprocess.run(
            [Path(sys.executable).with_name("cpuc"), *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **changes},
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data that is not part of the project; tests that need it are skipped where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not here")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Small random models by name, to evaluate."""
    from evaluation import model_maker  # imports transformers, which few tests need

    return model_maker(tmp_path_factory.mktemp("models"))


@pytest.fixture
def write_data(tmp_path: Path) -> Write:
    """Writes labelled data to a file."""
    from evaluation import data_writer

    return data_writer(tmp_path)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub without repositories."""
    with Hub() as running:
        yield running


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    """A user of that Hub, without a token, with an empty cache."""
    return new_user(tmp_path / "user", hub.url)


@pytest.fixture
def publish(hub: Hub, tmp_path: Path) -> Publish:
    """Puts files on the Hub, by default the tiny model as `NAME`; returns the commit. Options are those of `Hub.add`."""
    count = iter(range(100))

    def put(files: Mapping[str, str | bytes] = TINY, name: str = NAME, **options: Any) -> str:
        return hub.add(name, write(tmp_path / f"repository-{next(count)}", files), **options)

    return put


def coverage_rows() -> dict[str, dict[str, str]]:
    """The table of docs/coverage.md: its columns by name, by architecture."""
    lines = [line for line in (ROOT / "docs" / "coverage.md").read_text().splitlines() if line.startswith("| ")]
    names, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


@pytest.fixture(scope="session")
def tokenize_program() -> Path:
    """The native tokenizer as a program, under sanitizers."""
    from native_tokenizer import built

    return built("native-sanitized", sanitize=True) / "src" / "tokenizer" / "cpuc-tokenize"


@pytest.fixture(scope="session")
def make_native(tokenize_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Native]]:
    """Makes that program for a tokenizer.json, one for each."""
    from native_tokenizer import Native

    folder = tmp_path_factory.mktemp("tokenizers")
    running: list[Native] = []

    @functools.cache
    def started(content: str) -> Native:
        path = folder / f"{len(running)}.json"
        path.write_text(content)
        running.append(Native(tokenize_program, path))
        return running[-1]

    yield lambda value: started(json.dumps(value))
    for each in running:
        with each:
            pass
