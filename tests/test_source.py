"""Where models come from: folders, the Hub (a stand-in for it, asked by the real client), its cache, and their failures."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest
import tokenizers
from hub import STRANGER, TOKEN, Hub
from huggingface_hub.errors import HTTPError

import cpuc
from cpuc.compiler.names import all_names
from cpuc.compiler.source import resolve, snapshot
from cpuc.runtime.manifest import Manifest

NAME = "someone/tiny"
SHORT, LONG = "bert-base-uncased-squad-v1", "csarron/bert-base-uncased-squad-v1"
# Nobody reads the weights before they are loaded, so they need not be any.
WEIGHTS = bytes(range(256)) * 400
TINY: dict[str, str | bytes] = {
    "config.json": json.dumps({"architectures": ["BertForQuestionAnswering"], "model_type": "bert"}),
    "README.md": "---\nlicense: mit\n---\n# Tiny\n",
    "tokenizer.json": "{}",
    "model.safetensors": WEIGHTS,
}
INDEX = json.dumps(
    {"metadata": {}, "weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "part-1.safetensors"}}
)
# What repositories hold beside the model, none of which is any business of a compiler.
OTHERS = (
    ".gitattributes",
    "flax_model.msgpack",
    "modeling_evil.py",
    "onnx/model.onnx",
    "optimizer.pt",
    "tf_model.h5",
    "training_args.bin",
)

FETCH = """
import json, sys
from cpuc.compiler.source import resolve, snapshot
source = resolve(*sys.argv[1:])
files = snapshot(source)
print(json.dumps([source.id, source.revision, source.license, files.weights, str(files.folder)]))
assert not {"torch", "transformers"} & set(sys.modules), "finding a model takes no torch"
"""
# The Hub's client waits between its attempts for up to eight seconds, and nothing in its settings says otherwise.
IMPATIENCE = "import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(min(seconds, 0.01))\n"


class Fetched(NamedTuple):
    """What FETCH prints."""

    id: str
    revision: str | None
    license: str | None
    weights: str
    folder: str


@dataclass(frozen=True)
class User:
    """Somebody who runs programs against a Hub, with a cache and a folder for bundles of their own."""

    home: Path
    endpoint: str
    settings: Mapping[str, str]

    def having(self, **settings: str) -> User:
        """The same user with other environment variables."""
        return replace(self, settings={**self.settings, **settings})

    @property
    def bundle(self) -> Path:
        """What `compile` writes."""
        return self.home / "bundles" / "model.pt"

    def compile(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run ``cpuc compile``."""
        self.bundle.parent.mkdir(exist_ok=True)
        return self._run(Path(sys.executable).with_name("cpuc"), "compile", name, "-o", self.bundle, *options)

    def fetch(self, *arguments: str) -> Fetched:
        """Do what ``cpuc compile`` does before it loads the model."""
        done = self._run(sys.executable, "-c", FETCH, *arguments)
        assert done.returncode == 0, done.stderr
        return Fetched(*json.loads(done.stdout))

    def fails(self, name: str, *options: str) -> str:
        """Check that ``cpuc compile`` fails as it should: one line for the user, nothing written. Returns that line."""
        done = self.compile(name, *options)
        assert done.returncode == 1, done
        assert done.stdout == "" and "Traceback" not in done.stderr
        assert list(self.bundle.parent.iterdir()) == []
        # Above it there may be the client's warnings about its attempts.
        *above, line = done.stderr.splitlines()
        assert line.startswith("cpuc: ") and not any(other.startswith("cpuc: ") for other in above), done.stderr
        assert not line.startswith("cpuc: unexpected"), line
        return line

    def _run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        left_out = ("HF_", "HUGGING", "TRANSFORMERS_")
        inherited = {key: value for key, value in os.environ.items() if not key.upper().startswith(left_out)}
        own = {
            "HOME": str(self.home),
            "HF_HOME": str(self.home / "cache"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(self.home / "site"),
        }
        environment = {**inherited, **own, **self.settings}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.home, timeout=60, check=False)


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Make a folder with these files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def without(*names: str) -> dict[str, str | bytes]:
    """The tiny repository's files but these."""
    return {name: content for name, content in TINY.items() if name not in names}


def new_user(home: Path, endpoint: str) -> User:
    """A user whose programs do not wait."""
    write(home / "site", {"sitecustomize.py": IMPATIENCE})
    return User(home, endpoint, {})


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub without repositories."""
    with Hub() as running:
        yield running


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    """A user of that Hub, without a token, with an empty cache."""
    return new_user(tmp_path / "user", hub.url)


Publish = Callable[..., str]


@pytest.fixture
def publish(hub: Hub, tmp_path: Path) -> Publish:
    """Puts files on the Hub, by default the tiny model as `NAME`; returns the commit. Options are those of `Hub.add`."""
    count = iter(range(100))

    def put(files: Mapping[str, str | bytes] = TINY, name: str = NAME, **options: Any) -> str:
        return hub.add(name, write(tmp_path / f"repository-{next(count)}", files), **options)

    return put


class TestHub:
    """Models that are there."""

    def test_fetches_only_what_a_compile_needs(self, hub: Hub, user: User, publish: Publish) -> None:
        commit = publish({**TINY, **dict.fromkeys(OTHERS, "?"), "pytorch_model.bin": "?", "vocab.txt": "[PAD]"})
        fetched = user.fetch(NAME)
        assert fetched[:4] == (NAME, commit, "mit", "model.safetensors")
        assert hub.downloads() == ["config.json", "README.md", "tokenizer.json", "vocab.txt", "model.safetensors"]
        unwanted = (*OTHERS, "pytorch_model.bin")
        assert [path for _, path in hub.requests if path.endswith(unwanted)] == []

    def test_what_came_is_what_is_there(self, user: User, publish: Publish) -> None:
        publish()
        folder = Path(user.fetch(NAME).folder)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
            name: content.encode() if isinstance(content, str) else content for name, content in TINY.items()
        }

    @pytest.mark.parametrize(
        ("there", "chosen", "downloaded"),
        [
            (["pytorch_model.bin", "model.safetensors"], "model.safetensors", ["model.safetensors"]),
            (["pytorch_model.bin"], "pytorch_model.bin", ["pytorch_model.bin"]),
            (
                ["pytorch_model.bin", "model.safetensors.index.json", "part-1.safetensors", "part-2.safetensors"],
                "model.safetensors.index.json",
                ["model.safetensors.index.json", "part-1.safetensors", "part-2.safetensors"],
            ),
            (
                ["pytorch_model.bin.index.json", "part-1.safetensors", "part-2.safetensors", "part-3.safetensors"],
                "pytorch_model.bin.index.json",
                ["pytorch_model.bin.index.json", "part-1.safetensors", "part-2.safetensors"],
            ),
        ],
        ids=["both", "pickle", "shards-and-pickle", "pickled-shards"],
    )
    def test_chooses_weights(
        self, hub: Hub, user: User, publish: Publish, there: list[str], chosen: str, downloaded: list[str]
    ) -> None:
        weights = {name: INDEX if name.endswith(".json") else name for name in there}
        publish({"config.json": TINY["config.json"], **weights})
        assert user.fetch(NAME).weights == chosen
        assert hub.downloads() == ["config.json", *downloaded]

    def test_short_name(self, user: User, publish: Publish) -> None:
        commit = publish(name=LONG)
        publish(name="someone/" + SHORT)
        assert user.fetch(SHORT)[:2] == (LONG, commit)

    def test_renamed_repository(self, hub: Hub, user: User, publish: Publish) -> None:
        commit = publish()
        hub.renamed["tiny"] = NAME
        assert user.fetch("tiny")[:4] == ("tiny", commit, "mit", "model.safetensors")

    @pytest.mark.parametrize("revision", ["v1.0", "refs/pr/7", "commit"])
    def test_revision(self, user: User, publish: Publish, revision: str) -> None:
        commit = publish(
            {**TINY, "README.md": "---\nlicense: wtfpl\n---\n"}, branch="old" if revision == "commit" else revision
        )
        newest = publish()
        asked = commit if revision == "commit" else revision
        assert user.fetch(NAME, asked)[:3] == (NAME, commit, "wtfpl")
        assert user.fetch(NAME)[:3] == (NAME, newest, "mit")

    def test_moved_branch(self, user: User, publish: Publish) -> None:
        before = publish()
        assert user.fetch(NAME).revision == before
        after = publish({**TINY, "model.safetensors": "new weights"})
        fetched = user.fetch(NAME)
        assert fetched.revision == after
        assert (Path(fetched.folder) / "model.safetensors").read_text() == "new weights"

    @pytest.mark.parametrize("revision", ["v9", "0" * 40])
    def test_unknown_revision(self, user: User, publish: Publish, revision: str) -> None:
        publish()
        line = user.fails(NAME, "--revision", revision)
        assert NAME in line and f"no revision '{revision}'" in line

    @pytest.mark.parametrize("token", ["", STRANGER, "hf_wrong"])
    def test_private(self, hub: Hub, user: User, publish: Publish, token: str) -> None:
        publish(private=True)
        line = user.having(HF_TOKEN=token).fails(NAME)
        assert NAME in line and "HF_TOKEN" in line
        assert not token or token not in line
        assert hub.downloads() == []

    @pytest.mark.parametrize("token", ["", STRANGER])
    def test_gated(self, hub: Hub, user: User, publish: Publish, token: str) -> None:
        publish(gated=True)
        line = user.having(HF_TOKEN=token).fails(NAME)
        assert NAME in line and "gated" in line and "accept its terms" in line
        assert hub.downloads() == []

    @pytest.mark.parametrize("access", ["private", "gated"])
    def test_token_opens(self, user: User, publish: Publish, access: str) -> None:
        commit = publish(**{access: True})
        assert user.having(HF_TOKEN=TOKEN).fetch(NAME)[:2] == (NAME, commit)


class TestNothingThere:
    """Names and repositories that are no models."""

    @pytest.mark.parametrize("name", ["someone/nothing", "nothing", "bert-base-uncased-squad1", "no such name!", "someone/"])
    def test_unknown_name(self, user: User, publish: Publish, name: str) -> None:
        publish()
        line = user.fails(name)
        assert f"'{name}' was tried as a local folder, as a short name and as a Hub repository" in line
        assert "HF_TOKEN" in line
        assert all(short in line for short in all_names())
        assert (f"did you mean {SHORT}" in line) == (name == "bert-base-uncased-squad1")

    def test_short_name_of_a_missing_repository(self, user: User) -> None:
        assert f"'{SHORT}' (short for '{LONG}')" in user.fails(SHORT)

    def test_no_configuration(self, hub: Hub, user: User, publish: Publish) -> None:
        publish(without("config.json"))
        line = user.fails(NAME)
        assert NAME in line and "no config.json" in line
        assert hub.downloads() == []

    def test_broken_configuration(self, hub: Hub, user: User, publish: Publish) -> None:
        publish({**TINY, "config.json": '{"model_type": '})
        line = user.fails(NAME)
        assert NAME in line and "config.json is not valid JSON" in line
        assert hub.downloads() == ["config.json"]

    def test_no_weights(self, user: User, publish: Publish) -> None:
        publish({**without("model.safetensors"), "tf_model.h5": "?"})
        line = user.fails(NAME)
        assert NAME in line and "has no weights" in line and "model.safetensors" in line and "pytorch_model.bin" in line

    def test_missing_shard(self, user: User, publish: Publish) -> None:
        publish({**without("model.safetensors"), "model.safetensors.index.json": INDEX, "part-1.safetensors": "?"})
        line = user.fails(NAME)
        assert NAME in line and "'part-2.safetensors'" in line and "'part-1.safetensors'" not in line

    @pytest.mark.parametrize(
        "config",
        [
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            {"model_type": "bert", "architectures": ["BertForQuestionAnswering"], "quantization_config": {"bits": 4}},
            {"architectures": ["BertForQuestionAnswering"]},
        ],
        ids=["architecture", "task", "quantised", "no-type"],
    )
    def test_unsupported_costs_no_download(self, hub: Hub, user: User, publish: Publish, config: dict[str, Any]) -> None:
        publish({**TINY, "config.json": json.dumps(config)})
        line = user.fails(NAME)
        assert NAME in line
        assert str(config.get("model_type", "no model_type")) in line or "BertForMaskedLM" in line or "quantised" in line
        assert hub.downloads() == ["config.json"]


Trouble = Callable[[Hub], None]


def break_nothing(_: Hub) -> None:
    """The Hub works."""


def go_offline(hub: Hub) -> None:
    """The user has set HF_HUB_OFFLINE; requests are counted."""
    hub.requests.clear()


def stop(hub: Hub) -> None:
    """Connections are refused."""
    hub.close()


def break_all(hub: Hub) -> None:
    """Every request is answered with an error."""
    hub.fail(503, "/")


def break_listing(hub: Hub) -> None:
    """Files can be had; the list of them cannot."""
    hub.fail(500, "/api/models/")


def be_no_hub(hub: Hub) -> None:
    """Something else answers, as the log-in page of a hotel's network does."""
    hub.fail(200, "/")


def stall(hub: Hub) -> None:
    """Connections are accepted, and nothing is ever answered."""
    hub.fail("stall", "/")


# What the user sets for it; nothing but its own limits ends the client's waiting for an answer.
SETTINGS: dict[Trouble, dict[str, str]] = {
    go_offline: {"HF_HUB_OFFLINE": "1"},
    stall: {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"},
}


class TestTrouble:
    """A Hub that cannot be reached, or is not well."""

    @pytest.mark.parametrize(
        ("trouble", "by"),
        [
            *(
                (trouble, "default")
                for trouble in (break_nothing, go_offline, stop, break_all, break_listing, be_no_hub, stall)
            ),
            *((trouble, by) for trouble in (go_offline, stop) for by in ("branch", "commit")),
        ],
    )
    def test_warm_cache(self, hub: Hub, user: User, publish: Publish, trouble: Trouble, by: str) -> None:
        commit = publish(branch="v1" if by == "branch" else "main")
        revision = {"default": [], "branch": ["v1"], "commit": [commit]}[by]
        before = user.fetch(NAME, *revision)
        hub.requests.clear()
        trouble(hub)
        assert user.having(**SETTINGS.get(trouble, {})).fetch(NAME, *revision) == before
        assert hub.downloads() == []
        if trouble is go_offline:
            assert hub.requests == []

    @pytest.mark.parametrize(
        ("trouble", "fragments"),
        [
            (go_offline, ["config.json is not in the cache", "HF_HUB_OFFLINE"]),
            (stop, ["config.json is not in the cache", "http://127.0.0.1:", "cannot be reached"]),
            (break_all, ["config.json", "503"]),
            (break_listing, ["500"]),
            (be_no_hub, ["config.json is not in the cache", "http://127.0.0.1:"]),
        ],
    )
    def test_cold_cache(self, hub: Hub, user: User, publish: Publish, trouble: Trouble, fragments: list[str]) -> None:
        publish()
        trouble(hub)
        line = user.having(**SETTINGS.get(trouble, {})).fails(NAME)
        assert all(fragment in line for fragment in [NAME, *fragments]), line
        assert "has no weights" not in line

    @pytest.mark.parametrize("trouble", [go_offline, stop, break_all, break_listing])
    @pytest.mark.parametrize("missing", ["model.safetensors", "part-2.safetensors"])
    def test_cache_without_weights(self, hub: Hub, user: User, publish: Publish, trouble: Trouble, missing: str) -> None:
        """An earlier compile was interrupted; a repository that has weights is not said to have none."""
        files = TINY
        if missing != "model.safetensors":
            shards = {"model.safetensors.index.json": INDEX, "part-1.safetensors": "one", "part-2.safetensors": "two"}
            files = {**without("model.safetensors"), **shards}
        publish(files)
        hub.fail("cut", missing)
        user.fails(NAME)
        hub.faults.clear()
        trouble(hub)
        line = user.having(**SETTINGS.get(trouble, {})).fails(NAME)
        assert NAME in line and "cache" in line and "has no weights" not in line

    def test_other_revision_is_not_in_the_cache(self, user: User, publish: Publish) -> None:
        publish()
        user.fetch(NAME)
        line = user.having(HF_HUB_OFFLINE="1").fails(NAME, "--revision", "v1")
        assert NAME in line and "revision 'v1'" in line and "HF_HUB_OFFLINE" in line

    @pytest.mark.parametrize(
        ("status", "file"),
        [(403, "config.json"), (403, "model.safetensors"), (500, "model.safetensors"), (500, "tokenizer.json")],
    )
    def test_refused_file(self, hub: Hub, user: User, publish: Publish, status: int, file: str) -> None:
        publish()
        hub.fail(status, file)
        line = user.fails(NAME)
        assert NAME in line and file in line and str(status) in line

    def test_passing_error(self, hub: Hub, user: User, publish: Publish) -> None:
        commit = publish()
        hub.fail(503, "model.safetensors", times=2)
        assert user.fetch(NAME).revision == commit

    @pytest.mark.parametrize("times", [1, 3])
    def test_dropped_connection(self, hub: Hub, user: User, publish: Publish, times: int) -> None:
        publish()
        hub.fail("drop", "model.safetensors", times)
        folder = Path(user.fetch(NAME).folder)
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert hub.downloads().count("model.safetensors") == 1 + times

    @pytest.mark.parametrize("fault", ["drop", "cut", "short"])
    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_incomplete_file(self, hub: Hub, user: User, publish: Publish, fault: str, file: str) -> None:
        publish()
        hub.fail(fault, file)
        line = user.fails(NAME)
        assert NAME in line and file in line and "try again" in line
        assert list(user.home.rglob(f"snapshots/*/{file}")) == []
        # And trying again helps.
        hub.faults.clear()
        folder = Path(user.fetch(NAME).folder)
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS

    def test_keeps_an_earlier_bundle(self, hub: Hub, user: User, publish: Publish) -> None:
        publish()
        hub.fail("cut", "model.safetensors")
        write(user.bundle.parent, {user.bundle.name: "earlier"})
        assert user.compile(NAME, "--force").returncode == 1
        assert [(file.name, file.read_text()) for file in user.bundle.parent.iterdir()] == [(user.bundle.name, "earlier")]

    def test_error_without_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> str:
            raise HTTPError("")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
        with pytest.raises(cpuc.ModelError, match=r"downloading config\.json failed: HTTPError"):
            resolve(NAME)


class TestFolder:
    """Local folders."""

    def test_source(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "mine", {**TINY, **dict.fromkeys(OTHERS, "?")})
        source = resolve(str(folder))
        files = snapshot(source)
        assert (source.id, source.revision, source.license) == ("mine", None, "mit")
        assert (files.folder, files.weights) == (folder, "model.safetensors")

    def test_comes_before_a_short_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / SHORT, TINY)
        monkeypatch.chdir(tmp_path)
        source = resolve(SHORT)
        assert (source.id, source.revision) == (SHORT, None)

    def test_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(write(tmp_path / "mine", TINY))
        assert resolve(".").id == "mine"
        with pytest.raises(cpuc.ModelError, match="empty name"):
            resolve("")

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "mine", TINY)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert resolve("~/mine").id == "mine"

    @pytest.mark.parametrize(
        ("card", "licence"),
        [
            ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
            ("---\nlicense: other\nlicense_name: acme-1\n---\n", "acme-1"),
            ("---\nlicense: [mit, cc0-1.0]\n---\n", "mit, cc0-1.0"),
            ("---\nlanguage: en\n---\n", None),
            ("# A card without metadata\n", None),
            ("---\nlicense: [mit\n---\n", None),
            ("---\n- license\n---\n", None),
            ("---\nlicense: m\u00eet\n---\n".encode("latin-1"), None),
            (None, None),
        ],
    )
    def test_license(self, tmp_path: Path, card: str | bytes | None, licence: str | None) -> None:
        folder = write(tmp_path, without("README.md") if card is None else {**TINY, "README.md": card})
        assert resolve(str(folder)).license == licence

    @pytest.mark.parametrize(
        "config",
        ['{"model_type": ', "", "[1, 2]", "null", b'{"model_type": "\xff"}', "[" * 100_000, None],
        ids=["cut", "empty", "list", "null", "not-utf-8", "deep", "absent"],
    )
    def test_broken_configuration(self, tmp_path: Path, config: str | bytes | None) -> None:
        folder = write(tmp_path, without("config.json") if config is None else {**TINY, "config.json": config})
        with pytest.raises(cpuc.ModelError, match=r"config\.json") as caught:
            resolve(str(folder))
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ("{", "is not valid JSON"),
            ("[]", "holds no object"),
            ("{}", "has no weight_map"),
            ('{"weight_map": {}}', "has no weight_map"),
            ('{"weight_map": ["part-1.safetensors"]}', "has no weight_map"),
            (INDEX, "'part-2.safetensors', which is not there"),
            ('{"weight_map": {"a": "../outside.safetensors"}}', "'../outside.safetensors', which is not there"),
            ('{"weight_map": {"a": ".."}}', "'..', which is not there"),
            ('{"weight_map": {"a": ""}}', "'', which is not there"),
            ('{"weight_map": {"a": 1}}', "'1', which is not there"),
        ],
    )
    def test_broken_index(self, tmp_path: Path, index: str, message: str) -> None:
        name = "model.safetensors.index.json"
        folder = write(tmp_path / "mine", {**without("model.safetensors"), name: index, "part-1.safetensors": "?"})
        write(tmp_path, {"outside.safetensors": "?"})
        source = resolve(str(folder))
        with pytest.raises(cpuc.ModelError, match="mine") as caught:
            snapshot(source)
        assert name in str(caught.value) and message in str(caught.value)

    @pytest.mark.parametrize("name", ["./gone", "../gone", "/gone/model", "~/gone", "~nobody-of-that-name/model", "a/b/c"])
    def test_missing(self, user: User, name: str) -> None:
        line = user.fails(name)
        assert line.startswith(f"cpuc: {name}: ") and "no such folder" in line

    def test_very_long_name(self, user: User) -> None:
        assert "x" * 300 in user.fails("x" * 300)

    def test_file(self, user: User) -> None:
        write(user.home, {"model.safetensors": "?"})
        assert "model.safetensors: is a file; give the folder" in user.fails("model.safetensors")

    def test_no_weights(self, user: User) -> None:
        write(user.home / "mine", {**without("model.safetensors"), "training_args.bin": "?"})
        line = user.fails("./mine")
        assert "mine: has no weights" in line and "model.safetensors" in line and "pytorch_model.bin" in line

    def test_revision(self, user: User) -> None:
        write(user.home / "mine", TINY)
        assert "--revision is for models on the Hub" in user.fails("./mine", "--revision", "main")

    def test_asks_no_hub(self, hub: Hub, user: User) -> None:
        write(user.home / "mine", TINY)
        assert user.fetch("./mine")[:4] == ("mine", None, "mit", "model.safetensors")
        assert hub.requests == []


class Evil:
    """Unpickled, creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def with_code(config: Path, executed: Path) -> dict[str, str | bytes]:
    """A configuration that names code of its own, and that code: it creates a file."""
    classes = {"AutoModelForQuestionAnswering": "modeling_evil.Evil", "AutoTokenizer": ["modeling_evil.Evil", None]}
    return {
        "config.json": json.dumps({**json.loads(config.read_text()), "auto_map": classes}),
        "modeling_evil.py": f"open({str(executed)!r}, 'w').close()\n",
    }


class TestCode:
    """Weights that are programs, and programs beside the weights."""

    @pytest.mark.parametrize("form", ["archive", "bare", "shard"])
    def test_is_not_executed(self, user: User, minilm: Path, tmp_path: Path, form: str) -> None:
        import torch

        evil = Evil(tmp_path / "executed")
        write(user.home / "mine", with_code(minilm / "config.json", evil.file))
        target = user.home / "mine" / "pytorch_model.bin"
        if form == "bare":
            target.write_bytes(pickle.dumps({"bert.embeddings.word_embeddings.weight": evil}))
            pickle.loads(target.read_bytes())
        else:
            if form == "shard":
                index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": "part-1.bin"}}
                write(target.parent, {"pytorch_model.bin.index.json": json.dumps(index)})
                target = target.with_name("part-1.bin")
            torch.save({"bert.embeddings.word_embeddings.weight": evil}, target)
            torch.load(target, weights_only=False)
        assert evil.file.exists(), "the weights of this test are harmless"
        evil.file.unlink()

        line = user.fails("./mine")
        assert not evil.file.exists()
        assert "pytorch_model.bin" in line and "holds more than tensors" in line and "safetensors" in line


class Compiled(NamedTuple):
    """A bundle, what ``cpuc compile`` printed of it, the Hub's commit, and what was downloaded."""

    bundle: Path
    printed: Manifest
    commit: str
    downloads: list[str]


def compile_from_hub(user: User, hub: Hub, folder: Path, name: str, *options: str, **access: Any) -> Compiled:
    """Put a folder on the Hub and compile it from there. `access` holds options of `Hub.add`."""
    commit = hub.add(access.pop("repository", name), folder, **access)
    done = user.compile(name, "--json", *options)
    assert done.returncode == 0, done.stderr
    return Compiled(user.bundle, Manifest.from_json(done.stdout), commit, hub.downloads())


@pytest.fixture(scope="module")
def old(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The embedded model as repositories were years ago, and with code in it, compiled by a short name."""
    import torch
    from safetensors.torch import load_file

    home = tmp_path_factory.mktemp("old")
    vocabulary = json.loads((minilm / "tokenizer.json").read_text())["model"]["vocab"]
    files = {
        **dict.fromkeys(OTHERS, "?"),
        **with_code(minilm / "config.json", home / "executed"),
        "README.md": "---\nlicense: mit\n---\n",
        "vocab.txt": "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__)),
    }
    folder = write(home / "repository", files)
    torch.save(load_file(minilm / "model.safetensors"), folder / "pytorch_model.bin")
    with Hub() as hub:
        return compile_from_hub(new_user(home, hub.url), hub, folder, SHORT, repository=LONG)


@pytest.fixture(scope="module")
def sharded(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The embedded model in three parts on a branch of a private repository, compiled through a bad connection."""
    from safetensors.torch import load_file, save_file

    home = tmp_path_factory.mktemp("sharded")
    files = {file.name: file.read_bytes() for file in minilm.iterdir() if file.suffix != ".safetensors"}
    folder = write(home / "repository", files)
    weights = load_file(minilm / "model.safetensors")
    parts = {f"model-{part + 1:05}-of-00003.safetensors": sorted(weights)[part::3] for part in range(3)}
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    write(folder, {"model.safetensors.index.json": json.dumps(index)})
    with Hub() as hub:
        hub.fail("drop", "model-00002", times=1)
        user = new_user(home, hub.url).having(HF_TOKEN=TOKEN)
        return compile_from_hub(user, hub, folder, NAME, "--revision", "v1", branch="v1", private=True)


@pytest.mark.slow
class TestCompiled:
    """All the way from the Hub to answers."""

    def test_old_manifest(self, old: Compiled) -> None:
        manifest = cpuc.open_bundle(old.bundle).manifest
        assert (manifest.source.id, manifest.source.revision) == (LONG, old.commit)
        assert (manifest.source.license, manifest.source.weights) == ("mit", "pytorch_model.bin")
        assert manifest == old.printed

    def test_old_downloads(self, old: Compiled) -> None:
        assert old.downloads == ["config.json", "README.md", "vocab.txt", "pytorch_model.bin"]
        assert not (old.bundle.parent.parent / "executed").exists()

    def test_sharded_manifest(self, sharded: Compiled) -> None:
        manifest = cpuc.open_bundle(sharded.bundle).manifest
        assert (manifest.source.id, manifest.source.revision) == (NAME, sharded.commit)
        assert (manifest.source.license, manifest.source.weights) == ("apache-2.0", "model.safetensors.index.json")

    def test_sharded_downloads(self, sharded: Compiled) -> None:
        parts = [f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 2, 3)]
        side = ["config.json", "README.md", "tokenizer.json", "tokenizer_config.json"]
        assert sharded.downloads == [*side, "model.safetensors.index.json", *parts]

    @pytest.mark.parametrize("form", ["old", "sharded"])
    def test_answers(self, model: cpuc.Model, form: str, request: pytest.FixtureRequest) -> None:
        """Where the files lay and what they were called changes nothing."""
        records = [
            {"question": "Who wrote it?", "context": "The first program was written by Ada Lovelace in 1843."},
            {"question": "When?", "context": "The first program was written by Ada Lovelace in 1843."},
            {"question": "WHO wróte the café's menü?", "context": "Naïve Zoë wrote it; 東京 did not — [MASK] neither. " * 40},
        ]
        compiled: Compiled = request.getfixturevalue(form)
        assert list(cpuc.load(compiled.bundle)(records)) == list(model(records))

    @pytest.mark.parametrize(
        "text", ["Ada LOVELACE's café", "東京 is naïve", "un[MASK]able [SEP] ...", "ﬁ\u200b\t\u0000 \ufffd", ""]
    )
    def test_old_vocabulary(self, old: Compiled, minilm: Path, text: str) -> None:
        made = tokenizers.Tokenizer.from_str(cpuc.open_bundle(old.bundle).read("tokenizer.json").decode())
        original = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
        first, second = made.encode(text, "and more"), original.encode(text, "and more")
        assert (first.ids, first.type_ids, first.offsets) == (second.ids, second.type_ids, second.offsets)
