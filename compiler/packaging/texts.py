"""The files of a package that people and container tools read."""

from __future__ import annotations

from cpuc.compiler.packaging.contents import Contents, needs_proc
from cpuc.runtime.errors import printable
from cpuc.runtime.summary import megabytes

# Where a container image has the package.
_HOME = "/cpuc"


def dockerfile(user: int, raw: bool) -> str:
    """An image of the package and nothing else: no shell, no system, a user without rights."""
    options = '"--raw", ' if raw else ""
    return f"""\
# docker build -t cpuc-model . && docker run --rm -i --network none cpuc-model < example.json
FROM scratch
COPY bin {_HOME}/bin
COPY lib {_HOME}/lib
COPY licenses {_HOME}/licenses
COPY model.pt example.json {_HOME}/
USER {user}:{user}
WORKDIR {_HOME}
# Loads the model and answers the example.
HEALTHCHECK --interval=5m --timeout=1m --start-period=1m \\
    CMD ["{_HOME}/bin/cpuc-run", "{_HOME}/model.pt", {options}"--input", "{_HOME}/example.json"]
ENTRYPOINT ["{_HOME}/bin/cpuc-run", "{_HOME}/model.pt"]
CMD [{options}"--input", "-"]
"""


def readme(contents: Contents, raw: bool) -> str:
    """What the package is, and how it is run."""
    facts, model = contents, contents.manifest
    options = " --raw" if raw else ""
    proc = ", and `/proc/cpuinfo`, which tells so; containers have it" if needs_proc(model) else ""
    task = model.task.replace("-", " ")
    asked = "named tensors, as the model takes them," if raw else f"records of {task}, as 'cpuc run' takes them,"
    license_name = printable(model.source.license or "not stated")
    source = model.source.id + (f" at {model.source.revision}" if model.source.revision else "")
    kind = printable(f"{model.architecture}, {model.build.precision}")
    rows = [f"| {component.name} | {component.version} |" for component in contents.components]
    return f"""\
# {printable(source)}, {task}

A model, the program that answers from it, and every library that this needs, down to the C library. Written by `cpuc package`
{printable(model.cpuc_version)}. Nothing has to be installed. It needs

- Linux {facts.kernel} or newer, as its C library says, on x86-64: any distribution, or none;
- a CPU with {model.build.isa}{proc}.

## Run it

    bin/cpuc-run model.pt{options} --input example.json
    docker build -t cpuc-model . && docker run --rm -i cpuc-model < example.json

It takes {asked} as JSON; `-` is standard input, and `bin/cpuc-run --help` lists
the options. The folder may lie anywhere, and the program may be called through a link. The answer to `example.json` is that of
the Python runtime: `cpuc package` has compared them. `sha256sum --check --quiet SHA256SUMS` shows whether the files are whole.

## What is in it

{megabytes(facts.size)}, of which the model takes {megabytes(facts.model_size)}: {kind},
licence: {license_name}. `lib/cpuc-run` is the program; `bin/cpuc-run`, which is linked statically,
starts it with the loader in `lib/`. Libraries are stripped of symbols for debuggers, and look for each other in their own
folder. Their licences are in `licenses/`; the sources of the GNU libraries are those of the distribution's packages of these
versions.

| from | version |
|---|---|
{chr(10).join(rows)}
"""
