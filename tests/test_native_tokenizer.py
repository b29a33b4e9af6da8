"""The native tokenizer gives what the `tokenizers` library gives: token for token, offset for offset, on any text."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from native_tokenizer import (
    BLOCKS,
    FLAGS,
    FUZZ,
    NASTY,
    TRUNCATIONS,
    Make,
    Native,
    added,
    bert,
    refusal,
    template,
    vocabulary,
    xquad,
)
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from cpuc.compiler import native

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def minilm_native(tokenize_program: Path, minilm: Path) -> Iterator[Native]:
    """The tokenizer of the embedded model."""
    with Native(tokenize_program, minilm / "tokenizer.json") as native:
        yield native


@functools.cache
def table_edges() -> str:
    """The first and the last character of every range in which the library and utf8proc differ."""
    numbers = re.findall(r"\b0x([0-9a-f]+)\b", (native.SOURCES / "src" / "tokenizer" / "unicode_tables.h").read_text())
    return "".join(sorted({chr(int(number, 16)) for number in numbers}))


ALPHABET = "".join(sorted({*"".join(NASTY[:-9]), *"".join(NASTY[-4:]), *table_edges(), *"abcxyzABC  012.,'"}))


def normalizer(*flags: bool | None) -> dict[str, Any]:
    return {"type": "BertNormalizer", **dict(zip(FLAGS, flags, strict=True))}


def with_flags(make_native: Make, *flags: bool | None) -> Native:
    return make_native(bert(vocabulary(ALPHABET), normalizer=normalizer(*flags)))


@pytest.mark.parametrize("strip_accents", [None, False, True])
@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("clean_text", [False, True])
def test_every_flag_of_the_normalizer(make_native: Make, clean_text: bool, lowercase: bool, strip_accents: bool | None) -> None:
    for chinese in (False, True):
        native = with_flags(make_native, clean_text, chinese, strip_accents, lowercase)
        for text in [*NASTY, ALPHABET, " ".join(ALPHABET)]:
            native.check(text)


def test_nasty_texts_with_a_real_vocabulary(minilm_native: Native) -> None:
    for text in NASTY:
        minilm_native.check(text)
        minilm_native.check("what is it?", text, length=20, stride=3, strategy="only_second")


@FUZZ
@given(text=st.text(), pair=st.none() | st.text(), special=st.booleans())
def test_random_unicode(minilm_native: Native, text: str, pair: str | None, special: bool) -> None:
    minilm_native.check(text, pair, special)


@FUZZ
@given(
    text=st.text(st.sampled_from(ALPHABET), max_size=40), lowercase=st.booleans(), accents=st.sampled_from([None, True, False])
)
def test_random_strings_of_troublesome_characters(make_native: Make, text: str, lowercase: bool, accents: bool | None) -> None:
    with_flags(make_native, True, True, accents, lowercase).check(text)


def test_the_languages_of_xquad(minilm_native: Native, shared_data: Path) -> None:
    records = xquad(shared_data)[::6]
    assert len({record["language"] for record in records}) == 12
    for i, record in enumerate(records):
        if i % 3 == 0:
            minilm_native.check(record["context"])
        minilm_native.check(
            record["question"], record["context"], length=384 if i % 2 else 128, stride=64, strategy="only_second"
        )


BYTES = ["61ff", "c0af", "e08080", "eda080", "f4908080", "f0808080", "80", "c3", "e282", "f09f98", "fe", "6100c3"]


@pytest.mark.parametrize("text", BYTES)
def test_bytes_that_are_not_utf8_are_an_error_of_the_input(minilm_native: Native, text: str) -> None:
    with pytest.raises(UnicodeDecodeError) as wrong:
        bytes.fromhex(text).decode()
    answer = minilm_native.ask(hex=text)
    assert answer == {"error": f"the text is not UTF-8: wrong byte at offset {wrong.value.start}", "kind": "input"}


@functools.cache
def parts() -> tuple[normalizers.Normalizer, ...]:
    """Cleaning, setting apart, stripping and lowering, each alone."""
    return tuple(normalizers.BertNormalizer(**{name: name == flag for name in FLAGS}) for flag in FLAGS)


def kinds(character: str) -> str:
    """What the library takes a character for; whether it is of a word is another test's."""
    clean, apart, strip, _ = (part.normalize_str(character) for part in parts())
    found = "s" if character.isspace() and not 0x1C <= ord(character) <= 0x1F else ""
    found += "r" * (not clean) + "i" * (len(apart) == 3) + "a" * (not strip)
    return found + "p" * (len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(f"a{character}b")) == 3)


@pytest.mark.parametrize(("first", "last"), BLOCKS, ids=hex)
def test_every_character_is_what_the_library_takes_it_for(minilm_native: Native, first: int, last: int) -> None:
    found = minilm_native.ask(characters=[first, last])
    decompose, lower = normalizers.NFD(), parts()[3]
    for number, (kind, _, decomposed, lowered, _) in zip(range(first, last), found, strict=True):
        character = chr(number)
        wanted = kinds(character), decompose.normalize_str(character), lower.normalize_str(character)
        assert re.sub("[wLNM]", "", kind) == wanted[0], hex(number)
        assert ("".join(map(chr, decomposed)), "".join(map(chr, lowered))) == wanted[1:], hex(number)


@pytest.mark.parametrize(("first", "last"), BLOCKS, ids=hex)
def test_every_character_is_of_a_word_or_not(minilm_native: Native, first: int, last: int) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "X": 1}, unk_token="[UNK]"))
    tokenizer.add_tokens([AddedToken("X", single_word=True, normalized=False)])
    found = minilm_native.ask(characters=[first, last])
    encoding = tokenizer.encode("".join(f"X{chr(number)} " for number in range(first, last)))
    alone = {
        begin // 3
        for number, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True)
        if number == 1 and end - begin == 1
    }
    for i, (kind, *_) in enumerate(found):
        assert ("w" in kind) == (i not in alone or first + i == ord("X")), hex(first + i)


def test_combining_marks_are_sorted_as_the_library_sorts_them(minilm_native: Native) -> None:
    others = {1: "\u0334", 9: "\u094d", 202: "\u0327", 220: "\u0316", 230: "\u0301", 240: "\u0345"}
    decompose = normalizers.NFD().normalize_str
    for first, last in BLOCKS:
        for number, (_, combining_class, decomposed, *_) in enumerate(minilm_native.ask(characters=[first, last]), first):
            mark = chr(number)
            if decomposed != [number] or not (combining_class or unicodedata.combining(mark)):
                continue
            for known, other in others.items():
                before, after = decompose(other + mark) == mark + other, decompose(mark + other) == other + mark
                assert mark == other or (before, after) == (0 < combining_class < known, combining_class > known), hex(number)


CLS = {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}
SEP = {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}
LONG = {"id": "long", "ids": [4, 0, 3], "tokens": ["a", "long", "one"]}
PROCESSORS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "bert": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    "template": template("[CLS]:0 A:0 [SEP]:0", "[CLS]:0 A:0 [SEP]:0 B:1 [SEP]:1", CLS, SEP),
    "types": template("A:3", "[CLS]:5 B:0 long:2 A:2 [SEP]:1", CLS, SEP, LONG),
    "twice": template("A:0 [SEP]:7 A:1 long:0", "A:1 A:0 B:0", SEP, LONG),
}
WORDS = st.lists(st.sampled_from(["a", "bc", "xyz", "Zürich", "?!", "b" * 9, "\u4e2d"]), max_size=9).map(" ".join)


@pytest.mark.parametrize("name", PROCESSORS)
@FUZZ
@given(text=WORDS, pair=st.none() | WORDS, special=st.booleans(), truncation=st.just({}) | TRUNCATIONS)
def test_pairs_and_windows(
    make_native: Make, name: str, text: str, pair: str | None, special: bool, truncation: dict[str, Any]
) -> None:
    native = make_native(bert(vocabulary("abcxyzüZrich?!\u4e2d"), post_processor=PROCESSORS[name]))
    if truncation:
        most = max(native.library.num_special_tokens_to_add(is_pair) for is_pair in (False, True))
        assume(truncation["length"] >= most)  # the library wraps around, and does not cut at all
    native.check(text, pair, special, **truncation)


def test_a_length_that_special_tokens_exceed_is_an_error(make_native: Make) -> None:
    native = make_native(bert(vocabulary("ab")))
    answer = native.ask(text="a b a", length=1)
    assert answer == {"error": "a length of 1 is less than the 2 special tokens", "kind": "bundle"}


ADDED = [
    added("[MASK]", 4, special=True, normalized=False, lstrip=True),
    added("ab", 90, single_word=True),
    added("abc", 91, rstrip=True),
    added("Ünder", 92),
    added("ünder_Score", 93, normalized=False),
    added("<x>", 94, lstrip=True, rstrip=True, special=True),
    added("<x", 95, normalized=False),
    added("<x><x>", 96, special=True, normalized=False, single_word=True, lstrip=True, rstrip=True),
    added("a", 97, single_word=True, normalized=False),
    added("\u4e2d", 98),
    added("two words", 99, single_word=True),
    added("", 100),
    added("<x", 101, special=True, normalized=False),
    added("b", 102),
]
FRAGMENTS = ["[MASK]", "ab", "abc", "Ünder", "U\u0308NDER", "ünder_Score", "<x>", "<x", "a", "b", "c", "\u4e2d", "two words"]
FRAGMENTS += ["TWO", "\u00a0", " ", "  ", "\t", ".", "_", "-", "\u0301", "\u200d", "\x01", "Ⓐ", "२", "é"]


@pytest.mark.parametrize("lowercase", [True, False, None])
@FUZZ
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_added_tokens(make_native: Make, lowercase: bool | None, text: str) -> None:
    changes = {} if lowercase is None else {"normalizer": normalizer(True, True, None, lowercase)}
    tokens = ADDED if lowercase is None else ADDED[:-1]
    native = make_native(bert(vocabulary("abcxUunderSscotw<>\u4e2d._-"), added_tokens=tokens, **changes))
    native.check(text)
    for each in {*text, *FRAGMENTS}:
        assert native.ask(ids=[each]) == {"found": [native.library.token_to_id(each)]}


@pytest.mark.parametrize(
    "changes", [{"normalizer": None}, {"pre_tokenizer": None}, {"normalizer": None, "pre_tokenizer": None}]
)
def test_components_may_be_missing(make_native: Make, changes: dict[str, None]) -> None:
    native = make_native(bert(vocabulary(ALPHABET), **changes))
    for text in [*NASTY, *ALPHABET[::7], "Zürich, " * 20]:
        native.check(text)


def test_fields_that_old_files_lack(make_native: Make) -> None:
    old = bert(vocabulary("abc"), normalizer=dict.fromkeys(("clean_text", "handle_chinese_chars", "lowercase"), True))
    old["normalizer"]["type"] = "BertNormalizer"
    del old["model"]["type"], old["version"], old["truncation"], old["padding"], old["decoder"], old["added_tokens"]
    native = make_native(old)
    native.check("[CLS] Äb\u0301c abc", "b")
    assert native.ask(detokenize=["a", "##b"]) == {"text": "a ##b"}


@pytest.mark.parametrize("cleanup", [True, False])
@FUZZ
@given(
    words=st.lists(
        st.sampled_from([*"abc.?!,'", "##b", "do", "not", "n't", "' ", "##'", " ' x", "do not", "'s're", "[SEP]", "Ab"])
    ),
    ids=st.lists(st.integers(0, 40)),
    skip=st.booleans(),
)
def test_decoding(make_native: Make, cleanup: bool, words: list[str], ids: list[int], skip: bool) -> None:
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": cleanup}
    tokens = [*bert(vocabulary("ab"))["added_tokens"], added("Ab", 30), added("'m", 31, special=True)]
    native = make_native(bert(vocabulary("abc.?!,'"), decoder=decoder, added_tokens=tokens))
    library = native.library
    assert native.ask(detokenize=words) == {"text": library.decoder.decode(words)}
    assert native.ask(decode=ids, skip=skip) == {"text": library.decode(ids, skip_special_tokens=skip)}
    assert native.ask(tokens=ids) == {"found": [library.id_to_token(each) for each in ids]}


def model(**changes: Any) -> dict[str, Any]:
    return {"model": {**bert(vocabulary("a"))["model"], **changes}}


UNSUPPORTED = "is not supported by the native runtime"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"normalizer": {"type": "Nmt"}}, f"tokenizer.json.normalizer: Nmt {UNSUPPORTED}"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, f"tokenizer.json.pre_tokenizer: Whitespace {UNSUPPORTED}"),
    ({"post_processor": {"type": "Other"}}, f"tokenizer.json.post_processor: Other {UNSUPPORTED}"),
    ({"decoder": {"type": "CTC"}}, f"tokenizer.json.decoder: CTC {UNSUPPORTED}"),
    (model(type="WordLevel"), f"tokenizer.json.model: WordLevel {UNSUPPORTED}"),
    ({"model": {"vocab": {}}}, f"tokenizer.json.model: a component without a type {UNSUPPORTED}"),
    ({"model": None}, "tokenizer.json.model: is no object"),
    ({"version": "2.0"}, "tokenizer.json: version '2.0' is not supported"),
    ({"normalizer": []}, "tokenizer.json.normalizer: is no object"),
    ({"normalizer": {**normalizer(True, True, True, True), "lowercase": 1}}, "field 'lowercase' must be true or false"),
    ({"normalizer": {"type": "BertNormalizer"}}, "tokenizer.json.normalizer: field 'clean_text' is missing"),
    (model(vocab={"a": -1}), "tokenizer.json.model.vocab: the id of 'a' must be an integer from 0 to 4294967295"),
    (model(vocab={"a": 2**32}), "must be an integer from 0 to 4294967295"),
    (model(vocab={"a": 1.0}), "must be an integer from 0 to 4294967295"),
    (model(vocab=[]), "tokenizer.json.model.vocab: is no object"),
    (model(unk_token=None), "tokenizer.json.model: field 'unk_token' must be a string"),
    (model(max_input_chars_per_word=-1), "tokenizer.json.model.max_input_chars_per_word: must be an integer"),
    ({"added_tokens": {}}, "tokenizer.json: field 'added_tokens' must be a list"),
    ({"added_tokens": [3]}, "tokenizer.json.added_tokens: is no object"),
    ({"added_tokens": [{"id": 1, "content": "a"}]}, "tokenizer.json.added_tokens: field 'single_word' is missing"),
    ({"added_tokens": [added("\x01", 9)]}, "'\x01' is empty once normalised"),
    ({"added_tokens": [added("x", 9), added("X", 10)]}, "is the same as another added token once normalised"),
    ({"post_processor": template("A:0", "A:0 B:0 [SEP]:0")}, "'[SEP]' is not among the special tokens"),
    ({"post_processor": template("B:0", "A:0 B:0")}, "there is no sequence 'B'"),
    ({"post_processor": template("A:0", "A:0", {**SEP, "tokens": []})}, "must have as many tokens as ids"),
    ({"post_processor": {"type": "BertProcessing", "sep": ["a"], "cls": ["a", 1]}}, "field 'sep' must be a token and its id"),
    ({"decoder": {"type": "WordPiece", "prefix": 3, "cleanup": True}}, "field 'prefix' must be a string"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_wrong_or_not_supported_is_named(
    tokenize_program: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(bert(vocabulary("a"), **changes)))
    answer = refusal(tokenize_program, path)
    assert message in answer["error"] and answer["kind"] == "bundle"


NO_JSON = [b"", b"{", b"nul", b'{"model": "\xff"}', b'{"a": 1}}', b"[" * 100_000, b'{"version": "\\ud800"}', b"[1e999]"]


@pytest.mark.parametrize("content", NO_JSON, ids=lambda content: repr(content[:20]))
def test_files_that_are_no_json_are_refused(tokenize_program: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    assert refusal(tokenize_program, path)["error"].startswith("tokenizer.json cannot be read: it ")
    path.write_bytes(b"[]")
    assert refusal(tokenize_program, path)["error"] == "tokenizer.json: is no object"


def test_a_vocabulary_without_the_unknown_token_fails_when_it_is_needed(make_native: Make) -> None:
    native = make_native(bert({"a": 0}, added_tokens=[], post_processor=None))
    native.check("a")
    native.check("b")
