"""What `cpuc bench` counts, measures, prints and draws, and what it refuses before anything runs."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Run, here
from evaluation import Models
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import cpuc
from cpuc.compiler.benchmarking import instructions, peak, timing
from cpuc.compiler.benchmarking.arithmetic import Arithmetic, count
from cpuc.compiler.benchmarking.machine import has_vnni
from cpuc.compiler.benchmarking.report import Result
from cpuc.compiler.benchmarking.sizes import Size, choose_sizes, make_inputs
from cpuc.runtime.engine import Engine, cpu_offers

SIZE = ["--batch-size", 2, "--seq-len", 64, "--seq-len", 16]


def counted(bundle: Path, batch: int, lengths: list[int]) -> tuple[Arithmetic, dict[str, torch.Tensor]]:
    """The arithmetic of an artifact at one size, and the inputs of that size."""
    engine = Engine(cpuc.open_bundle(bundle))
    [size] = choose_sizes(engine.manifest, [batch], lengths)
    inputs = {name: torch.from_numpy(array) for name, array in make_inputs(engine.manifest, size).items()}
    return count(engine.module, list(inputs.values())), inputs


def flops_of(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    """What torch counts in an eager model, whose attention is written out."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


def weight_size(module: torch.nn.Module) -> int:
    """Elements of the weight of a linear layer or a convolution, also of one that is made of two parameters."""
    if isinstance(module, torch.nn.Linear):
        return module.weight.numel()
    if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d):
        return module.out_channels * module.in_channels // module.groups * math.prod(module.kernel_size)
    return 0


# What implementations call the layers that make them.
KEYS_AND_VALUES = (".key", ".value", ".k_proj", ".v_proj")


def left_out(model: Any, batch: int, positions: int) -> int:
    """The last layer's operations for positions that no head reads: everything but keys and values, for all but the first."""
    last = f".{model.config.num_hidden_layers - 1}."
    layers = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.Linear) and last in name}
    weights = sum(each.weight.numel() for name, each in layers.items() if not name.endswith(KEYS_AND_VALUES))
    attention = 2 * positions * model.config.hidden_size
    return 2 * batch * (positions - 1) * (weights + attention)


@pytest.mark.parametrize(
    ("name", "kind", "lengths", "positions"),
    [
        ("verdicts", transformers.AutoModelForSequenceClassification, [37], 37),
        ("images", transformers.AutoModelForImageClassification, [], (64 // 16) ** 2 + 1),
        ("sounds", transformers.AutoModelForAudioClassification, [5000], 1),
    ],
)
def test_arithmetic_is_what_torch_counts_in_the_original(
    models: Models, name: str, kind: Any, lengths: list[int], positions: int
) -> None:
    bundle, folder = models(name)
    arithmetic, inputs = counted(bundle, 3, lengths)
    original = kind.from_pretrained(folder, attn_implementation="eager").eval()
    assert arithmetic.operations == {"fp32": flops_of(original, inputs) - left_out(original, 3, positions)}
    assert arithmetic.by_operator.total() == arithmetic.total
    assert arithmetic.weight_bytes == 4 * sum(map(weight_size, original.modules()))
    assert not arithmetic.uncounted


def test_arithmetic_in_int8_is_that_of_the_quantised_layers(tiny_model: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "int8.pt"
    manifest = cpuc.compile(str(tiny_model), bundle, precision=here("int8-dynamic"), verify=False)
    arithmetic, inputs = counted(bundle, 2, [50])
    original = transformers.AutoModelForQuestionAnswering.from_pretrained(tiny_model, attn_implementation="eager").eval()
    assert arithmetic.total == flops_of(original, inputs)
    quantization = manifest.build.quantization
    assert quantization is not None and quantization.layers > 0
    kept = {layer.name for layer in quantization.kept}
    # Layers are named after their weights.
    layers = {n: m.weight.numel() for n, m in original.named_modules() if isinstance(m, torch.nn.Linear)}
    inside = sum(size for layer, size in layers.items() if not any(layer in each for each in kept))
    assert arithmetic.operations["int8"] == 2 * 2 * 50 * inside
    outside = sum(layers.values()) - inside
    assert arithmetic.weight_bytes == inside + outside * (4 if quantization.rest == "float32" else 2)


class Plain(torch.nn.Module):
    """Products that fusion leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = torch.nn.Conv1d(6, 8, 3, stride=2, groups=2)
        self.wide = torch.nn.ConvTranspose1d(8, 4, 5, stride=3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.wide(self.narrow(x)).transpose(1, 2)
        scores = torch.baddbmm(torch.ones(1), y, y.transpose(1, 2))
        return scores @ y, torch.addmm(torch.ones(1), scores[0], y[0])


class Summed(Plain):
    """And one that there is no rule for."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return *super().forward(x), torch.einsum("bij,bkj->ik", x, x)


def test_plain_operators_are_counted_and_what_has_no_rule_is_named() -> None:
    x = torch.randn(2, 6, 21)
    for model, uncounted in ((Plain().eval(), {}), (Summed().eval(), {"aten::einsum": 1})):
        arithmetic = count(torch.jit.freeze(torch.jit.trace(model, x)), [x])
        assert arithmetic.uncounted == uncounted
        assert arithmetic.operations == {"fp32": flops_of(Plain().eval(), {"x": x})}


def test_inputs_are_of_the_signature_and_hold_no_padding(tiny: Path, models: Models) -> None:
    manifest = cpuc.open_bundle(tiny).manifest
    inputs = make_inputs(manifest, Size(3, 200, "tokens"))
    assert {array.shape for array in inputs.values()} == {(3, 200)}
    assert inputs["attention_mask"].all()
    [ids] = [spec for spec in manifest.inputs if spec.name == "input_ids"]
    assert ids.maximum is not None
    assert not (inputs["input_ids"] == ids.pad).any()
    assert inputs["input_ids"].min() == ids.minimum or ids.pad == ids.minimum
    assert ids.maximum - 3 < inputs["input_ids"].max() <= ids.maximum
    images = make_inputs(cpuc.open_bundle(models("images")[0]).manifest, Size(2))["pixel_values"]
    assert images.shape == (2, 3, 64, 64) and images.std() == pytest.approx(1, abs=0.05)


def test_sizes_are_usual_ones_within_bounds(tiny: Path, models: Models) -> None:
    manifest = cpuc.open_bundle(tiny).manifest
    assert manifest.axes["sequence"].maximum == 256
    assert [size.length for size in choose_sizes(manifest, [1], [])] == [16, 128, 256]
    assert list(map(str, choose_sizes(manifest, [1, 8, 1], [5, 256]))) == ["1 x 5", "1 x 256", "8 x 5", "8 x 256"]
    sounds = choose_sizes(cpuc.open_bundle(models("sounds")[0]).manifest, [1], [])
    assert [(size.length, size.unit) for size in sounds] == [(16_000, "samples"), (80_000, "samples")]


def test_groups_take_turns_by_time_and_change_who_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def call(name: str, takes: float) -> timing.Call:
        def run() -> None:
            calls.append(name)
            clock[0] += takes

        return run

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    progress: list[int] = []
    groups = [{"a": call("a", 1), "b": call("b", 1)}, {"slow": call("slow", 8)}, {"endless": call("endless", 1000)}]
    rounds = timing.take_turns(groups, 32.0, lambda count, total: progress.append(count / total))
    assert rounds == [{"a": [1.0] * 16, "b": [1.0] * 16}, {"slow": [8.0] * 5}, {"endless": [1000.0] * 5}]
    timed = "".join(name[0] for name in calls[4 * timing.WARM_UP :])
    # One call of eight seconds for four rounds of two.
    assert timed.replace("e", "") == "ab" + "s" + ("baabbaab" + "s") * 3 + "baabba" + "s"
    assert sum(progress) == pytest.approx(1)


def test_percentiles_are_told_of_enough_rounds_only() -> None:
    seconds = [i / 1000 for i in range(1, 101)]
    # Every other round three times as fast, the rest twice.
    original = [each * (2 + i % 2) for i, each in enumerate(seconds)]
    full = Result(Size(2, 3, "tokens"), seconds, original, Arithmetic(), [])
    assert [full.percentile(rank) for rank in (50, 90, 99)] == pytest.approx([0.0505, 0.0901, 0.09901])
    assert full.ratio is not None
    assert (full.ratio.lower, full.ratio.median, full.ratio.upper) == pytest.approx((2, 2.5, 3))
    assert full.ratio.medians == pytest.approx(statistics.median(original) / 0.0505)
    assert full.per_second(2) == pytest.approx(200 / 5.05)
    few = Result(Size(1), seconds[:99], None, Arithmetic(), [])
    assert few.percentile(99) is None and few.percentile(90) is not None and few.ratio is None
    assert Result(Size(1), seconds[:9], None, Arithmetic(), []).percentile(90) is None


def test_machine_code_is_what_an_assembler_makes() -> None:
    # GNU as 2.4x, in Intel's order of operands.
    for code, expected in (
        (instructions.evex(0xB8, 2, 1, 0, 14, 15), "62d20d48b8c7"),  # vfmadd231ps zmm0, zmm14, zmm15
        (instructions.evex(0xB8, 2, 1, 11, 14, 15), "62520d48b8df"),  # vfmadd231ps zmm11, zmm14, zmm15
        (instructions.evex(0x52, 2, 2, 3, 14, 15), "62d20e4852df"),  # vdpbf16ps zmm3, zmm14, zmm15
        (instructions.evex(0x50, 2, 1, 9, 14, 15), "62520d4850cf"),  # vpdpbusd zmm9, zmm14, zmm15
        (instructions.vex(0xB8, 2, 1, 11, 14, 15), "c4420db8df"),  # vfmadd231ps ymm11, ymm14, ymm15
        (instructions.vex(0x04, 2, 1, 6, 14, 15), "c4c20d04f7"),  # vpmaddubsw ymm6, ymm14, ymm15
        (instructions.vex(0xF5, 1, 1, 8, 8, 13), "c4413df5c5"),  # vpmaddwd ymm8, ymm8, ymm13
        (instructions.vex(0xFE, 1, 1, 2, 2, 8), "c4c16dfed0"),  # vpaddd ymm2, ymm2, ymm8
    ):
        assert code.hex() == expected


@pytest.mark.alone
@pytest.mark.slow
def test_figures_of_a_run(cli: Run, tiny: Path, tiny_model: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    plot.write_text("old")
    done = cli("bench", tiny, *SIZE, "--seconds", 0.5, "--against", tiny_model, "--plot", plot, "--force", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    with Image.open(plot) as image:
        assert image.format == "PNG" and min(image.size) > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png"]
    precisions = {"fp32", "int8"} | ({"bf16"} if cpu_offers("AVX512") else set())
    assert set(figures["peak"]) == precisions and set(figures["peak_skipped"]) == {"bf16"} - precisions
    for probed in figures["peak"].values():
        assert probed["best"] == max(probed["gemm"], probed["fma"] or 0) > 1e9
    # Without VNNI, three instructions do for bytes what one does for floats; on an EPYC of Zen 2 both come to as much.
    assert figures["peak"]["int8"]["best"] > figures["peak"]["fp32"]["best"] * (1 if has_vnni() else 0.9)
    assert [(each["batch_size"], each["seq_len"]) for each in figures["results"]] == [(2, 64), (2, 16)]
    manifest = cpuc.open_bundle(tiny).manifest
    for each in figures["results"]:
        latency = each["latency_ms"]
        assert 0 < latency["p50"] <= (latency["p90"] or math.inf) <= (latency["p99"] or math.inf)
        assert each["elements_per_second"] == pytest.approx(each["items_per_second"] * each["seq_len"])
        arithmetic, _ = counted(tiny, 2, [each["seq_len"]])
        assert each["operations"] == arithmetic.operations
        least = 1e3 * arithmetic.total / figures["peak"]["fp32"]["best"]
        assert each["share_of_peak"] == pytest.approx(least / latency["p50"])
        assert each["speedup"]["medians"] == pytest.approx(each["original_ms"] / latency["p50"])
        assert each["speedup"]["lower"] <= each["speedup"]["median"] <= each["speedup"]["upper"]
        operators = {operator["name"]: operator for operator in each["operators"]}
        assert sum(operator["share"] for operator in operators.values()) == pytest.approx(1)
        # Of two ways to compute the same, a call takes one.
        ran = manifest.build.fused.keys() & operators.keys()
        assert ran >= arithmetic.by_operator.keys()
        for name in ran:
            assert 0 < operators[name]["calls"] <= manifest.build.fused[name]
            assert operators[name]["operations"] == arithmetic.by_operator.get(name)


def test_table_of_images_where_no_code_may_be_written(models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(instructions.mmap, "mmap", refuse)
    monkeypatch.setattr(peak, "GEMMS", [(64, 64, 64)])
    monkeypatch.setattr(peak, "READ_BYTES", 2**20)
    stages: list[str] = []
    result = cpuc.bench(models("images")[0], batch_size=[1, 3], seconds=0.05, plot=tmp_path / "plot.svg", report=stages.append)
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    lines = result.describe()
    assert lines[0].startswith("image-classification, vit, fp32: ")
    [row] = [line for line in lines if line.startswith("fp32 ")]
    assert "none measured" in row and "64 x 64 x 64" in row
    assert result.roofs.peaks["fp32"].best == result.roofs.peaks["fp32"].gemm
    head = lines.index(next(line for line in lines if line.startswith("batch ")))
    assert lines[head].split()[:3] == ["batch", "rounds", "p50"] and "speedup" not in lines[head]
    assert [line.split()[0] for line in lines[head + 1 : head + 3]] == ["1", "3"]
    assert Counter(line.split(",")[0] for line in lines if "profiled" in line) == {"one call of 1": 1, "one call of 3": 1}
    assert stages == list(dict.fromkeys(stages)) and stages[0] == "loading the artifact"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"seq_len": 257}, ["--seq-len", "at least 1 and at most 256, not 257"]),
        ({"seq_len": [16, 0]}, ["--seq-len", "not 0"]),
        ({"batch_size": [1, 0]}, ["--batch-size", "at least 1, not 0"]),
        ({"seconds": 0}, ["--seconds is 0, must be more than 0"]),
        ({"seconds": math.nan}, ["--seconds is nan"]),
        ({"seconds": math.inf}, ["--seconds is inf"]),
        ({"revision": "main"}, ["--revision", "give --against"]),
        ({"plot": "plot.gif"}, ["plot.gif", ".png, .svg, .pdf"]),
        ({"plot": "no/such/folder/plot.png"}, ["no such folder"]),
        ({"plot": __file__ + ".png"}, []),
    ],
)  # fmt: skip
def test_wrong_options_are_told_before_anything_runs(
    tiny: Path, options: dict[str, Any], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpuc.compiler.benchmarking.pipeline.Engine", None)
    if not parts:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        parts = ["pip install 'cpuc[bench]'"]
    with pytest.raises(cpuc.CpucError) as caught:
        cpuc.bench(tiny, **options)
    for part in parts:
        assert part in str(caught.value)


def test_models_that_cannot_be_measured(models: Models, tiny: Path, tmp_path: Path, cli: Run) -> None:
    with pytest.raises(cpuc.InputError, match=r"no free length \(pixel_values \['batch', 3, 64, 64\]\)"):
        cpuc.bench(models("images")[0], seq_len=16)
    with pytest.raises(cpuc.ModelError, match="was not trained for question-answering"):
        cpuc.bench(tiny, against=str(models("verdicts")[1]))
    (tmp_path / "plot.png").write_text("precious")
    for arguments, part in (
        ([tmp_path / "absent.pt"], "absent.pt"),
        ([tmp_path / "plot.png"], "plot.png"),
        ([tiny, "--plot", tmp_path / "plot.png"], "plot.png: exists already; give --force to replace it"),
    ):
        done = cli("bench", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("cpuc: ") and done.stderr.count("\n") == 1 and part in done.stderr
    assert (tmp_path / "plot.png").read_text() == "precious"
    assert cli("bench", tiny, "--seq-len", "many").returncode == 2
