"""Unigram in the native tokenizer, and SentencePiece's normalisation: what the `tokenizers` library gives."""

from __future__ import annotations

import base64
import functools
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from native_tokenizer import BLOCKS, FUZZ, NASTY, TRUNCATIONS, Make, added, refusal, template, xquad
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

pytestmark = pytest.mark.slow

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
TEXTS = [
    "Hello  world,   three    spaces \n new\tlines ▁ and ▁▁ marks▁",
    "``Quoted'' text <mask> and<mask>, <s>more</s> <unk> x<unk><unk>y",
    "ﬁne ① ½ Ａｂｃ １２３ e\u0301a\u0302 e\u0301\u0302 \u00a0\u3000 x\u00ady \u200bz \u1112\u1161\u11ab",
    "\u0600a \u0915\u094d\u0937 ©\u200d😀",
    "\x00\x01leading and \x01\x02 inner control\x7f",
    "日本語 テスト ﾊﾟﾋﾟ 한국어 ไทย नमस्ते العربية 👩\u200d👩\u200d👧 🇩🇪🇫🇷🇮 👍🏽 ☺\ufe0f",
]
FRAGMENTS = [
    "a",
    "the",
    " ",
    "  ",
    "▁",
    "é",
    "e\u0301",
    "ﬁ",
    "①",
    "½",
    "\x01",
    "\u00ad",
    "\u200d",
    "©",
    "😀",
    "\u0600",
    "中",
    "ß",
]
MIXED = st.lists(st.sampled_from([*FRAGMENTS, "``", "\n", "<mask>", "</s>", "\u0302", "\u0903", "q", "Ａ"]), max_size=14)


def double_array(entries: Mapping[bytes, int]) -> list[int]:
    """The units of a trie in Darts' form, with a number for each key."""
    units, used = {0: 0}, {0}

    def place(position: int, keys: list[bytes], depth: int) -> None:
        first = {key[depth] for key in keys if len(key) > depth}
        leaf = [key for key in keys if len(key) == depth]
        wanted = [*first, *([0] if leaf else [])]
        base = next(base for base in range(256, 1 << 20) if used.isdisjoint(base ^ byte for byte in wanted))
        used.update(base ^ byte for byte in wanted)
        offset = position ^ base
        # Bit 9 says that the offset is shifted by eight bits more.
        units[position] |= (offset << 2 | 1 << 9) if offset % 256 == 0 else offset << 10
        if leaf:
            units[position] |= 1 << 8
            units[base] = 1 << 31 | entries[leaf[0]]
        for byte in first:
            units[base ^ byte] = byte
        for byte in sorted(first):
            place(base ^ byte, [key for key in keys if key[depth : depth + 1] == bytes([byte])], depth + 1)

    place(0, [*entries], 0)
    return [units.get(i, 0) for i in range((max(units) | 0xFF) + 1)]


def precompiled(replacements: Mapping[bytes, str]) -> dict[str, Any]:
    """SentencePiece's normalizer for these replacements."""
    text, places = b"", {}
    for key, replacement in replacements.items():
        places[key] = len(text)
        text += replacement.encode() + b"\0"
    units = double_array(places)
    charsmap = struct.pack(f"<{1 + len(units)}I", 4 * len(units), *units) + text
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}


REPLACEMENTS = {
    **{chr(0xFEE0 + number): chr(number) for number in range(0x21, 0x7F)},
    **dict.fromkeys(["\u00a0", "\u3000", "\t", "\n", "\u200b", "\u2028"], " "),
    **dict.fromkeys(["\x01", "\x02", "\x7f", "\u00ad", "\u200d", "\ufe0f"], ""),
    **{"ﬁ": "fi", "①": "1", "½": "1⁄2", "\u2026": "...", "\ufdfa": "صلى الله عليه وسلم", "™": "TM", "©": "(c)", "\u0600": "n"},
    **{
        "e\u0301": "é",
        "a\u0302": "â",
        "e\u0301\u0302": "ế",
        "\u0938\u093c": "x",
        "ﾊﾟ": "パ",
        "\u1112\u1161\u11ab": "한",
        "ß": "ss",
    },
}
CHARSMAP = precompiled({key.encode(): value for key, value in REPLACEMENTS.items()})
# Every cluster of at most five bytes becomes one character, by the byte that it begins with.
CLUSTERS = precompiled({bytes([byte]): "y" for byte in (*range(1, 0x20), *range(0x21, 0x80), *range(0xC2, 0xF5))})


@functools.cache
def trained() -> dict[str, Any]:
    """The model of a tokenizer.json: Unigram, trained on texts in many languages."""
    path = SHARED / "data" / "xquad-multilingual.jsonl"
    lines = path.read_text().splitlines()[::9] if path.is_file() else []
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=3000, special_tokens=[*SPECIAL], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([*TEXTS * 3, *(json.loads(line)["context"] for line in lines)], trainer)
    found: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return found


def metaspace(**changes: Any) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True, **changes}


def of_words(scheme: str = "always") -> dict[str, Any]:
    """What XLM-RoBERTa has: words between spaces, each with the mark."""
    return {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace(prepend_scheme=scheme)]}


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*normalizers: dict[str, Any] | str) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [{"type": each} if isinstance(each, str) else each for each in normalizers]}


CLS, SEP = ({"id": token, "ids": [i], "tokens": [token]} for i, token in ((0, "<s>"), (2, "</s>")))


def unigram(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json of XLM-RoBERTa's family with some of its parts changed."""
    tokens = [added(token, i, special=True, normalized=False) for i, token in enumerate(SPECIAL)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*tokens, added("<mask>", 9999, special=True, normalized=False, lstrip=True)],
        "normalizer": CHARSMAP,
        "pre_tokenizer": of_words(),
        "post_processor": template("<s>:0 A:0 </s>:0", "<s>:0 A:0 </s>:0 </s>:0 B:0 </s>:0", CLS, SEP),
        "decoder": metaspace(),
        "model": changes.get("model") or trained(),
        **changes,
    }


STRIP_RIGHT = {"type": "Strip", "strip_left": False, "strip_right": True}
QUOTES = (replace("``", '"'), replace("''", '"'))
FAMILIES: dict[str, dict[str, Any]] = {
    "xlm-roberta": {},
    "xlm-roberta before": {
        "normalizer": sequence(CHARSMAP, STRIP_RIGHT, replace(" {2,}", "▁", "Regex")),
        "pre_tokenizer": metaspace(),
    },
    "t5": {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}},
    "albert": {
        "normalizer": sequence(*QUOTES, "NFKD", "StripAccents", "Lowercase", CHARSMAP, replace(" {2,}", " ", "Regex")),
        "pre_tokenizer": metaspace(prepend_scheme="first"),
    },
    "xlnet": {"normalizer": sequence(*QUOTES, "NFKD", "StripAccents", CHARSMAP), "pre_tokenizer": of_words("first")},
    "mbart": {"normalizer": sequence(CHARSMAP, replace(" {2,}", " ", "Regex")), "pre_tokenizer": metaspace(split=False)},
    "deberta-v2": {
        "normalizer": sequence(replace("\\s{2,}|[\\n\\r\\t]", " ", "Regex"), "NFC", STRIP_RIGHT),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [metaspace()]},
    },
    "never": {"pre_tokenizer": metaspace(prepend_scheme="never", add_prefix_space=False), "post_processor": None},
    "another mark": {
        "pre_tokenizer": metaspace(replacement="_"),
        "decoder": metaspace(replacement="e", prepend_scheme="never"),
    },
    "none": {"normalizer": None, "pre_tokenizer": None, "decoder": None},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_nasty_texts(make_native: Make, name: str) -> None:
    native = make_native(unigram(**FAMILIES[name]))
    for text in [*NASTY, *TEXTS]:
        if len(text) > 3000 and name != "xlm-roberta":
            continue  # long texts take long
        native.check(text)
        native.check("is it?", text, length=20, stride=3, strategy="only_second")
        native.library.no_truncation()
        ids = native.library.encode(text[:3000]).ids
        for skip in (True, False):
            assert native.ask(decode=ids, skip=skip) == {"text": native.library.decode(ids, skip_special_tokens=skip)}


@pytest.mark.parametrize("name", FAMILIES)
@settings(FUZZ, max_examples=60)
@given(
    text=st.text() | MIXED.map("".join),
    pair=st.none() | MIXED.map(" ".join),
    special=st.booleans(),
    window=st.just({}) | TRUNCATIONS,
)
def test_random_unicode(
    make_native: Make, name: str, text: str, pair: str | None, special: bool, window: dict[str, Any]
) -> None:
    native = make_native(unigram(**FAMILIES[name]))
    most = max(native.library.num_special_tokens_to_add(is_pair) for is_pair in (False, True))
    native.check(text, pair, special, **(window if window.get("length", 0) >= most else {}))


@pytest.mark.parametrize("name", ["xlm-roberta", "albert"])
def test_the_languages_of_xquad(make_native: Make, shared_data: Path, name: str) -> None:
    native = make_native(unigram(**FAMILIES[name]))
    records = xquad(shared_data)[::23]
    assert len({record["language"] for record in records}) == 12
    for i, record in enumerate(records):
        native.check(record["context"])
        length = 384 if i % 2 else 128
        native.check(record["question"], record["context"], length=length, stride=64, strategy="only_second")


CHARACTERS = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], *([each, -1.0] for each in "y▁ax©")]}


@pytest.mark.parametrize(("first", "last"), BLOCKS, ids=hex)
def test_every_character_joins_its_neighbours_or_not(make_native: Make, first: int, last: int) -> None:
    native = make_native(
        unigram(normalizer=CLUSTERS, model=CHARACTERS, pre_tokenizer=None, post_processor=None, added_tokens=[])
    )
    # Nothing happens inside the syllables of Hangul and the ideographs of the first plane.
    numbers = [each for each in range(first, last) if not (0xAC20 < each < 0xD780 or 0x3420 < each < 0x9FE0)]
    for i in range(0, len(numbers), 80):
        characters = map(chr, numbers[i : i + 80])
        native.check(" ".join(f"a{each} {each}a {each}\u0301 ©\u200d{each}" for each in characters))


CLUSTERING = "ab©é\u0301\u200c\u200d\u0600\u0903\u094d\u0915\u1100\u1161\u11a8\uac00🇩😀👍🏽\ufe0f\r\n\u00ad\u0e33\U000110bd▁ "


@FUZZ
@given(text=st.text(st.sampled_from(CLUSTERING), max_size=14))
def test_clusters(make_native: Make, text: str) -> None:
    changes: dict[str, Any] = {"pre_tokenizer": None, "post_processor": None, "added_tokens": [], "model": CHARACTERS}
    make_native(unigram(normalizer=CLUSTERS, **changes)).check(text)
    make_native(unigram(**changes)).check(text)


PIECES = [["<unk>", 0.0], ["a", -1.0], ["b", -1.5], ["ab", -2.5], ["abc", -2.0], ["bca", -2.0], ["aa", -2.0], ["dé", -3.0]]
PIECES += [[f"<0x{byte:02X}>", -9.0] for byte in (*"é€".encode(), 0x64)] + [["a", -0.5], ["", 0.0], ["ée", -4.0]]


@pytest.mark.parametrize("unknown", [0, 1, None])
@pytest.mark.parametrize("fallback", [True, False])
@settings(FUZZ, max_examples=60)
@given(text=st.text(st.sampled_from("abcdé€e<unk>"), max_size=12))
def test_the_model(make_native: Make, unknown: int | None, fallback: bool, text: str) -> None:
    model = {"type": "Unigram", "unk_id": unknown, "vocab": PIECES, "byte_fallback": fallback}
    plain = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, "added_tokens": []}
    native = make_native(unigram(model=model, **plain))
    native.check(text)
    assert native.ask(ids=["a", "", "ab", "x"]) == {
        "found": [native.library.token_to_id(each) for each in ("a", "", "ab", "x")]
    }
    assert native.ask(tokens=[0, 4, 99]) == {"found": [native.library.id_to_token(each) for each in (0, 4, 99)]}


def test_long_words_take_no_longer_for_each_character(make_native: Make) -> None:
    native = make_native(unigram(pre_tokenizer=metaspace(split=False)))
    text = "the cat sat " * 10_000 + "☃" * 20_000
    found = native.ask(text=text)[0]["ids"]
    native.library.no_truncation()
    assert found == native.library.encode(text).ids


LLAMA = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
BYTES = ["<0xC3>", "<0xA9>", "<0xe2>", "<0x82>", "<0xAC>", "<0x0A>", "<0x+A>", "<0xG0>", "<0x00>", "<0xFF"]


@pytest.mark.parametrize("count", [1, 2, 4])
@settings(FUZZ, max_examples=60)
@given(tokens=st.lists(st.sampled_from([*BYTES, "▁", "▁▁a", "b▁", "", " ", "é"]), max_size=8))
def test_decoders_in_a_sequence(make_native: Make, count: int, tokens: list[str]) -> None:
    native = make_native(unigram(decoder={"type": "Sequence", "decoders": LLAMA[-count:]}))
    assert native.ask(detokenize=tokens) == {"text": native.library.decoder.decode(tokens)}
    native = make_native(unigram(decoder={"type": "Sequence", "decoders": LLAMA[:count]}))
    assert native.ask(detokenize=tokens) == {"text": native.library.decoder.decode(tokens)}


UNSUPPORTED = "is not supported by the native runtime"
MODEL = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}
DAMAGED = base64.b64encode(struct.pack("<5I", 16, 1 << 20, 0, 0, 0)).decode()
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": {**MODEL, "unk_id": 1}}, "tokenizer.json.model: field 'unk_id' is larger than the vocabulary"),
    ({"model": {**MODEL, "vocab": {}}}, "tokenizer.json.model: field 'vocab' must be a list"),
    ({"model": {**MODEL, "vocab": [["a"]]}}, "tokenizer.json.model: field 'vocab' must be a list of pieces with their scores"),
    ({"pre_tokenizer": metaspace(replacement="__")}, "tokenizer.json.pre_tokenizer: field 'replacement' must be one character"),
    ({"pre_tokenizer": metaspace(prepend_scheme="last")}, "field 'prepend_scheme' must be always, never or first"),
    ({"pre_tokenizer": metaspace(add_prefix_space=False)}, "field 'add_prefix_space' does not match 'prepend_scheme'"),
    ({"decoder": {**LLAMA[3], "stop": 1}}, f"tokenizer.json.decoder: stop {UNSUPPORTED}"),
    ({"decoder": {**LLAMA[3], "content": ""}}, "tokenizer.json.decoder: field 'content' must be one character"),
    ({"decoder": replace("a+", "", "Regex")}, f"tokenizer.json.decoder.pattern: a regular expression {UNSUPPORTED}"),
    ({"decoder": replace("", "")}, f"tokenizer.json.decoder.pattern: an empty string {UNSUPPORTED}"),
    ({"normalizer": {"type": "Nmt"}}, f"tokenizer.json.normalizer: Nmt {UNSUPPORTED}"),
    *(
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}}, "field 'precompiled_charsmap' is damaged")
        for text in ("", "AAAA", "AAAA=", "AAAAAA==", "!AAAAA==", "/////w==", "BAAAAAAAAAD/")
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_or_not_supported_is_named(
    tokenize_program: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(unigram(**{"model": MODEL, **changes})))
    answer = refusal(tokenize_program, path)
    assert message in answer["error"] and answer["kind"] == "bundle"


def test_a_trie_that_leads_nowhere_is_an_error(make_native: Make) -> None:
    damaged = {"type": "Precompiled", "precompiled_charsmap": DAMAGED}
    native = make_native(unigram(normalizer=damaged, model=MODEL, added_tokens=[]))
    answer = native.ask(text="a")
    assert answer == {"error": "tokenizer.json.normalizer: field 'precompiled_charsmap' is damaged", "kind": "bundle"}
