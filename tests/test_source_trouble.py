"""A Hub that cannot be reached or is not well, with and without a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from hub import Hub
from huggingface_hub.errors import HTTPError
from sources import INDEX, NAME, TINY, WEIGHTS, Publish, User, without, write

import cpuc
from cpuc.compiler.source import resolve

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
