"""The native program answers from text as the Python runtime does: the same records, spans and words, scores to rounding."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archives import pack, unpack, with_manifest
from conftest import ROOT
from native_tokenizer import built
from test_embeddings import sentence_folder
from test_text_tasks import LABELS, TEXTS, VERDICTS, assert_same, named
from tiny import make_model, new_model

import cpuc
from cpuc.runtime.records import parse_records
from cpuc.runtime.tasks import names, task_module

pytestmark = pytest.mark.slow
SQUAD = {"question": "q", "context": "c"}
MASKED = ["bread is [MASK] .", "The [MASK] was still [MASK], they 're said .", "[MASK]"]
SCRIPTS = [
    "Ο ΟΔΥΣΣΕΑΣ ΓΎΡΙΣΕ ΣΤΗΝ ΙΘΆΚΗ.",
    "ภาษาไทยไม่มีช่องว่าง",
    "हिन्दी में नमस्ते",
    "\u0130stanbul\u2019da \U0001f469\u200d\U0001f373 yemek",
]


@pytest.fixture(scope="module")
def program() -> Path:
    return built("native") / "cpuc-run"


def answers(program: Path, bundle: Path, records: Any, *options: str) -> Any:
    """What the program says to the records, as parsed JSON."""
    done = run(program, bundle, "-i", "-", *options, stdin=json.dumps(records))
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def run(program: Path, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False)


def compare(program: Path, bundle: Path, records: list[Any], **options: Any) -> list[Any]:
    """Both runtimes answer alike. Returns the answers."""
    flags: list[str] = []
    for name, value in options.items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    found = answers(program, bundle, records, *flags)
    expected = [answer.to_json() for answer in cpuc.load(bundle, warm_up=False)(records, **options)]
    assert_same(found, expected)
    return expected


@pytest.fixture(scope="module")
def multilingual(shared_data: Path) -> list[dict[str, Any]]:
    lines = (shared_data / "xquad-multilingual.jsonl").read_text().splitlines()
    return [{key: record[key] for key in SQUAD} for record in map(json.loads, lines[::100])]


def test_questions_of_xquad(program: Path, fp32: Path, shared_data: Path) -> None:
    data = json.loads((shared_data / "xquad-en-dev.json").read_text())["data"]
    some = [{**article, "paragraphs": article["paragraphs"][:1]} for article in data[::3]]
    found = answers(program, fp32, {"data": some})
    records = parse_records(json.dumps({"data": some}).encode(), "in.json").values
    assert len(found) == len(records) > 50
    assert_same(found, [answer.to_json() for answer in cpuc.load(fp32, warm_up=False)(records)])


def test_questions_in_twelve_languages(program: Path, fp32: Path, multilingual: list[dict[str, Any]]) -> None:
    compare(program, fp32, multilingual)


@pytest.mark.parametrize(
    "options",
    [
        {"max_seq_length": 64, "doc_stride": 24, "top_k": 4},
        {"max_seq_length": 96, "max_answer_length": 3, "allow_no_answer": True, "top_k": 3},
        {"allow_no_answer": True},
    ],
)
def test_questions_with_windows_and_options(program: Path, fp32: Path, options: dict[str, Any]) -> None:
    records = json.loads((ROOT / "examples" / "q.json").read_text())
    records += [{"question": "who?", "context": text} for text in [*TEXTS, *SCRIPTS]]
    compare(program, fp32, records, **options)


def test_more_answers_than_there_are(program: Path, fp32: Path) -> None:
    assert len(compare(program, fp32, [{"question": "Who?", "context": "Ada wrote it."}], top_k=2**62)[0]["answers"]) > 5


@pytest.mark.parametrize("shape", [["batch", 512], ["batch"], ["batch", "sequence", 2], [1, "sequence"]])
def test_outputs_of_another_shape_than_the_manifest_says(program: Path, tiny: Path, tmp_path: Path, shape: list[Any]) -> None:
    lie = with_manifest(unpack(tiny), lambda m: m["outputs"][0].update(shape=shape))
    (tmp_path / "lie.pt").write_bytes(pack(lie))
    done = run(program, tmp_path / "lie.pt", "-i", "-", stdin=json.dumps([SQUAD, SQUAD]))
    assert (done.returncode, done.stdout) == (1, "") and "has not the shape that manifest.json states" in done.stderr


Compile = Callable[..., Path]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles a random model for a task."""

    def make(kind: str, task: str, **overrides: Any) -> Path:
        folder = tmp_path_factory.mktemp(task)
        make_model(folder / kind, kind, task, max_position_embeddings=600, **overrides)
        cpuc.compile(str(folder / kind), folder / "model.pt", task=task, verify=False)
        return folder / "model.pt"

    return make


def test_questions_with_a_byte_level_tokenizer(program: Path, compiled: Compile) -> None:
    records = [{"question": "who?", "context": text} for text in [*TEXTS, *SCRIPTS]]
    compare(program, compiled("roberta", "question-answering"), records, max_seq_length=48, doc_stride=12, top_k=3)


def test_text_classification(program: Path, compiled: Compile) -> None:
    for overrides in (
        {"num_labels": 3},
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        {"num_labels": 1, "problem_type": "regression"},
    ):
        bundle = compiled("bert", "text-classification", **overrides)
        compare(program, bundle, [*TEXTS, *SCRIPTS, {"id": "p", "text": TEXTS[0], "text_pair": TEXTS[1]}])
    compare(program, bundle, [*TEXTS, "bread " * 700], top_k=2, truncate=True)


def test_token_classification(program: Path, compiled: Compile) -> None:
    bundle = compiled("bert", "token-classification", **named(LABELS))
    for strategy in task_module("token-classification").STRATEGIES:
        expected = compare(program, bundle, [*TEXTS, *SCRIPTS, "bread " * 700], aggregation_strategy=strategy, truncate=True)
        assert any(answer["entities"] for answer in expected)
    compare(program, bundle, TEXTS, aggregation_strategy="simple", ignore_labels="O, PER")


def test_fill_mask(program: Path, compiled: Compile) -> None:
    bundle = compiled("bert", "fill-mask")
    compare(program, bundle, MASKED)
    compare(program, bundle, MASKED, top_k=2, targets="bread,the,oil")


def test_scores_among_a_large_vocabulary(program: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "large", "bert", "fill-mask")
    new_model("bert", "fill-mask", vocab_size=150_000, pad=0).save_pretrained(folder)
    cpuc.compile(str(folder), tmp_path / "model.pt", task="fill-mask", verify=False)
    (expected,) = cpuc.load(tmp_path / "model.pt", warm_up=False)(MASKED[:1])
    found = answers(program, tmp_path / "model.pt", MASKED[:1])[0]["predictions"]
    scores = {each.token: each.score for each in expected.masks[0]}
    assert {each["token"]: each["score"] for each in found} == pytest.approx(scores, rel=1e-5)


def test_embeddings(program: Path, tmp_path: Path) -> None:
    sentence_folder(tmp_path / "sentences", {"pooling_mode_mean_tokens": True}, normalize=True)
    settings = {"max_seq_length": 40, "do_lower_case": True}
    (tmp_path / "sentences/sentence_bert_config.json").write_text(json.dumps(settings))
    prompts = {"prompts": {"query": "Query: ", "none": ""}, "default_prompt_name": "query"}
    (tmp_path / "sentences/config_sentence_transformers.json").write_text(json.dumps(prompts))
    cpuc.compile(str(tmp_path / "sentences"), tmp_path / "model.pt", verify=False)
    compare(program, tmp_path / "model.pt", [*TEXTS, *SCRIPTS, "bread " * 100])
    compare(program, tmp_path / "model.pt", TEXTS, prompt_name="none")
    done = run(program, tmp_path / "model.pt", "-i", "-", "--prompt-name", "other", stdin='"a"')
    assert (done.returncode, done.stderr) == (1, "cpuc: prompt_name is 'other'; the model's prompts: none, query\n")


def test_features(program: Path, compiled: Compile) -> None:
    compare(
        program,
        compiled("bert", "feature-extraction"),
        [*TEXTS, {"id": None, "text": "a"}, {"id": [1, {"b": 2.5}], "text": "b"}],
    )


def test_zero_shot_classification(program: Path, compiled: Compile) -> None:
    bundle = compiled("bert", "zero-shot-classification", **named(VERDICTS))
    records = [{"text": text, "candidate_labels": ["food", "politics"]} for text in TEXTS] + [
        TEXTS[0],
        {"text": "bread " * 700},
    ]
    compare(program, bundle, records, candidate_labels="sports, tea,", truncate=True)
    compare(program, bundle, records[:3], multi_label=True, hypothesis_template="{} it is")


def test_multiple_choice(program: Path, compiled: Compile) -> None:
    records = [{"text": TEXTS[0], "choices": ["It rose.", "It fell.", text]} for text in [*TEXTS, *SCRIPTS]]
    compare(program, compiled("bert", "multiple-choice"), records)


@pytest.mark.parametrize(
    "record",
    [
        "a string",
        {"question": "Who?"},
        {"id": "x'y", "question": "Who?", "context": 3},
        {"id": {"a": [1, 2.5, None, True]}, "question": " ", "context": "c"},
        {"question": "Who?", "context": "\u200b"},
        {"question": "Who? " * 150, "context": "word " * 400},
    ],
)
def test_wrong_records_are_named_in_the_same_words(program: Path, fp32: Path, model: cpuc.Model, record: Any) -> None:
    done = run(program, fp32, "-i", "-", stdin=json.dumps(record))
    with pytest.raises(cpuc.InputError) as error:
        model(record)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"cpuc: {error.value}\n")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--max-seq-length", "1000"], 1, "cpuc: max_seq_length is 1000, but the model takes at most 512 tokens\n"),
        (["--top-k", "0"], 1, "cpuc: top_k is 0, must be a whole number of at least 1\n"),
        (["--truncate"], 1, "cpuc: question-answering has no option 'truncate'; it has top_k, max_seq_length, doc_stride, "),
        (["--raw", "--top-k", "3"], 1, "cpuc: --top-k has no meaning with --raw\n"),
        (["--top-k", "many"], 2, ""),
        (["--aggregation-strategy", "other"], 2, ""),
        (["--unknown"], 2, ""),
    ],
)
def test_wrong_options_are_named(program: Path, fp32: Path, options: list[str], code: int, message: str) -> None:
    done = run(program, fp32, "-i", "-", *options, stdin=json.dumps(SQUAD))
    assert (done.returncode, done.stdout) == (code, "") and done.stderr.startswith(message) and done.stderr


def test_the_program_has_the_options_of_the_python_runtime(program: Path) -> None:
    helped = run(program, "--help").stdout
    for task in names():
        if task.startswith(("image", "audio", "automatic")):
            continue
        for option in task_module(task).Options.__dataclass_fields__.values():
            assert re.search(rf"--{option.name.replace('_', '-')}\b", helped)
            if option.metadata["choices"]:
                assert f"{{{','.join(option.metadata['choices'])}}}" in helped


def test_output_is_whole_or_absent(program: Path, fp32: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    question = json.dumps({"id": 7, **json.loads((ROOT / "examples" / "q.json").read_text())[0]})
    (tmp_path / "in.jsonl").write_text(f"{question}\n\n{question}\n")
    assert run(program, fp32, "-i", tmp_path / "in.jsonl", "-o", target).returncode == 0
    assert [json.loads(line)["answer"] for line in target.read_text().splitlines()] == ["1891", "1891"]
    again = run(program, fp32, "-i", tmp_path / "in.jsonl", "-o", target)
    assert (again.returncode, again.stderr) == (1, f"cpuc: {target}: exists already; give --force to replace it\n")
    assert run(program, fp32, "-i", tmp_path / "in.jsonl", "-o", target, "--force").returncode == 0
    (tmp_path / "wrong.jsonl").write_text(f"{question}\n3\n")
    before = target.read_text()
    wrong = run(program, fp32, "-i", tmp_path / "wrong.jsonl", "-o", target, "--force")
    assert wrong.returncode == 1 and "line 2: expected" in wrong.stderr and target.read_text() == before
    (tmp_path / "link").symlink_to("linked.jsonl")
    assert run(program, fp32, "-i", tmp_path / "in.jsonl", "-o", tmp_path / "link").returncode == 0
    assert (tmp_path / "linked.jsonl").read_text() == before and (tmp_path / "link").is_symlink()
    assert "no such folder" in run(program, fp32, "-i", "-", "-o", tmp_path / "absent/x").stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "answers.jsonl",
        "in.jsonl",
        "link",
        "linked.jsonl",
        "wrong.jsonl",
    ]
    with Path("/dev/full").open("w") as device:
        full = subprocess.run([program, fp32, "-i", tmp_path / "in.jsonl"], stdout=device, stderr=subprocess.PIPE, check=False)
    assert full.returncode == 1 and b"standard output cannot be written" in full.stderr


def test_checking_a_bundle_answers_nothing(program: Path, tiny: Path, tmp_path: Path) -> None:
    assert run(program, tiny, "--check").returncode == 0
    data = bytearray(tiny.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "altered.pt").write_bytes(data)
    assert run(program, tmp_path / "altered.pt", "--check").returncode == 1
