"""One reader for each form of labelled data: questions, texts, tagged sentences, pairs of sentences, media."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cpuc.compiler.evaluation.datasets import (
    Dataset,
    FormError,
    Line,
    find_field,
    listed,
    read_bytes,
    read_lines,
    read_number,
    read_text,
)
from cpuc.runtime.errors import InputError
from cpuc.runtime.records import decode_text, reject_surrogates

Lines = Callable[[Path, int | None], list[Line]]

# The tags of a scheme for entities that begin, go on, end, or stand alone; "O" is outside of any.
ENTITY_TAG = re.compile(r"[BIES]-.+", re.DOTALL)


def read_samples(
    path: Path,
    limit: int | None,
    labels: list[str],
    *,
    lines: Lines,
    record: Callable[[Line], dict[str, Any]],
    reference: Callable[[Line, Sequence[str]], Any],
) -> Dataset:
    """A data set whose samples are one record with one reference each."""
    found = lines(path, limit)
    return Dataset(
        source=str(path),
        records=[record(line) for line in found],
        names=[line.where for line in found],
        references=[reference(line, labels) for line in found],
        labels=labels,
    )


def text_record(line: Line) -> dict[str, Any]:
    """A text, or a pair of them."""
    pair = {"text_pair": read_text(line, "text_pair")} if line.fields.get("text_pair") is not None else {}
    return {"text": read_text(line, "text"), **pair}


def read_questions(path: Path, limit: int | None, labels: list[str]) -> Dataset:
    """Questions of SQuAD 1.1 or 2.0; the reference of each is the list of its right answers.

    What counts as one is as in the official scripts (evaluate-v1.1.py, evaluate-v2.0.py): version 2.0 leaves out answers
    that normalise to nothing, and expects the empty answer where none is left.
    """
    lines = read_lines(path, None)
    texts = [(read_text(line, "question"), read_text(line, "context")) for line in lines]
    references = [_right_answers(line) for line in lines]
    impossible = not all(references)
    marked = [line.fields["is_impossible"] for line in lines if "is_impossible" in line.fields]
    if not any(references) and not any(marked):
        raise FormError(f"{path}: no question has an answer: the data is not labelled")
    if impossible or marked:
        references = [[text for text in right if _says_something(text)] or [""] for right in references]
    return Dataset(
        source=str(path),
        records=[{"question": question, "context": context} for question, context in texts][:limit],
        names=[line.where for line in lines][:limit],
        references=references[:limit],
        labels=labels,
        options={"allow_no_answer": True} if impossible else {},
    )


def _right_answers(line: Line) -> list[str]:
    """SQuAD's list of objects, or the object of lists that the Hub's copies have."""
    answers = line.fields[find_field(line, "answers")]
    texts = answers.get("text") if isinstance(answers, dict) else answers
    if isinstance(answers, list):
        texts = [answer.get("text") if isinstance(answer, dict) else None for answer in answers]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise FormError(f"{line.where}: field 'answers' must be a list of objects with a text")
    return texts


def _says_something(answer: str) -> bool:
    """Whether the official normalisation leaves anything: it drops punctuation and articles."""
    bare = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return bool(set(bare.split()) - {"a", "an", "the"})


def read_pairs(path: Path, limit: int | None, labels: list[str]) -> Dataset:
    """Pairs of texts with a score; a reference is (position of one text, of the other, score). Each text is a record once.

    Data of single texts without scores has no references.
    """
    lines = read_lines(path, limit)
    pairs = any({"text_pair", "sentence2"} & set(line.fields) for line in lines)
    position: dict[str, int] = {}
    names, references = [], []
    for line in lines:
        texts = [read_text(line, "text", "sentence1")] + ([read_text(line, "text_pair", "sentence2")] if pairs else [])
        for text in texts:
            if text not in position:
                position[text] = len(position)
                names.append(line.where)
        if pairs:
            references.append((*(position[text] for text in texts), read_number(line)))
    return Dataset(str(path), [{"text": text} for text in position], names, references, labels)


def read_sentences(path: Path, limit: int | None) -> list[Line]:
    """Sentences with ``tokens`` and ``tags``: JSON, or CoNLL's columns, as the content says."""
    text = decode_text(read_bytes(path), str(path)).lstrip()
    if not text:
        raise FormError(f"{path}: is empty")
    is_json = path.suffix in (".json", ".jsonl", ".ndjson") or text.startswith("{")
    return read_lines(path, limit) if is_json else _read_columns(path)[:limit]


def _read_columns(path: Path) -> list[Line]:
    """CoNLL: a token a line, its tag in the last column; blank lines end sentences, -DOCSTART- lines are no sentence."""
    sentences: list[Line] = []
    ended = True
    for number, line in enumerate(decode_text(path.read_bytes(), str(path)).split("\n"), 1):
        columns = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or columns[0] == "-DOCSTART-":
            ended = True
            continue
        if len(columns) < 2:
            raise FormError(f"{path}: line {number}: expected a token and its tag, found {line.strip()[:60]!r}")
        if ended:
            sentences.append(Line(f"{path}: line {number}", {"tokens": [], "tags": []}))
            ended = False
        sentences[-1].fields["tokens"].append(columns[0].strip())
        sentences[-1].fields["tags"].append(columns[-1].strip())
    if not sentences:
        raise FormError(f"{path}: holds no sentence")
    return sentences


def sentence_record(line: Line) -> dict[str, Any]:
    """The sentence as the text that its words make with a space between them."""
    return {"text": " ".join(_strings(line, find_field(line, "tokens")))}


def read_tags(line: Line, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Each word with its tag. Data and model may begin entities differently (IOB1, IOB2): what they are must be known."""
    name = find_field(line, "tags", "ner_tags", "labels")
    words, tags = _strings(line, "tokens"), _strings(line, name)
    if len(words) != len(tags):
        raise InputError(f"{line.where}: has {len(words)} tokens, but {len(tags)} in field {name!r}")
    schemed = has_entities(labels)
    known = {label.split("-", 1)[-1] if schemed else label for label in labels}
    for word, tag in zip(words, tags, strict=True):
        if schemed and tag != "O" and not ENTITY_TAG.fullmatch(tag):
            raise InputError(f"{line.where}: tag {tag!r} of {word!r} must be O, or begin with B-, I-, E- or S-")
        if tag != "O" and (tag.split("-", 1)[-1] if schemed else tag) not in known:
            raise InputError(f"{line.where}: tag {tag!r} of {word!r} is not one of the model's: {listed(labels)}")
    return list(zip(words, tags, strict=True))


def has_entities(labels: Sequence[str]) -> bool:
    """Whether a tagger's labels are those of entities, and not a tag for each word, such as parts of speech."""
    return any(ENTITY_TAG.fullmatch(label) for label in labels)


def check_entities(dataset: Dataset) -> None:
    """Raise InputError unless a tag is that of an entity: F1 does not exist without one."""
    if all(tag == "O" for sentence in dataset.references for _, tag in sentence):
        raise InputError(f"{dataset.source}: no word is tagged as an entity: the data is not labelled, or too little of it")


def _strings(line: Line, name: str) -> list[str]:
    values = line.fields[name]
    if not isinstance(values, list) or not values:
        raise FormError(f"{line.where}: field {name!r} must be a list that is not empty")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{line.where}: field {name!r} must hold names and words, found {value!r}")
        reject_surrogates(value, f"{line.where}: field {name!r}")
    return values


def read_media(path: Path, limit: int | None, *, field: str) -> list[Line]:
    """JSON with paths relative to the file, or a folder with a subfolder for each label."""
    if path.is_dir():
        return _read_folder(path, field)[:limit]
    lines = []
    for line in read_lines(path, limit):
        file = path.parent / read_text(line, field)
        if not file.is_file():
            raise InputError(f"{line.where}: field {field!r}: no such file: {file}")
        lines.append(Line(line.where, {**line.fields, field: str(file)}))
    return lines


def _read_folder(folder: Path, field: str) -> list[Line]:
    """The files of all labels in turn, so that the first ones are a fair choice. Hidden files are nobody's data."""
    found = []
    for label in sorted(folder.iterdir()):
        if label.name.startswith("."):
            continue
        if not label.is_dir():
            raise FormError(f"{label}: is not in the folder of a label")
        files = sorted(file for file in label.iterdir() if not file.name.startswith("."))
        found += [(i, label.name, file) for i, file in enumerate(files)]
    if not found:
        raise FormError(f"{folder}: holds no files")
    return [Line(str(file), {field: str(file), "label": label}) for _, label, file in sorted(found)]
