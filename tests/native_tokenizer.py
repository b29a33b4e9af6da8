"""The native tokenizer as a program, tokenizers that tests give it, and what the library says about the same."""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import pytest
import tokenizers
from conftest import ROOT
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from cpuc.compiler import native

FLAGS = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


NASTY = [
    "",
    " ",
    "\t\n\r\v\f\x85\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000x",
    "\x00a\x01b\x7fc\x9fd\ufffde\ufeff\u200bf\u200c\u200d\u00ad\ue000\U000f0000\U0010fffdg",
    "\u0378\u0380\U000e0001\uffff\ufdd0\U0001ffff",  # not assigned, no characters
    "e\u0301\u0327 e\u0327\u0301 \u0301x a\u0344\u0316b \u0f73\u0f71\u0f80 \u1e69 s\u0323\u0307 q\u0307\u0323\u0334",
    "Ａ ﬀ ﬁ ① Ⅻ ª ㎏ \u212a \u212b \u2126 \uf900 \U0002f800",
    "İstanbul IŞIK ΌΔΟΣ ΣΑΣ ẞ straße ǅ Ǆ ǆ ŉ ᾼ",
    "한국어 \u1112\u1161\u11ab 各角 豈",
    "中文abc中 日本語テスト 𠀀𪚥𫝀𫠠\U0002b920\U0002ceb0\u4dbf\u4dc0\u9fff\ua000",
    "👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽 🇩🇪 ☺\ufe0f 1\ufe0f\u20e3",
    "มันเป็น ไทย नमस्ते क्षि தமிழ் བོད་ ខ្មែរ မြန်မာ עִבְרִית العَرَبِيَّة",
    "a" * 100,
    "a" * 101,
    "a" * 100_000,
    "é" * 100 + " " + "é" * 101 + " " + "e\u0301" * 100,
    "a" + "\u0301\u0316" * 5000 + "b",
    "don't!?...—«»“”„¡¿§¶·†‡•‰′″※‼⁇⟦⟧、。〈〉〽﹏！＄＋＜￠",
    "$+<=>^`|~ ©®¬°±×÷€£¥",
    "[MASK] [mask] x[SEP]y [ CLS ] [UNK][PAD]",
    "U.S.A. 3.14 a_b c-d e/f g@h.i http://x.y/?z=1&w=2#q",
]

# Every character of the planes that have any, and some of the others.
BLOCKS = [(0, 0xD800), (0xE000, 0x1FC00), (0x20000, 0x20100), (0x2A600, 0x2EF00), (0x2F700, 0x2FB00), (0xE0000, 0xE0200)]
BLOCKS += [(0x31300, 0x33500), (0x3D000, 0x3FD00), (0xF0000, 0xF0010), (0xFFFF0, 0x100010), (0x10FFF0, 0x110000)]

TRUNCATIONS = st.fixed_dictionaries(
    {
        "length": st.integers(0, 14),
        "stride": st.integers(0, 4),
        "strategy": st.sampled_from(["longest_first", "only_first", "only_second"]),
        "side": st.sampled_from(["left", "right"]),
    }
)


def built(name: str, **options: Any) -> Path:
    """A build folder, up to date. Skips the test where compiler or libraries are missing."""
    if missing := native.missing_packages():
        pytest.skip(f"building the native runtime needs {', '.join(missing)}")
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side
        return native.build(folder, **options)


def xquad(shared_data: Path) -> list[dict[str, str]]:
    """Questions and contexts in twelve languages; skips the test where they are not."""
    path = shared_data / "xquad-multilingual.jsonl"
    if not path.is_file():
        pytest.skip("xquad-multilingual.jsonl is not in the shared data")
    return [json.loads(line) for line in path.read_text().splitlines()]


def refusal(program: Path, path: Path) -> Any:
    """What the program says of a file that it cannot use."""
    done = subprocess.run([program, path], input="", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Native:
    """`cpuc-tokenize` with one tokenizer.json, and the library with the same."""

    def __init__(self, program: Path, path: Path) -> None:
        self.library = tokenizers.Tokenizer.from_file(str(path))
        self._process = subprocess.Popen([program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0  # sanitizers report leaks when it ends

    def ask(self, **request: Any) -> Any:
        """The answer to a line. Fails if the program ended, as it does when a sanitizer finds something."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the program ended with {self._process.wait()} at {request}"
        return json.loads(line)

    def check(self, text: str, pair: str | None = None, special: bool = True, **truncation: Any) -> None:
        """Both give the same encodings, or both fail. `truncation`: length, stride, strategy, side."""
        found = self.ask(text=text, pair=pair, special=special, **truncation)
        wanted = self.expected(text, pair, special, **truncation)
        if isinstance(wanted, str):
            assert found == {"error": wanted, "kind": "bundle"}
        else:
            assert found == wanted

    def expected(self, text: str, pair: str | None, special: bool, **truncation: Any) -> list[dict[str, Any]] | str:
        """The library's encodings in the program's form, or the message with which it fails."""
        try:
            self.library.no_truncation()
            if truncation:
                names = {"stride": "stride", "strategy": "strategy", "side": "direction"}
                options = {name: truncation[each] for each, name in names.items() if each in truncation}
                self.library.enable_truncation(truncation["length"], **options)
            encoding = self.library.encode(text, pair, add_special_tokens=special)
        except BaseException as error:  # a panic of Rust is not an Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            return str(error)
        return [as_json(each) for each in (encoding, *encoding.overflowing)]


Make = Callable[..., Native]


def as_json(encoding: tokenizers.Encoding) -> dict[str, Any]:
    """An encoding of the library in the program's form."""
    count = max((word + 1 for word in encoding.word_ids if word is not None), default=0)
    spans = [[encoding.word_to_chars(word, sequence) for word in range(count + 1)] for sequence in (0, 1)]
    return {
        "ids": encoding.ids,
        "type_ids": encoding.type_ids,
        "tokens": encoding.tokens,
        "offsets": [list(each) for each in encoding.offsets],
        "special_tokens_mask": encoding.special_tokens_mask,
        "word_ids": encoding.word_ids,
        "sequence_ids": encoding.sequence_ids,
        "words": [[list(each) if each else None for each in words] for words in spans],
    }


def vocabulary(characters: Iterable[str]) -> dict[str, int]:
    """Special tokens, and a piece for each character and for each that some setting of BertNormalizer makes of it."""
    lower, plain = normalizers.Lowercase(), normalizers.NFD()
    pieces = dict.fromkeys(SPECIAL)
    for character in characters:
        for form in (character, lower.normalize_str(character), plain.normalize_str(character)):
            for each in (*form, *lower.normalize_str(form)):
                pieces[each] = pieces[f"##{each}"] = None
    return {piece: i for i, piece in enumerate(pieces)}


def bert(vocabulary: dict[str, int], **changes: Any) -> dict[str, Any]:
    """A tokenizer.json of BERT's family with some of its parts changed."""
    cls, sep = (
        {"id": token, "ids": [vocabulary[token]], "tokens": [token]} if token in vocabulary else None
        for token in ("[CLS]", "[SEP]")
    )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added(token, vocabulary[token], special=True, normalized=False) for token in SPECIAL if token in vocabulary
        ],
        "normalizer": {"type": "BertNormalizer", **dict(zip(FLAGS, (True, True, None, True), strict=True))},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template("[CLS]:0 A:0 [SEP]:0", "[CLS]:0 A:0 [SEP]:0 B:1 [SEP]:1", cls, sep),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
        **changes,
    }


def added(content: str, number: int, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"id": number, "content": content, **plain, **flags}


def template(single: str, pair: str, *tokens: dict[str, Any] | None) -> dict[str, Any]:
    """TemplateProcessing from pieces with their type, such as ``[CLS]:0 A:0``."""

    def pieces(text: str) -> list[dict[str, Any]]:
        split = (each.rsplit(":", 1) for each in text.split())
        return [
            {"Sequence" if name in "AB" else "SpecialToken": {"id": name, "type_id": int(number)}} for name, number in split
        ]

    special = {token["id"]: token for token in tokens if token}
    return {"type": "TemplateProcessing", "single": pieces(single), "pair": pieces(pair), "special_tokens": special}
