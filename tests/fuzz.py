"""The readers under a coverage-guided fuzzer (atheris, on LLVM's libFuzzer): ``make fuzz``.

    python tests/fuzz.py TARGET [CORPUS_FOLDER] [-max_total_time=60 and other options of libFuzzer]

A target may refuse its input with an error of ours and with nothing else. What was found once lies in ``tests/seeds``, in a
folder for each target, and the tests run it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEEDS = Path(__file__).parent / "seeds"
_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
              "vocab": {"[UNK]": 0, "a": 1, "##b": 2, "é": 3}},
}  # fmt: skip
_RECORDS: dict[str, list[bytes]] = {
    "records": [
        b'{"question": "a?", "context": "a b", "id": 3}',
        b'["a", {"text": "ab", "text_pair": "b"}]',
        b'{"text": "\\ud83d\\ude00 \\u0301"}\n{"question": "a", "context": "\\ud800"}\n',
        b'\xef\xbb\xbf{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b", "id": "1"}]}]}]}',
    ],
    "tensors": [b'{"input_ids": [[1, 2.5], [null, 1e400]], "attention_mask": [[true]]}', b'{"input_ids": [[[]]]}'],
}


def manifest() -> dict[str, Any]:
    """A manifest of question answering."""
    tensor = {"dtype": "int64", "shape": ["batch", "sequence"], "minimum": 0, "maximum": 3, "pad": 0}
    nothing = {"minimum": None, "maximum": None, "pad": None}
    outputs = [{**tensor, **nothing, "name": name, "dtype": "float32"} for name in ("start_logits", "end_logits")]
    build = {"precision": "fp32", "fuser": "ipex", "torch": "2.8.0", "ipex": "2.8.0", "isa": "AVX2", "fused": {}, "unfused": {}}
    trial = {"choice": "layers", "form": "onednn", "ratios": [1.5], "kept": True}
    tuning = {"cpu": "x", "cpus": 2, "sizes": [[1, 16]], "threads": 2, "streams": 1, "trials": [trial]}
    differences = dict.fromkeys(("max_abs", "mean_abs", "max_relative", "rms_relative"), 0.5)
    proof = {"inputs": 1, "shapes": [[1, 2]], "tolerance": 0.5, "answers": 1, "answers_equal": 1}
    proof |= {f"{name}_difference": value for name, value in differences.items()}
    return {
        "format_version": 3,
        "cpuc_version": "0.1.0",
        "task": "question-answering",
        "architecture": "bert",
        "source": {"id": "x", "revision": None, "license": None, "weights": "model.safetensors"},
        "axes": {"batch": {"minimum": 1, "maximum": None}, "sequence": {"minimum": 1, "maximum": 16}},
        "inputs": [{**tensor, "name": "input_ids"}],
        "outputs": outputs,
        "preprocessing": {"padding_side": "right", "truncation_side": "right", "cls_token_id": None},
        "build": {**build, "quantization": None, "tuning": tuning},
        "proof": proof,
        "members": {},
    }


def bundle() -> bytes:
    """A bundle that is whole, of 3 KB; its graph is none."""
    from archives import Member, pack

    extra = {"data.pkl": b"pickle", "extra/tokenizer.json": json.dumps(_TOKENIZER).encode()}
    facts = {**manifest(), "members": {name: hashlib.sha256(data).hexdigest() for name, data in extra.items()}}
    members = {**extra, "extra/manifest.json": json.dumps(facts).encode()}
    return pack([Member(f"cpuc/{name}".encode(), data) for name, data in members.items()])


def fuzz_bundle(data: bytes) -> None:
    from cpuc.runtime.bundle import open_bundle
    from cpuc.runtime.summary import describe
    from cpuc.runtime.tasks import load_task

    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        file.write(data)
        file.flush()
        opened = open_bundle(file.name)
        opened.check_digests()
        load_task(opened.manifest, opened.read)
        assert describe(opened) and opened.manifest.to_json().encode()


def fuzz_manifest(data: bytes) -> None:
    from cpuc.runtime.errors import BundleError
    from cpuc.runtime.manifest import Manifest
    from cpuc.runtime.tasks import load_task

    read = Manifest.from_json(data)
    assert Manifest.from_json(read.to_json()) == read
    extra = {"tokenizer.json": json.dumps(_TOKENIZER).encode(), "vocabulary.json": b'["a", "|", "<pad>"]'}

    def member(name: str) -> bytes:
        if name not in extra:
            raise BundleError("no such member")
        return extra[name]

    load_task(read, member)


def fuzz_tokenizer(data: bytes) -> None:
    from cpuc.runtime.manifest import Manifest
    from cpuc.runtime.text import TextEncoder

    encoder = TextEncoder(Manifest.from_json(json.dumps(manifest())), data)
    assert encoder.encode("a ab é ~", "b", "the text", cut="longest_first").ids


def fuzz_signature(data: bytes) -> None:
    from cpuc.runtime.signature import Signature

    signature = Signature.from_json(data)
    assert signature.signer and Signature.from_json(signature.to_json().encode()) == signature


def _task() -> Any:
    from cpuc.runtime.manifest import Manifest
    from cpuc.runtime.tasks import load_task

    return load_task(Manifest.from_json(json.dumps(manifest())), lambda _: json.dumps(_TOKENIZER).encode())


def fuzz_records(data: bytes) -> None:
    from cpuc.runtime.errors import InputError
    from cpuc.runtime.records import parse_records
    from cpuc.runtime.text import parse_text

    records = parse_records(data, "input")
    task = _task()
    for value, name in zip(records.values, records.names, strict=True):
        with contextlib.suppress(InputError):
            parse_text(value, name, pairs=True)
        with contextlib.suppress(InputError):
            for row in task.encode(task.parse(value, name), task.options({})):
                assert 0 < row.length <= 16


def fuzz_tensors(data: bytes) -> None:
    from cpuc.runtime.manifest import Manifest
    from cpuc.runtime.tensors import format_tensors, parse_tensors

    arrays = parse_tensors(data, "input", Manifest.from_json(json.dumps(manifest())))
    if "input_ids" in arrays:
        assert arrays["input_ids"].dtype == "int64"
        assert json.loads(format_tensors({"input_ids": arrays["input_ids"]}, npz=False))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "bundle": fuzz_bundle,
    "manifest": fuzz_manifest,
    "records": fuzz_records,
    "signature": fuzz_signature,
    "tensors": fuzz_tensors,
    "tokenizer": fuzz_tokenizer,
}


def run(target: str, data: bytes) -> bool:
    """Whether the input was taken; any error but ours comes out."""
    from cpuc.runtime.errors import CpucError

    try:
        TARGETS[target](data)
    except CpucError:
        return False
    return True


def write_corpus(target: str, folder: Path) -> None:
    """Good inputs, from which the fuzzer makes bad ones."""
    import io

    import numpy as np

    good = [path.read_bytes() for path in sorted(SEEDS.glob(f"{target}/*"))] + _RECORDS.get(target, [])
    if target == "bundle":
        good.append(bundle())
    elif target == "manifest":
        good.append(json.dumps(manifest()).encode())
    elif target == "tokenizer":
        good.append(json.dumps(_TOKENIZER).encode())
    elif target == "signature":
        good.append(json.dumps({"algorithm": "ed25519", "public_key": "A" * 43 + "=", "signature": "A" * 86 + "=="}).encode())
    elif target == "tensors":
        for save in (np.savez, np.savez_compressed):
            buffer = io.BytesIO()
            save(buffer, input_ids=np.ones((1, 3), np.int32), attention_mask=np.ones((1, 3), bool))
            good.append(buffer.getvalue())
    for data in good:
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def mutate_json(data: bytes, max_size: int, seed: int) -> bytes:
    """Mostly another value somewhere in the JSON, which single bytes seldom make; else what libFuzzer does itself."""
    import random

    import atheris

    generator = random.Random(seed)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict | list) or generator.random() < 0.3:
        return bytes(atheris.Mutate(data, max_size))
    places = _places(value)
    for _ in range(generator.randint(1, 3)):
        if not places:
            break
        container, key = generator.choice(places)
        if generator.random() < 0.2:
            container[key] = generator.choice(places)[0]
        elif generator.random() < 0.1 and isinstance(container, dict):
            container[generator.choice(_ODD_TEXTS)] = container.pop(key, None)
        else:
            container[key] = generator.choice(_ODD)
        with contextlib.suppress(ValueError, RecursionError):  # a container within itself
            value = json.loads(json.dumps(value))
            places = _places(value)
            continue
        return data
    return json.dumps(value).encode()[:max_size]


_ODD_TEXTS = [
    "",
    "a",
    "input_ids",
    "\ud800",
    "\0",
    "é" * 300,
    "batch",
    "text-classification",
    "fill-mask",
    "image-classification",
]
_ODD = [None, True, 0, -1, 1, 0.5, 2**31, 2**63, 10**40, -1e308, [], {}, [[]], [3, "batch"], *_ODD_TEXTS]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [(value, key) for key, _ in items] + [place for _, inner in items for place in _places(inner)]


def main() -> None:
    import atheris

    target = sys.argv[1]
    with atheris.instrument_imports(include=["cpuc.runtime", "json", "zipfile", "numpy.lib"]):
        import cpuc.runtime.archive
        import cpuc.runtime.bundle
        import cpuc.runtime.records
        import cpuc.runtime.tasks.question_answering
        import cpuc.runtime.tensors
        import cpuc.runtime.text  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(target, Path(folder))
        if not all(
            run(target, path.read_bytes()) for path in Path(folder).iterdir() if target in ("bundle", "manifest", "signature")
        ):
            sys.exit(f"{target}: a good input is refused")
        mutator = {} if target == "bundle" else {"custom_mutator": mutate_json}
        atheris.Setup([sys.argv[0], *sys.argv[2:], folder], lambda data: run(target, data) and None, **mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
