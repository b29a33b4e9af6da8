"""Tuning: what a compile measures and keeps, and what the runtimes make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import pack, unpack, with_manifest
from conftest import INT8, Run
from media_models import make_media_model
from tiny import make_model

import cpuc
from cpuc.compiler.benchmarking.machine import cpu_count, cpu_name
from cpuc.compiler.benchmarking.sizes import Size
from cpuc.compiler.forms import Forms, defaults, int8_kernels, norm_adds
from cpuc.compiler.fusion import FusedGraph
from cpuc.compiler.loading import load_original
from cpuc.compiler.source import resolve, snapshot
from cpuc.compiler.tasks import TASKS
from cpuc.compiler.tuning import tune
from cpuc.compiler.verification import make_sample, run_original, with_packed_sizes
from cpuc.runtime.manifest import Manifest, Trial, Tuning
from cpuc.runtime.tasks import load_task


@pytest.fixture(scope="module")
def tuned(cli: Run, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle that was tuned for two sizes, and what the command printed."""
    path = tmp_path_factory.mktemp("tuned") / "model.pt"
    done = cli("compile", tiny_model, "-o", path, "--tune-shapes", "1x16, 2x20", "--tune-seconds", "0.1")
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def test_the_manifest_says_what_was_measured(tuned: tuple[Path, str], cli: Run) -> None:
    path, printed = tuned
    manifest = cpuc.open_bundle(path).manifest
    tuning = manifest.build.tuning
    assert tuning is not None
    assert (tuning.cpu, tuning.cpus, tuning.sizes) == (cpu_name(), cpu_count(), [[1, 16], [2, 20]])
    choices = {trial.choice for trial in tuning.trials}
    assert choices >= {"layers", "attention", *(["residual"] if norm_adds() else [])}
    assert ("streams" in choices) == (cpu_count() > 1)
    assert ("threads" in choices) == (min(cpu_count(), torch.get_num_threads()) > 1)
    assert all(len(trial.ratios) == 2 and min(trial.ratios) > 0.01 for trial in tuning.trials)
    for choice in choices:
        assert sum(trial.kept for trial in tuning.trials if trial.choice == choice) <= 1
    kept = {trial.choice: trial.form for trial in tuning.trials if trial.kept}
    assert str(tuning.streams) == kept.get("streams", "1")
    assert str(tuning.threads) == kept.get("threads", str(min(cpu_count(), torch.get_num_threads())))
    other = "flash" if defaults(torch.float32).attention == "products" else "products"
    assert ("torch_ipex::bmm_add" in manifest.build.fused) == ((kept.get("attention") == other) != (other == "flash"))
    assert manifest.build.fused.keys().isdisjoint({"torch_ipex::tpp_linear_bias"}) == (kept.get("layers") == "onednn")
    assert manifest.proof is not None and manifest.proof.answers_equal == manifest.proof.answers
    assert f"for 1 x 16, 2 x 20 on {cpu_count()} CPUs of {cpu_name()}" in printed
    shown = cli("inspect", path).stdout
    assert all(f"{trial.form}: {trial.ratios[0]:.2f} {trial.ratios[1]:.2f}" in shown for trial in tuning.trials)


def test_an_untuned_one_says_nothing(tiny: Path, cli: Run) -> None:
    assert cpuc.open_bundle(tiny).manifest.build.tuning is None
    assert "tuned" not in cli("inspect", tiny).stdout


class TwoForms:
    """A graph in two forms, one of which computes all of it a hundred times."""

    def __init__(self, slow: Forms) -> None:
        self.slow = slow
        self.defaults = Forms()

    def expect(self, batch: Mapping[str, np.ndarray]) -> None:
        assert batch["x"].shape == (4, 300)

    def alternatives(self) -> dict[str, list[str]]:
        return {"layers": [], "attention": ["other"]}

    def build(self, forms: Forms) -> FusedGraph:
        times = 100 if forms == self.slow else 1

        def forward(x: torch.Tensor) -> tuple[torch.Tensor]:
            for _ in range(times):
                x = torch.sin(x)
            return (x,)

        program = torch.jit.trace(forward, torch.randn(4, 16))
        return FusedGraph(program, fused={forms.attention: 1}, unfused={}, quantization=None)


@pytest.mark.parametrize(("slow", "best"), [(Forms(), "other"), (Forms(attention="other"), "flash")])
def test_the_faster_form_is_kept(slow: Forms, best: str, tiny: Path) -> None:
    facts = cpuc.open_bundle(tiny).manifest.to_dict()
    facts["inputs"] = [{**facts["inputs"][0], "name": "x"}]
    manifest = Manifest.from_json(json.dumps(facts))
    threads, stages = torch.get_num_threads(), list[str]()
    graph, tuning = tune(TwoForms(slow), manifest, [Size(4, 300)], 0.1, stages.append)  # type: ignore[arg-type]
    assert graph.fused == {best: 1}
    trial = tuning.trials[0]
    assert (trial.choice, trial.form, trial.kept) == ("attention", "other", best == "other")
    assert trial.ratios[0] > 2 if trial.kept else trial.ratios[0] < 0.5
    assert stages[0] == "tuning: attention other"
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("", "--tune-shapes '': write rows x length, as in 1x16,8x128"),
        ("1x", "--tune-shapes '1x': write rows x length"),
        ("0x16", "--tune-shapes '0x16': write rows x length"),
        ("1x16x2", "write rows x length"),
        ("4", "--tune-shapes: 4 does not fit the model, which takes rows x tokens"),
        ("1x16,1x9999", "--tune-shapes: the model takes a sequence of at least 1 and at most"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(shapes: str, message: str, cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    done = cli("compile", tiny_model, "-o", tmp_path / "model.pt", "--tune-shapes", shapes)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_length_takes_rows(cli: Run, tmp_path: Path) -> None:
    source = make_media_model(tmp_path / "vit", "vit", "image-classification")
    done = cli("compile", source, "-o", tmp_path / "model.pt", "--tune-shapes", "1x16")
    assert done.returncode == 1
    assert "--tune-shapes: 1x16 does not fit the model, which takes rows alone: the length is fixed" in done.stderr
    manifest = cpuc.compile(str(source), tmp_path / "model.pt", tune="1,3", tune_seconds=0.1)
    assert manifest.build.tuning is not None and manifest.build.tuning.sizes == [[1], [3]]


@pytest.mark.parametrize(("precision", "offered"), [("fp32", True), ("int8-fp32", False)])
def test_weights_are_packed_for_one_size_in_float32(precision: str, offered: bool, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    manifest = cpuc.compile(str(tiny_model), path, precision=precision, tune="3x50", tune_seconds=0.1)
    assert manifest.build.tuning is not None
    kept = {trial.form: trial.kept for trial in manifest.build.tuning.trials if trial.choice == "layers"}
    assert ("mkl" in kept) == offered
    assert ("ipex_prepack::mkl_sgemm_run" in manifest.build.fused) == kept.get("mkl", False)


def test_kernels_of_int8_are_an_alternative(cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    done = cli("compile", tiny_model, "-o", path, "--precision", "int8-fp32", "--tune-shapes", "1x4", "--tune-seconds", "0.1")
    assert (done.returncode, done.stderr) == (0, "")  # though a graph that was tried is saved a second time
    manifest = cpuc.open_bundle(path).manifest
    assert manifest.build.tuning is not None
    (trial,) = [trial for trial in manifest.build.tuning.trials if trial.choice == "int8"]
    usual = int8_kernels()
    assert {usual, trial.form} == {"fbgemm", "onednn"}
    kept = trial.form if trial.kept else usual
    operators = {name.partition("::")[0] for name in manifest.build.fused if name.startswith(INT8)}
    assert operators == {"onednn" if kept == "onednn" else "quantized"}


def test_no_time_is_refused(cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    for seconds in ("0", "nan", "-1"):
        done = cli("compile", tiny_model, "-o", tmp_path / "model.pt", "--tune", "--tune-seconds", seconds)
        assert done.returncode == 1
        assert "must be a positive number of seconds" in done.stderr


def test_auto_is_not_tuned(cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    done = cli("compile", tiny_model, "-o", tmp_path / "model.pt", "--precision", "auto", "--tune")
    assert done.returncode == 2
    assert "compile at that with --tune" in done.stderr


def test_seconds_without_tuning_are_refused(cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    done = cli("compile", tiny_model, "-o", tmp_path / "model.pt", "--tune-seconds", "1")
    assert done.returncode == 2
    assert "--tune-seconds goes with --tune or --tune-shapes" in done.stderr


def retuned(bundle: Path, target: Path, **facts: Any) -> Path:
    """The bundle, as if it had been tuned on this machine and one thread had been the best."""
    tuning = Tuning(cpu_name(), cpu_count(), [[1, 16]], threads=1, streams=1, trials=[])
    changed = {"tuning": {**vars(tuning), **facts}}
    target.write_bytes(pack(with_manifest(unpack(bundle), lambda manifest: manifest["build"].update(changed))))
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, "manifest.json.build.tuning: threads and streams must be from 1 to cpus"),
        ({"streams": 10**6}, "threads and streams must be from 1 to cpus"),
        ({"cpus": 2**40}, "threads and streams must be from 1 to cpus"),
        ({"trials": [{}]}, r"manifest.json.build.tuning.trials\[0\]: field 'choice' is missing"),
    ],
)
def test_what_no_tuning_says_is_refused(change: dict[str, Any], message: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(cpuc.BundleError, match=message):
        cpuc.open_bundle(retuned(tiny, tmp_path / "bad.pt", **change))


def test_sizes_that_layers_are_packed_for_are_verified(tmp_path: Path) -> None:
    """BART's classifiers look for the end of each row, of which random numbers must have one."""
    folder = make_model(tmp_path / "source", "bart", "text-classification")
    manifest = cpuc.compile(str(folder), tmp_path / "model.pt")
    kept = Tuning("a CPU", 2, [[8, 33]], 2, 1, [Trial("layers", "mkl", [1.1], True)])
    packed = replace(manifest, build=replace(manifest.build, tuning=kept))
    opened = cpuc.open_bundle(tmp_path / "model.pt")
    sample = make_sample(load_task(manifest, opened.read), manifest, TASKS[manifest.task].records(manifest.preprocessing))
    assert with_packed_sizes(sample, manifest) is sample
    (batch,) = with_packed_sizes(sample, packed).batches[len(sample.batches) :]
    assert batch.inputs["input_ids"].shape == (8, 33)
    source = resolve(str(folder))
    original = load_original(source, snapshot(source), manifest.task, "bart")
    (expected,) = run_original(original, [spec.name for spec in manifest.inputs], ["logits"], [batch])
    found = cpuc.load(tmp_path / "model.pt", warm_up=False).raw(batch.inputs)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-4)
