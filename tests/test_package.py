"""Packages: they run where there is nothing else, hold what they say, and are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import pack, unpack, with_manifest
from conftest import ROOT, Run
from keys import Keys
from media_models import make_media_model
from native_tokenizer import built
from packages import copied, dynamic, nothing_left, packaged, right, run

import cpuc
from cpuc.compiler.packaging import check as checking
from cpuc.runtime.engine import Engine

pytestmark = pytest.mark.slow
# Without the model, in bytes.
LARGEST = 720_000_000


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where the native program is built, for other tests, too."""
    return built("native")


@pytest.fixture(scope="module")
def signed(tiny: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, signed."""
    path = tmp_path_factory.mktemp("signed") / "signed.pt"
    cpuc.sign(tiny, cpuc.read_private_key(keys.private), path)
    return path


@pytest.fixture(scope="module")
def written(
    signed: Path, keys: Keys, programs: Path, cli: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A package of the tiny model, and what the command said of it. The caller's umask must not matter."""
    folder = tmp_path_factory.mktemp("packages") / "dist"
    before = os.umask(0o077)
    try:
        done = cli("package", signed, "-o", f"{folder}/", "--trust", keys.public, "--json", "--build-dir", programs)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def dist(written: tuple[Path, dict[str, Any]]) -> Path:
    return written[0]


def options(written: tuple[Path, dict[str, Any]]) -> list[str]:
    return ["--raw"] if written[1]["verified"]["raw"] else []


@pytest.fixture(scope="module")
def model(tiny: Path) -> cpuc.Model:
    return cpuc.load(tiny, warm_up=False)


def test_what_reads_proc_is_tried_with_it(fbgemm: Path, programs: Path, tmp_path: Path) -> None:
    """FBGEMM knows no CPU without; the program says so, and gives the same digits as Python where there is one."""
    before = os.umask(0o077)
    try:
        written = cpuc.package(fbgemm, tmp_path / "dist", build_folder=programs)
    finally:
        os.umask(before)
    assert written.check.difference <= 1e-4
    assert any(line.startswith("needs: ") and line.endswith(", /proc") for line in written.describe())
    assert written.to_json()["needs"]["proc"] and "/proc/cpuinfo" in (tmp_path / "dist" / "README.md").read_text()
    if written.check.empty and os.geteuid() == 0:
        copied(tmp_path / "dist", tmp_path / "root" / "dist")
        options = ["--raw"] if written.check.raw else []
        alone = run("chroot", tmp_path / "root", "dist/bin/cpuc-run", "dist/model.pt", *options, "-i", "dist/example.json")
        assert alone.returncode == 1
        assert "/proc has to be mounted" in alone.stderr.splitlines()[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the root")
def test_it_answers_in_a_root_that_holds_nothing_else(
    written: tuple[Path, dict[str, Any]], model: cpuc.Model, tmp_path: Path
) -> None:
    folder, said = written
    # As `FROM scratch` has it: no /proc, no /dev, no /tmp, no environment, no rights. The program may also lie in /bin.
    for name, root in (("/opt/model", tmp_path / "a"), ("", tmp_path / "b")):
        copied(folder, Path(f"{root}{name}"))
        command = ["chroot", "--userspec=65532:65532", root, f"{name}/bin/cpuc-run", f"{name}/model.pt", *options(written)]
        assert right(run(*command, "--input", f"{name}/example.json", env={"PATH": os.environ["PATH"]}), folder, model)
    assert said["verified"]["empty_root"] and said["verified"]["largest_difference"] <= 1e-4


def test_it_answers_wherever_it_lies_and_however_it_is_called(
    written: tuple[Path, dict[str, Any]], model: cpuc.Model, tmp_path: Path
) -> None:
    folder = copied(written[0], tmp_path / "a b:c;$ORIGIN é" / "dist")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "libc.so.6").write_text("no library")
    (tmp_path / "link").symlink_to(folder / "bin" / "cpuc-run")
    (tmp_path / "again").symlink_to("link")
    (tmp_path / "folder").symlink_to(folder.parent)  # PATH is split at colons
    arguments = [folder / "model.pt", *options(written), "--input", folder / "example.json"]
    for program, place in (
        (folder / "bin" / "cpuc-run", Path("/")),
        ("bin/cpuc-run", folder),
        ("./cpuc-run", folder / "bin"),
        ("../../dist/bin/../bin/cpuc-run", folder / "bin"),
        ("./again", tmp_path),
        ("folder/dist/bin/cpuc-run", tmp_path),
    ):
        done = run(program, *arguments, cwd=place, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path / "bad")})
        assert right(done, folder, model), program
    found = run("cpuc-run", *arguments, cwd="/", env={"PATH": str(tmp_path / "folder" / "dist" / "bin")})
    assert right(found, folder, model)


def test_it_loads_its_own_libraries_only(written: tuple[Path, dict[str, Any]], model: cpuc.Model, tmp_path: Path) -> None:
    folder = written[0]
    debug = {"LD_DEBUG": "libs", "LD_DEBUG_OUTPUT": str(tmp_path / "loader")}
    arguments = [folder / "model.pt", *options(written), "--input", folder / "example.json"]
    assert right(run(folder / "bin" / "cpuc-run", *arguments, env={**os.environ, **debug}), folder, model)
    log = "".join(path.read_text() for path in tmp_path.glob("loader.*"))
    loaded = {Path(name) for name in re.findall(r"calling init: (/.*)", log)}
    assert {path.name for path in loaded} >= {"libc.so.6", "libtorch_cpu.so", "libintel-ext-pt-cpu.so"}
    assert {path.parent for path in loaded} == {folder / "lib"}
    tried = re.findall(r"trying file=(.*)", log)
    assert tried and all(Path(name).is_relative_to(folder / "lib") for name in tried)


def test_the_program_passes_everything_on(
    written: tuple[Path, dict[str, Any]], keys: Keys, model: cpuc.Model, tmp_path: Path
) -> None:
    dist = written[0]
    trusting = ["--trust", keys.public, *options(written), "--input", dist / "example.json"]
    assert right(run(dist / "bin" / "cpuc-run", dist / "model.pt", *trusting), dist, model)
    done = run(dist / "bin" / "cpuc-run", "--help")
    assert done.returncode == 0 and "--trust" in done.stdout
    assert run(dist / "bin" / "cpuc-run", dist / "model.pt").returncode == 2
    done = run(dist / "bin" / "cpuc-run", "a model.pt", "--raw", "--input", "-", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "cpuc: a model.pt: no such file\n")
    shutil.copy(dist / "bin" / "cpuc-run", tmp_path / "cpuc-run")
    done = run(tmp_path / "cpuc-run", "--help")
    assert done.returncode == 1 and done.stderr.endswith("the package is not whole: unpack it again\n")


def test_every_library_is_there_and_none_is_looked_for_elsewhere(dist: Path) -> None:
    held = {path.name for path in (dist / "lib").iterdir()}
    needed = {"libintel-ext-pt-cpu.so", "cpuc-run", "libcpuc.so"}  # which are opened, and what is started
    for path in sorted((dist / "lib").iterdir()):
        facts = dynamic(path)
        needed |= set(facts.get("NEEDED", []))
        assert set(facts.get("RPATH", []) + facts.get("RUNPATH", [])) <= {"$ORIGIN"}, path
        assert "RUNPATH" not in facts, path
        assert ".symtab" not in run("readelf", "--sections", "--wide", path).stdout, path
    assert held == needed
    assert len([name for name in held if "gomp" in name or "iomp" in name]) == 1
    assert not [name for name in held if "python" in name or "cublas" in name]
    assert "INTERP" not in run("readelf", "--segments", "--wide", dist / "bin" / "cpuc-run").stdout
    for path in (dist / "lib" / "cpuc-run", dist / "lib" / "libcpuc.so"):
        assert dynamic(path)["RPATH"] == ["$ORIGIN"]


def test_size_and_table(written: tuple[Path, dict[str, Any]], signed: Path) -> None:
    folder, said = written
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sum(sizes.values()) - sizes["model.pt"] <= LARGEST
    written_last = {"README.md", "SHA256SUMS", "package.json"}
    assert said["files"] == {name: size for name, size in sorted(sizes.items()) if name not in written_last}
    facts = json.loads((folder / "package.json").read_text())
    assert {**facts, "path": said["path"], "verified": said["verified"]} == said
    assert (folder / "model.pt").read_bytes() == signed.read_bytes()
    assert facts["needs"]["isa"] == "AVX2" and not facts["needs"]["proc"]
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)*", facts["needs"]["kernel"])


def test_checksums(dist: Path, tmp_path: Path) -> None:
    check = ["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"]
    assert run(*check, cwd=dist).returncode == 0
    listed = {line[66:] for line in (dist / "SHA256SUMS").read_text().splitlines()}
    assert listed | {"SHA256SUMS"} == {str(path.relative_to(dist)) for path in dist.rglob("*") if path.is_file()}
    altered = copied(dist, tmp_path / "dist")
    (altered / "lib" / "libm.so.6").unlink()
    data = bytearray((dist / "lib" / "libm.so.6").read_bytes())
    data[1000] ^= 1
    (altered / "lib" / "libm.so.6").write_bytes(data)
    done = run(*check, cwd=altered, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 1 and "lib/libm.so.6: FAILED" in done.stdout


def test_anybody_may_read_it(dist: Path) -> None:
    for path in [dist, *dist.rglob("*")]:
        program = path.is_dir() or path in (dist / "bin" / "cpuc-run", dist / "lib" / "ld-linux-x86-64.so.2")
        assert path.stat().st_mode & 0o7777 == (0o755 if program else 0o644), path


def test_licences_of_everything(written: tuple[Path, dict[str, Any]]) -> None:
    folder, said = written
    names = {component["name"] for component in said["components"]}
    assert names >= {"cpuc", "torch", "intel-extension-for-pytorch", "libc6", "libgcc-s1", "libstdc++6", "libssl-dev"}
    assert names >= {"libutf8proc-dev", "nlohmann-json3-dev", "libcli11-dev"}
    assert (folder / "lib" / "libcudart.so.12").exists() == any("nvidia" in name for name in names)
    for component in said["components"]:
        assert component["licenses"] and component["version"][0].isdigit()
        assert all((folder / "licenses" / name).stat().st_size > 500 for name in component["licenses"])
        assert f"| {component['name']} | {component['version']} |" in (folder / "README.md").read_text()
    assert (folder / "licenses" / "common" / "LGPL-2.1").is_file()
    assert "not stated" in (folder / "licenses" / "model" / "LICENSE.txt").read_text()  # as the tiny model has none


def test_what_the_readme_says_runs(dist: Path, model: cpuc.Model) -> None:
    commands = [line.strip() for line in (dist / "README.md").read_text().splitlines() if line.startswith("    ")]
    assert len(commands) == 2 and commands[1].startswith("docker build ")
    assert right(run(*shlex.split(commands[0]), cwd=dist), dist, model)


def test_the_dockerfile(written: tuple[Path, dict[str, Any]], model: cpuc.Model) -> None:
    folder = written[0]
    text = (folder / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    words = {name: value for name, value in lines if name != "COPY"}
    assert words["FROM"] == "scratch"
    user, group = words["USER"].split(":")
    assert int(user) > 0 and int(group) > 0
    image: dict[str, Path] = {}
    for *sources, target in (value.split() for name, value in lines if name == "COPY"):
        for source in sources:
            assert (folder / source).exists()
            image[target + source if target.endswith("/") else target] = folder / source

    def there(name: str) -> str:
        """The file of the package that an image has by this name."""
        if not name.startswith("/"):
            return name
        top = next(path for path in image if name == path or name.startswith(f"{path}/"))
        assert Path(f"{image[top]}{name[len(top) :]}").is_file()
        return f"{image[top]}{name[len(top) :]}"

    entry, more = (json.loads(words[name]) for name in ("ENTRYPOINT", "CMD"))
    example = (folder / "example.json").read_text()
    assert right(run(*map(there, [*entry, *more]), input=example), folder, model)
    health = json.loads(words["HEALTHCHECK"].split("CMD")[1])
    assert right(run(*map(there, health)), folder, model)


def test_tar_files_are_the_same_bytes(signed: Path, programs: Path, dist: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        package = packaged(signed, tmp_path / name / "dist", programs, tar=True)
        assert package.path == str(tmp_path / name / "dist.tar") and nothing_left(tmp_path / name, "dist.tar")
        with Path(package.path).open("rb") as file:
            digests.add(hashlib.file_digest(file, "sha256").hexdigest())
    assert len(digests) == 1
    with tarfile.open(tmp_path / "a" / "dist.tar") as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path, filter="data")
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(members[0].mtime, 0, 0, "", "")}
    # Not only the archives are alike, but the packages, too.
    assert (tmp_path / "dist" / "SHA256SUMS").read_text() == (dist / "SHA256SUMS").read_text()
    assert run(tmp_path / "dist" / "bin" / "cpuc-run", "--help").returncode == 0


def test_only_packages_are_replaced(tiny: Path, dist: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    target = copied(dist, tmp_path / "dist")
    (target / "lib" / "notes.txt").write_text("precious")
    refusals: list[tuple[Path, bool, str]] = [
        (mine, False, "exists already; give --force"),
        (mine, True, "is not a package"),
        (tmp_path / "file", True, "is not a folder"),
        (target, False, "exists already; give --force"),
        (target, True, "holds 'lib/notes.txt', which is not of the package"),
        (tmp_path / "no" / "dist", False, "no such folder"),
    ]
    for path, force, message in refusals:
        with pytest.raises(cpuc.CpucError, match=re.escape(message)):
            packaged(tiny, path, tmp_path / "never", force=force)
    assert (mine / "thesis.txt").read_text() == (target / "lib" / "notes.txt").read_text() == "precious"
    assert not (tmp_path / "never").exists()


def test_a_task_without_text_where_no_empty_root_can_be_had(
    programs: Path, dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, target = tmp_path / "vit.pt", copied(dist, tmp_path / "dist")
    cpuc.compile(str(make_media_model(tmp_path / "vit", "vit", "image-classification")), bundle)
    monkeypatch.setattr(checking, "_works", lambda _: False)
    said: list[str] = []
    package = packaged(bundle, target, programs, force=True, warn=said.append)
    assert (target / "model.pt").read_bytes() == bundle.read_bytes()
    assert nothing_left(tmp_path, "dist", "vit", "vit.pt")
    verified = package.to_json()["verified"]
    assert verified["empty_root"] is False and "without environment" in verified["where"]
    assert len(said) == 1 and "an empty root could not be had" in said[0]
    assert verified["raw"].startswith("the bundle's task") and verified["raw"].endswith("use --raw")
    assert f"answers: named tensors only (--raw): {verified['raw']}" in package.describe()
    command = next(line for line in (target / "README.md").read_text().splitlines() if line.startswith("    bin/"))
    assert right(run(*shlex.split(command), cwd=target), target, cpuc.load(bundle))


def test_bundles_that_are_not_as_they_must_be_are_refused_at_once(tiny: Path, keys: Keys, tmp_path: Path) -> None:
    damaged = bytearray(tiny.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.pt").write_bytes(damaged)
    (tmp_path / "other.pt").write_bytes(pack(with_manifest(unpack(tiny), lambda m: m["build"].update(torch="2.9.0"))))
    for bundle, trust, message in (
        (tmp_path / "damaged.pt", None, "does not match its SHA-256"),
        (tmp_path / "other.pt", None, "compiled with torch 2.9.0"),
        (tmp_path / "absent.pt", None, "no such file"),
        (tiny, keys.public, "is not signed"),
    ):
        with pytest.raises(cpuc.BundleError, match=message):
            packaged(bundle, tmp_path / "dist", tmp_path / "never", trust=trust)
    assert nothing_left(tmp_path, "damaged.pt", "other.pt")


def test_missing_tools_are_named(tiny: Path, programs: Path, cli: Run, tmp_path: Path) -> None:  # noqa: ARG001
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("g++", "make", "as", "ld"):
        (tools / name).symlink_to(shutil.which(name) or "")
    done = cli("package", tiny, "-o", tmp_path / "dist", "--build-dir", tmp_path / "never", PATH=str(tools))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("needs cmake, binutils: apt-get install cmake binutils\n")
    assert nothing_left(tmp_path, "tools")


def test_a_package_that_answers_otherwise_is_not_written(
    tiny: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., dict[str, np.ndarray]] = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, inputs: {k: v * 1.5 for k, v in honest(self, inputs).items()})
    with pytest.raises(cpuc.ParityError, match=r"does not give the answer of 'cpuc run': .* nothing was written") as error:
        packaged(tiny, tmp_path / "dist", programs)
    assert error.value.exit_code == 3 and nothing_left(tmp_path)


def test_a_full_disk_leaves_nothing(tiny: Path, programs: Path, tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (7_000_000, 7_000_000)); sys.argv[0] = 'cpuc'; "
        "from cpuc.cli import main; main()"
    )
    done = run(sys.executable, "-c", script, "package", tiny, "-o", tmp_path / "dist", "--build-dir", programs)
    # Which of the two depends on the wheels: a library that is stripped, or one that is copied.
    assert done.returncode == 1 and re.search(r"cannot be written: (File too large|strip )", done.stderr)
    assert done.stderr.count("\n") == 1
    assert nothing_left(tmp_path)


def test_an_interrupted_package_leaves_nothing(tiny: Path, programs: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("cpuc")
    process = subprocess.Popen(
        [program, "package", tiny, "-o", tmp_path / "dist", "--build-dir", programs],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(tmp_path.glob(".cpuc-staged-*/top/package/lib/libtorch_cpu.so")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors
    assert nothing_left(tmp_path)


def test_an_installed_cpuc_has_the_sources() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cpuc.runtime"]
    shipped = {path for pattern in settings for path in (ROOT / "runtime").glob(pattern) if path.is_file()}
    assert shipped == {path for path in (ROOT / "runtime" / "native").rglob("*") if path.is_file()}
