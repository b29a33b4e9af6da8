"""Built-in sample texts, written for cpuc, on which graphs are traced and verified."""

from __future__ import annotations

from typing import Any

from cpuc.compiler import media_samples
from cpuc.compiler.calibration_texts import TEXTS

_LIGHTHOUSE = (
    "The lighthouse on the northern cape was lit for the first time in October 1871. Its lamp burned rapeseed oil until "
    "1902, when the keeper, Ingrid Solberg, persuaded the harbour board to install a petroleum burner."
)
_BAKERY = "The bakery opens at six. Rye bread costs 4.20 euros; on Sundays it is sold out by nine."
_BRIDGE = (
    "Engineers closed the old suspension bridge after sensors showed that two of its main cables had lost about a fifth "
    "of their strength. Repairs began in March and were expected to take fourteen months. Until then, traffic was led over "
    "the railway bridge downstream, where a third lane was laid in eleven nights. The city paid 38 million for the work; "
    "the rest came from a national fund for infrastructure. A study two years later found that the detour had lengthened "
    "the average commute by nine minutes, but that a quarter of all commuters had changed to the tram and stayed with it."
)
_CAFE = "Zoë's café in Malmö 🥐 serves crème brûlée, smørrebrød and — on request — a naïve little espresso for 3 €."
_GLACIER = (
    "Glaciers store about 69 percent of the fresh water on the planet. They form where more snow falls in winter than melts "
    "in summer: year after year the layers press the lower ones into firn and at last into ice, which begins to flow under "
    "its own weight. In the valley of the Rhône the ice was once more than a kilometre thick. When it withdrew it left "
    "behind lakes, polished rock, and boulders that do not belong to the stone on which they lie. Farmers told stories of "
    "giants to account for them; it was not before the 1830s that naturalists put forward the idea of an ice age. "
    "Measurements since then show a clear trend. Of the glaciers that were surveyed in 1900, more than five hundred have "
    "disappeared, most of them small ones below three thousand metres. The large ones lose between one and three metres of "
    "thickness a year. Rivers that are fed by them carry more water at first, and then, once the ice has shrunk beyond a "
    "certain size, less and less in the dry months of late summer, when it is needed most."
)


def questions() -> list[dict[str, Any]]:
    """Records for question answering, from a dozen tokens to several windows of 384."""
    return [
        {"question": "When does the bakery open?", "context": _BAKERY},
        {"question": "Who was the keeper of the lighthouse?", "context": _LIGHTHOUSE},
        {"question": "How much is an espresso at Zoë's?", "context": _CAFE},
        {"question": "How long were the repairs expected to take?", "context": _BRIDGE},
        {"question": "When was the idea of an ice age put forward?", "context": _GLACIER},
        {"question": "Who persuaded the harbour board?", "context": f"{_GLACIER} {_BRIDGE} {_LIGHTHOUSE} {_BAKERY}"},
    ]


def texts() -> list[dict[str, Any]]:
    """Plain texts, from a handful of tokens to about three hundred."""
    return [{"text": text} for text in (_BAKERY, _LIGHTHOUSE, _CAFE, _BRIDGE, _GLACIER, "Closed.")]


def candidates() -> list[dict[str, Any]]:
    """Records for zero-shot classification."""
    labels = ["food", "engineering", "weather", "travel"]
    return [{"text": text, "candidate_labels": labels} for text in (_BAKERY, _CAFE, _BRIDGE, _GLACIER)]


def choices() -> list[dict[str, Any]]:
    """Records for multiple choice."""
    return [
        {"text": _BAKERY, "choices": ["By noon there is no bread.", "The lamp burned oil.", "It began to snow."]},
        {"text": _BRIDGE, "choices": ["The tram is popular.", "The cables were new, and nobody had to wait."]},
        {"text": _GLACIER, "choices": ["Rivers run low in late summer.", "Rye bread costs 4.20 euros."]},
    ]


def masked(mask: str) -> list[dict[str, Any]]:
    """Texts with a mask token, written `mask`, in place of a word."""
    blanks = ((_BAKERY, "bread"), (_LIGHTHOUSE, "oil"), (_CAFE, "serves"), (_BRIDGE, "bridge"), (_GLACIER, "snow"))
    return [{"text": text.replace(word, mask, 1)} for text, word in blanks]


def more_questions() -> list[dict[str, Any]]:
    """Records for question answering to calibrate with, each text twice: alone, and in a long window with its neighbours."""
    alone = [{"question": question, "context": text} for question, text in TEXTS]
    long = [
        {"question": question, "context": " ".join(text for _, text in TEXTS[i : i + 3])}
        for i, (question, _) in enumerate(TEXTS)
    ]
    return questions() + alone + long


def more_texts() -> list[dict[str, Any]]:
    """Plain texts to calibrate with."""
    return texts() + [{"text": text} for pair in TEXTS for text in pair]


def more_candidates() -> list[dict[str, Any]]:
    """Records for zero-shot classification to calibrate with."""
    return [{**record, "candidate_labels": ["science", "sport", "law"]} for record in more_texts()]


def more_choices() -> list[dict[str, Any]]:
    """Records for multiple choice to calibrate with."""
    return choices() + [{"text": text, "choices": [question, _BAKERY]} for question, text in TEXTS]


def more_masked(mask: str) -> list[dict[str, Any]]:
    """Texts to calibrate with, `mask` in place of the word in the middle."""
    records = masked(mask)
    for _, text in TEXTS:
        words = text.split(" ")
        words[len(words) // 2] = mask
        records.append({"text": " ".join(words)})
    return records


def images() -> list[dict[str, Any]]:
    """Images of several sizes."""
    return [{"image": image} for image in media_samples.images()]


def sounds() -> list[dict[str, Any]]:
    """Sounds of half a second to six."""
    return [{"audio": {"array": sound, "sampling_rate": media_samples.SAMPLING_RATE}} for sound in media_samples.sounds()]
