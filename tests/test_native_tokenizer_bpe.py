"""Byte-level BPE in the native tokenizer, and the normal forms: what the `tokenizers` library gives, to the last offset."""

from __future__ import annotations

import functools
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from native_tokenizer import BLOCKS, FUZZ, NASTY, TRUNCATIONS, Make, added, refusal, xquad
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

pytestmark = pytest.mark.slow

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
TEXTS = [
    "Don't worry: they're here, I'LL say, and we've done 1234 of 5678 tests. It's I'm he'd you'll; cats' 's 'S ''re'",
    "  leading,   several    spaces \n\n\nnew lines\r\n\ttabs \u00a0\u3000 no-break, and one at the end ",
    "x<mask>y <mask> z  <mask>\n<mask><mask>  </s> <s>a <mask >",
    "a1b2c3 ½¾²³ ⅷ Ⅻ ٣٤٥ १२३ 三千 ǅ ªº ʰ々〆 \U0001d7d8\U0001d54f _x_ -1,000.50€ $5 №7 a\u0301b\u0301 \u0301\u0302 \u200d",
    "\x00\x01\x1f\x7f\x80\x85\x9f\u2028\u2029\ufeff\U000e0001\U0010ffff",
    "aaaaaaaaaaaaaaaa abababababab hahahaha the the thethe",
    "e\u0301\u0323 \u1e69 s\u0323\u0307 \u0344 \u0f73\u0f71 \u1112\u1161\u11ab \uac00\u11a8 \u0958 \u2adc \u212b \ufb2c",
    "q\u0307\u0323",
    "ﬃ ㎏ ① Ⅻ ª ½ ﷺ ㍿ ｶﾞ ﾊﾟ \u017f\u0307 \u1e9b\u0323 \u0385 \u00a8\u0301 \u2126",
]
WORDS = [
    "a",
    "the",
    "don't",
    "'s",
    "'LL",
    " ",
    "  ",
    "\n",
    "\u00a0",
    "1",
    "12",
    "é",
    "e\u0301",
    "中",
    "👩\u200d👧",
    "<mask>",
    "</s>",
]
MIXED = st.lists(st.sampled_from([*WORDS, ".", "'", "\t", "\x00", "\u0323", "q", "ﬁ", "\uac00", "\u11a8", "ع"]), max_size=14)


@functools.cache
def trained() -> dict[str, Any]:
    """The model of a tokenizer.json: byte-level BPE, trained on texts in many languages."""
    path = SHARED / "data" / "xquad-multilingual.jsonl"
    lines = path.read_text().splitlines()[::5] if path.is_file() else []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2500, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS * 3, *(json.loads(line)["context"] for line in lines)], trainer)
    found: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return found


def byte_level(prefix: bool = False, trim: bool = True, regex: bool | None = True) -> dict[str, Any]:
    """The pre-tokenizer or post-processor of that name; old files do not say whether it splits."""
    use = {} if regex is None else {"use_regex": regex}
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, **use}


def roberta(prefix: bool = False, trim: bool = True) -> dict[str, Any]:
    special = {"cls": ["<s>", 0], "sep": ["</s>", 2]}
    return {"type": "RobertaProcessing", **special, "trim_offsets": trim, "add_prefix_space": prefix}


def bpe(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json of RoBERTa's family with some of its parts changed."""
    tokens = [added(token, i, special=True) for i, token in enumerate(SPECIAL)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*tokens, added("<mask>", 9999, special=True, normalized=False, lstrip=True)],
        "normalizer": None,
        "pre_tokenizer": byte_level(),
        "post_processor": roberta(),
        "decoder": byte_level(),
        "model": changes.get("model") or trained(),
        **changes,
    }


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}
PROCESSORS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "bytes": byte_level(),
    "bytes, prefix": byte_level(prefix=True),
    "bytes, whole": byte_level(trim=False),
    "roberta": roberta(),
    "roberta, prefix": roberta(prefix=True),
    "roberta, whole": roberta(prefix=True, trim=False),
    "bytes and template": {"type": "Sequence", "processors": [byte_level(trim=True), TEMPLATE]},
    "roberta and bytes": {"type": "Sequence", "processors": [roberta(trim=False), byte_level(prefix=True)]},
    "no sequence": {"type": "Sequence", "processors": []},
}


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("regex", [True, False, None])
def test_nasty_texts(make_native: Make, prefix: bool, regex: bool | None) -> None:
    native = make_native(bpe(pre_tokenizer=byte_level(prefix, regex=regex), post_processor=roberta(prefix)))
    for text in [*NASTY, *TEXTS]:
        if len(text) > 3000 and (prefix or not regex):
            continue  # long texts take long
        native.check(text)
        native.check("is it?", text, length=20, stride=3, strategy="only_second")
        native.library.no_truncation()
        ids = native.library.encode(text[:3000]).ids
        for skip in (True, False):
            assert native.ask(decode=ids, skip=skip) == {"text": native.library.decode(ids, skip_special_tokens=skip)}


@FUZZ
@given(text=st.text() | MIXED.map("".join), pair=st.none() | st.text(), special=st.booleans(), prefix=st.booleans())
def test_random_unicode(make_native: Make, text: str, pair: str | None, special: bool, prefix: bool) -> None:
    make_native(bpe(pre_tokenizer=byte_level(prefix), post_processor=roberta(prefix))).check(text, pair, special)


def test_the_languages_of_xquad(make_native: Make, shared_data: Path) -> None:
    native = make_native(bpe())
    records = xquad(shared_data)[::23]
    assert len({record["language"] for record in records}) == 12
    for i, record in enumerate(records):
        native.check(record["context"])
        length = 384 if i % 2 else 128
        native.check(record["question"], record["context"], length=length, stride=64, strategy="only_second")


@pytest.mark.parametrize("name", PROCESSORS)
@settings(FUZZ, max_examples=40)
@given(
    text=MIXED.map("".join), pair=st.none() | MIXED.map(" ".join), special=st.booleans(), truncation=st.just({}) | TRUNCATIONS
)
def test_pairs_and_windows(
    make_native: Make, name: str, text: str, pair: str | None, special: bool, truncation: dict[str, Any]
) -> None:
    native = make_native(bpe(post_processor=PROCESSORS[name]))
    if truncation:
        most = max(native.library.num_special_tokens_to_add(is_pair) for is_pair in (False, True))
        assume(truncation["length"] >= most)  # the library wraps around, and does not cut at all
    native.check(text, pair, special, **truncation)


def named(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": name, **fields}


def sequence(*names: str) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [{"type": name} for name in names]}


NORMALIZERS: dict[str, dict[str, Any]] = {
    **{name: named(name) for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "ByteLevel")},
    **{
        f"Strip {left} {right}": named("Strip", strip_left=left, strip_right=right)
        for left in (0 > 1, 1 > 0)
        for right in (0 > 1, 1 > 0)
    },
    "Replace": named("Replace", pattern={"String": "th"}, content="<T\u0301>"),
    "Replace with nothing": named("Replace", pattern={"String": " "}, content=""),
    "Replace the longest": named("Replace", pattern={"String": "aaa"}, content="b"),
    "Replace spaces": named("Replace", pattern={"Regex": " {2,}"}, content=" "),
    "Replace lines": named("Replace", pattern={"Regex": "\\s{2,}|[\\n\\r\\t]"}, content=" _"),
    "Prepend": named("Prepend", prepend="▁x"),
    "Sequence": sequence("NFKD", "StripAccents", "Lowercase", "NFC"),
    "Sequence of one": sequence("NFKC", "NFD"),
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers(make_native: Make, name: str) -> None:
    # A word for each text shows the origin of each character.
    native = make_native(bpe(normalizer=NORMALIZERS[name], model={**trained(), "merges": []}))
    for text in [*(text[:3000] for text in NASTY), *TEXTS]:
        native.check(text)


MARKS = "\u0301\u0302\u0308\u0316\u0323\u0327\u0334\u0344\u0345\u094d\u093c\u0f71\u0f72\u0f73\u1161\u11a8\u3099\U00011930"
STARTERS = "aesqAEÅ\u017f\u1e9b\u1e69\u0958\u0928\u0c46\u1100\uac00\uac01\u304b\u304c\u0385\ufb01\u2126\U00011935\U00011131 "


@FUZZ
@given(text=st.text(st.sampled_from(MARKS + STARTERS), max_size=12), form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_marks_in_any_order(make_native: Make, text: str, form: str) -> None:
    make_native(bpe(normalizer=named(form), model={**trained(), "merges": []})).check(text)


def matching(pattern: str, text: str) -> set[str]:
    """The characters of a text that a regular expression of the library matches."""
    rest = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(text)
    return set(text).difference(*(part for part, _ in rest))


@pytest.mark.parametrize(("first", "last"), BLOCKS, ids=hex)
def test_every_character_is_a_letter_a_number_or_a_mark(make_native: Make, first: int, last: int) -> None:
    text = "".join(map(chr, range(first, last)))
    letters, numbers, spaces = (matching(pattern, text) for pattern in (r"\p{L}", r"\p{N}", r"\s"))
    marks, compatible = normalizers.StripAccents(), normalizers.NFKD()
    for character, (kind, *_, parts) in zip(text, make_native(bpe()).ask(characters=[first, last]), strict=True):
        wanted = "s" * (character in spaces) + "L" * (character in letters) + "N" * (character in numbers)
        wanted += "M" * (not marks.normalize_str(character))
        assert "".join(each for each in kind if each in "sLNM") == wanted, hex(ord(character))
        assert "".join(map(chr, parts)) == compatible.normalize_str(character), hex(ord(character))


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_every_composition(make_native: Make, form: str) -> None:
    native = make_native(bpe(normalizer=named(form), model={**trained(), "merges": []}))
    every = [chr(number) for first, last in BLOCKS for number in range(first, last) if not 0xAC10 < number < 0xD780]
    changed = [
        each for each in every if unicodedata.normalize("NFD", each) != each or normalizers.NFD().normalize_str(each) != each
    ]
    for i in range(0, len(changed), 40):
        native.check(" ".join(normalizers.NFD().normalize_str(each) for each in changed[i : i + 40]))


CHARACTERS = "abcdé€ <"
PLAIN = {piece: i for i, piece in enumerate(["<unk>", *"abc <", "ab", "abc", "bc", "aa", "aaa", "c ", "<0xC3>", "<0xA9>"])}
MERGES = [["a", "b"], ["b", "c"], ["a", "a"], ["ab", "c"], ["aa", "a"], ["a", "bc"], ["c", " "]]


def plain(**changes: Any) -> dict[str, Any]:
    """BPE on characters."""
    model = {"type": "BPE", "vocab": PLAIN, "merges": MERGES, "unk_token": "<unk>", **changes}
    return bpe(model=model, added_tokens=[], pre_tokenizer=None, post_processor=None, decoder=None)


@pytest.mark.parametrize("unknown", ["<unk>", None])
@pytest.mark.parametrize("flags", [{}, *({name: True} for name in ("fuse_unk", "byte_fallback", "ignore_merges"))], ids=str)
@settings(FUZZ, max_examples=50)
@given(text=st.text(st.sampled_from(CHARACTERS), max_size=12))
def test_the_model(make_native: Make, unknown: str | None, flags: dict[str, bool], text: str) -> None:
    native = make_native(plain(unk_token=unknown, **flags))
    native.check(text)
    native.check("ab" if "é" in text else "abc")


def test_merges_of_old_files(make_native: Make) -> None:
    merges = ["#version: 0.2", *(" ".join(pair) for pair in MERGES if " " not in pair)]
    old = plain(merges=merges, continuing_subword_prefix="", end_of_word_suffix="", dropout=None)
    del old["model"]["type"]
    native = make_native(old)
    for text in ("abcabc aaaaab bcab", "aabaabc", "", "d"):
        native.check(text)


def test_a_missing_unknown_token_is_an_error_when_it_is_needed(make_native: Make) -> None:
    native = make_native(plain(unk_token="[UNK]"))
    native.check("abc")
    native.check("abcd")


def test_long_words_take_no_longer_for_each_character(make_native: Make) -> None:
    native = make_native(bpe(pre_tokenizer=byte_level(regex=False)))
    text = "the cat " * 20_000  # a word of 160,000 bytes: too long for anything quadratic
    found = native.ask(text=text)[0]["ids"]
    native.library.no_truncation()
    assert found == native.library.encode(text).ids


@FUZZ
@given(
    tokens=st.lists(
        st.sampled_from(["Ġthe", "Ã", "©", "â", "Ĥ", "¬", "é", "€", "ð", "Ł", "ĺ", "Ģ", "í", "ł", "Ļ", "ĊĊ", "", " x"])
    )
)
def test_decoding_of_bytes_that_are_no_text(make_native: Make, tokens: list[str]) -> None:
    native = make_native(bpe())
    assert native.ask(detokenize=tokens) == {"text": native.library.decoder.decode(tokens)}


def split(behavior: str, invert: bool = False, **changes: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"String": "ab"}, "behavior": behavior, "invert": invert, **changes}


@pytest.mark.parametrize("behavior", ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"])
@pytest.mark.parametrize("invert", [False, True])
@settings(FUZZ, max_examples=50)
@given(text=st.lists(st.sampled_from(["ab", "a", "b", "é", " ", "aab"]), max_size=12).map("".join))
def test_splitting_at_a_string(make_native: Make, behavior: str, invert: bool, text: str) -> None:
    parts = [split(behavior, invert), byte_level(regex=False)]
    make_native(bpe(pre_tokenizer={"type": "Sequence", "pretokenizers": parts})).check(text)


UNSUPPORTED = "is not supported by the native runtime"
REFUSED: list[tuple[dict[str, Any], str]] = [
    (plain(end_of_word_suffix="</w>"), f"tokenizer.json.model: end_of_word_suffix {UNSUPPORTED}"),
    (plain(continuing_subword_prefix="##"), f"tokenizer.json.model: continuing_subword_prefix {UNSUPPORTED}"),
    (plain(dropout=0.1), f"tokenizer.json.model: dropout {UNSUPPORTED}"),
    (plain(merges=["a b c"]), "the merge 'a b c' must be two tokens with a space between them"),
    (plain(merges=[["a"]]), "tokenizer.json.model: field 'merges' must be a list of pairs"),
    (plain(merges=[["a", "c"]]), "token 'ac' of the merges is not in the vocabulary"),
    (plain(merges=[["a", "x"]]), "token 'x' of the merges is not in the vocabulary"),
    ({"normalizer": sequence("NFC", "Nmt")}, f"tokenizer.json.normalizer.normalizers: Nmt {UNSUPPORTED}"),
    (
        {"normalizer": named("Replace", pattern={"Regex": "x+"}, content="")},
        f"tokenizer.json.normalizer.pattern: the regular expression 'x+' {UNSUPPORTED}",
    ),
    ({"normalizer": named("Replace", pattern={"String": ""}, content="")}, f"an empty string {UNSUPPORTED}"),
    ({"pre_tokenizer": {"type": "ByteLevel"}}, "tokenizer.json.pre_tokenizer: field 'add_prefix_space' is missing"),
    (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [named("Digits")]}},
        f"tokenizer.json.pre_tokenizer.pretokenizers: Digits {UNSUPPORTED}",
    ),
    (
        {"pre_tokenizer": split("Isolated", pattern={"Regex": "a"})},
        f"tokenizer.json.pre_tokenizer.pattern: a regular expression {UNSUPPORTED}",
    ),
    ({"pre_tokenizer": split("Isolated", pattern={"String": ""})}, f"an empty string {UNSUPPORTED}"),
    ({"pre_tokenizer": split("Joined")}, f"tokenizer.json.pre_tokenizer: behavior 'Joined' {UNSUPPORTED}"),
    (
        {"post_processor": {"type": "Sequence", "processors": [TEMPLATE, byte_level()]}},
        f"tokenizer.json.post_processor: TemplateProcessing before another post-processor {UNSUPPORTED}",
    ),
    ({"post_processor": {**roberta(), "cls": "<s>"}}, "tokenizer.json.post_processor: field 'cls' must be a list"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_wrong_or_not_supported_is_named(
    tokenize_program: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(bpe(**changes)))
    answer = refusal(tokenize_program, path)
    assert message in answer["error"] and answer["kind"] == "bundle"


def test_components_nested_too_deeply_are_refused(tokenize_program: Path, tmp_path: Path) -> None:
    path, depth = tmp_path / "tokenizer.json", 20_000
    nested = '{"type": "Sequence", "normalizers": [' * depth + "]}" * depth
    path.write_text('{"normalizer": ' + nested + ', "model": {}}')
    assert refusal(tokenize_program, path)["error"].endswith(": is nested too deeply")
