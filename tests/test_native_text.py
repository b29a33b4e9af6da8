"""The native program answers from text as the Python runtime does: the same records, spans and words, scores to rounding."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_tokenizer import built
from test_embeddings import sentence_folder
from test_text_tasks import LABELS, TEXTS, VERDICTS, assert_same, named
from tiny import make_model

import cpuc
from cpuc.runtime.records import Form, format_answers, parse_records
from cpuc.runtime.tasks import names, task_module

pytestmark = pytest.mark.slow
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


@pytest.fixture(scope="module")
def reader() -> Path:
    """The program that reads records, under sanitizers."""
    return built("native-sanitized", sanitize=True) / "cpuc-records"


class Dumped:
    """A JSON value that has `to_json`, as answers have."""

    def __init__(self, value: Any) -> None:
        self.to_json = lambda: value


def python_reads(source: str, data: bytes) -> dict[str, Any]:
    try:
        records = parse_records(data, source)
    except cpuc.InputError as error:
        return {"error": str(error)}
    formatted = format_answers(map(Dumped, records.values), records.form) if records.values else ""
    return {"form": records.form.value, "names": records.names, "values": records.values, "formatted": formatted}


def native_reads(reader: Path, cases: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    lines = "".join(f"{source}\t{data.hex()}\n" for source, data in cases)
    done = subprocess.run([reader], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n")[:-1]]


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether both read the same, or refuse it at the same line; words about JSON are the libraries' own."""
    if "error" in ours and "error" in theirs:
        found = (re.sub(r"(invalid JSON at line \d+).*", r"\1", each["error"], flags=re.DOTALL) for each in (ours, theirs))
        return next(found) == next(found)
    if "surrogate" in ours.get("error", ""):  # which Python reads, and refuses in every field that it uses
        return any("\ud800" <= character <= "\udfff" for character in theirs["formatted"])
    return json.dumps(ours) == json.dumps(theirs)  # which tells 1 from 1.0 and keeps the order of fields


SQUAD = {"question": "q", "context": "c"}
READ = [
    '{"question": "Who?", "context": "Ada."}',
    '\ufeff[{"id": 1.0, "a": 1e5}, "x", 3, -0, -0.0, 1e-7, 123456789012345678, 0.1, 1e300, 18446744073709551615]',
    '{"b": 1, "a": 2, "b": 3}',
    '{"a": 1}\n{"a": 2}\n',
    '{"a": 1}\n\n  \u00a0\x1f\n{"a": 2',
    '{"a": 1}\r\n{"a": 2}\r\n',
    "[1]\n[2]",
    '{"a": 1} {"b": 2}',
    '"\\u00e9\\ud83e\\udd50 \\u2028 \\u001f \\/ \x7f"',
    '{"a": "x\u2028y"}\n{"a": "\u0085"}',
    '{"a": [[], {}, [1, [2]], {"b": {}}]}',
    "",
    " \n\t\u00a0",
    "{",
    '{"a": }',
    '{\n "a": 1,\n "b": tru\n}',
    "[1, 2,]",
    "'a'",
    "NaN",
    "[1, -Infinity]",
    "1e999",
    '"a\nb"',
    "[01]",
    "[" * 100_000,
    '{"a":' * 3000,
    "\u00a0{}",
    "10\0",
    "[1]\0[2]",
    '{"a": 1}\0',
    json.dumps(
        {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "id": 5, "more": 1}, {"question": "r"}]}]}]}
    ),
    '{"data": []}',
    '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}, {"qas": [{"question": "r"}]}]}]}',
    '{"data": [{}]}',
    '{"data": [{"paragraphs": [{"context": "c"}]}]}',
    '{"data": 3}',
    '{"data": [3]}',
    json.dumps({"data": 1, **SQUAD}),
]


def test_records_are_read_alike(reader: Path) -> None:
    cases = [("in.json", text.encode()) for text in READ] + [("in.jsonl", text.encode()) for text in READ]
    cases += [
        ("in.json", data)
        for data in (b"\xff", b'{"a": "\xc3"}', b'{"a": "\xed\xa0\x80"}', b'{"a": "\xc0\x80"}', b"\xef\xbb\xbf")
    ]
    found = native_reads(reader, cases)
    expected = [python_reads(*case) for case in cases]
    assert [(case, a, b) for case, a, b in zip(cases, found, expected, strict=True) if not same(a, b)] == []
    assert {each.get("form") for each in expected} == {None, *(form.value for form in Form)}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES, min_size=20, max_size=40), st.integers(0, 1 << 30))
def test_any_json_is_read_and_written_alike(reader: Path, values: list[Any], seed: int) -> None:
    texts = [json.dumps(value, ensure_ascii=bool(seed >> i % 30 & 1)).encode() for i, value in enumerate(values)]
    # Cut, and with a byte changed.
    texts += [text[: seed % (len(text) + 1)] for text in texts]
    texts += [text[: seed % len(text)] + bytes([seed & 255]) + text[seed % len(text) + 1 :] for text in texts if text]
    cases = [(f"in.json{'l' * (i % 2)}", text) for i, text in enumerate(texts)]
    found = native_reads(reader, cases)
    assert [(case, ours) for case, ours in zip(cases, found, strict=True) if not same(ours, python_reads(*case))] == []


def test_numbers_that_no_64_bits_hold_are_refused(reader: Path) -> None:
    for text in (b'{"id": 18446744073709551616}', b'{"id": -9223372036854775809}'):
        (found,) = native_reads(reader, [("in.json", text)])
        assert found == {"error": "in.json: a whole number has more than 64 bits: write it as a string"}


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
            assert all(choice in helped for choice in option.metadata["choices"])


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
    assert "no such folder" in run(program, fp32, "-i", "-", "-o", tmp_path / "absent/x").stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "in.jsonl", "wrong.jsonl"]
    with Path("/dev/full").open("w") as device:
        full = subprocess.run([program, fp32, "-i", tmp_path / "in.jsonl"], stdout=device, stderr=subprocess.PIPE, check=False)
    assert full.returncode == 1 and b"standard output cannot be written" in full.stderr


def test_checking_a_bundle_answers_nothing(program: Path, tiny: Path, tmp_path: Path) -> None:
    assert run(program, tiny, "--check").returncode == 0
    data = bytearray(tiny.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "altered.pt").write_bytes(data)
    assert run(program, tmp_path / "altered.pt", "--check").returncode == 1
