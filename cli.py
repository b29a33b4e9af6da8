"""The command line: parses, calls, prints. Whatever it does, ``import cpuc`` does too.

Nothing heavy is imported before a command needs it: ``cpuc --help`` answers without torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from cpuc.runtime.console import Group, TaskOptions, bar, reporter, show, warn
from cpuc.runtime.ending import end_early


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="cpuc", prog_name="cpuc")
def main(debug: bool) -> None:  # noqa: ARG001 - read by Group
    """Compile Hugging Face models into self-contained TorchScript files for CPU servers, and answer from them.

    \b
    cpuc compile bert-base-uncased-squad-v1 -o model.pt
    cpuc run model.pt --input q.json

    Exit codes: 0 success, 1 an error, 2 wrong usage, 3 the artifact does not agree with the original model,
    130 interrupted, 143 terminated.
    """
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, lambda received, _: sys.exit(128 + received))


@main.command("compile")
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option("--task", help="Such as question-answering. Default: what the model's configuration says.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="fp32, bf16, int8, int8-dynamic (the two with -fp32 for CPUs without bfloat16 instructions), or auto.",
)
@click.option("--calibrate", type=click.Path(path_type=Path), help="Records as 'run' takes them, to choose scales of int8 by.")
@click.option("--eval-data", type=click.Path(path_type=Path), help="For auto: labelled data as 'eval' takes it.")
@click.option("--max-drop", type=float, help="For auto: points that the score may drop.  [default: 0.5]")
@click.option("--revision", help="Branch, tag or commit of a model on the Hub.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--verify/--no-verify", default=True, help="Compare the artifact with the original model.")
@click.option("--allow-unlisted", is_flag=True, help="Try an architecture that is not listed; verification decides.")
@click.option("--tune", is_flag=True, help="Try several forms of the graph on this CPU, keep the fastest: some minutes more.")
@click.option("--tune-shapes", metavar="SHAPES", help="Tune for these, rows x length.  [default: 1x16,1x128,1x384]")
@click.option("--tune-seconds", type=float, help="Time for each form at each shape.  [default: 2]")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def compile_command(
    model: str,
    output: Path,
    precision: str,
    eval_data: Path | None,
    max_drop: float | None,
    verify: bool,
    tune: bool,
    tune_shapes: str | None,
    tune_seconds: float | None,
    as_json: bool,
    **shared: Any,
) -> None:
    """Compile MODEL into one bundle.

    MODEL is a local folder in Hugging Face layout, a Hub id, or a short name. Models on the Hub come through the usual
    cache; HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as everywhere.

    \b
    Examples:
      cpuc compile bert-base-uncased-squad-v1 -o model.pt
      cpuc compile ./my-model -o model.pt --precision int8 --calibrate questions.jsonl
      cpuc compile ./my-model -o model.pt --precision auto --eval-data dev.json --max-drop 0.5
      cpuc compile ./my-model -o model.pt --tune --tune-shapes 1x128,8x128
      cpuc compile deepset/roberta-base-squad2 --revision v1.0 -o model.pt --force
    """
    import cpuc
    from cpuc.runtime import summary

    shared["report"] = reporter()
    tuned = tune_shapes if tune_shapes is not None else tune
    if tune_seconds is not None and tuned is False:
        raise click.UsageError("--tune-seconds goes with --tune or --tune-shapes")
    if precision == "auto":
        if not verify:
            raise click.UsageError("--precision auto verifies always: leave out --no-verify")
        if tuned is not False:
            raise click.UsageError("--tune goes with one precision: see what auto chooses, then compile at that with --tune")
        shared |= {} if max_drop is None else {"max_drop": max_drop}
        choice = cpuc.choose(model, output, eval_data=eval_data, warn=warn, **shared)
        manifest, lines, more = choice.manifest, choice.describe(), {"choice": choice.to_json()}
    elif eval_data is not None or max_drop is not None:
        raise click.UsageError("--eval-data and --max-drop go with --precision auto")
    else:
        shared |= {"tune": tuned, "warn": warn} | ({} if tune_seconds is None else {"tune_seconds": tune_seconds})
        manifest = cpuc.compile(model, output, precision=precision, verify=verify, **shared)
        lines, more = [], {}
    lines += summary.compiled(manifest, str(output), output.stat().st_size)
    show({**manifest.to_dict(), **more} if as_json else lines, alone=False)


def _evaluated(task: str, option: str) -> bool:
    """Whether an evaluation leaves this option of this task to the user."""
    from cpuc.compiler.evaluation import EVALUATIONS

    return task in EVALUATIONS and option in EVALUATIONS[task].options


@main.command(cls=TaskOptions)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-i", "--input", "source", required=True, help="JSON, or JSON Lines; - is standard input.")
@click.option("-o", "--output", default="-", show_default=True, help="Where answers go; - is standard output.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--raw", is_flag=True, help="Named tensors in (.npz or JSON), the model's outputs out.")
@click.option("--streams", type=int, help="Batches side by side, each on its share of the CPUs.  [default: 1]")
@click.option("--trust", type=click.Path(path_type=Path), help="Answer only if the bundle is signed by this public key.")
@click.option("--check-digests/--no-check-digests", default=True, help="Compare the bundle with its SHA-256 digests first.")
def run(
    bundle: Path,
    source: str,
    output: str,
    force: bool,
    raw: bool,
    streams: int | None,
    trust: Path | None,
    check_digests: bool,
    **given: Any,
) -> None:
    """Answer the records in a file from BUNDLE.

    What a record is depends on the task: 'cpuc tasks' shows one of each. A record may have an "id", which its answer
    repeats. The output has the form of the input: one record, a list, or JSON Lines (one record on one line is both);
    SQuAD's own JSON gives a list. Offsets count Unicode characters of your text.

    \b
    Examples:
      cpuc run model.pt --input q.json
      cpuc run model.pt --input questions.jsonl --output answers.jsonl --top-k 3
      cpuc run model.pt --input many.jsonl --output answers.jsonl --streams 2
      echo '{"question": "Who?", "context": "Ada wrote it."}' | cpuc run model.pt --input -
      cpuc run ner.pt --input texts.json --aggregation-strategy simple
      cpuc run model.pt --raw --input tensors.npz --output logits.npz
    """
    from cpuc.runtime import load
    from cpuc.runtime.bundle import open_bundle
    from cpuc.runtime.engine import Engine
    from cpuc.runtime.errors import InputError
    from cpuc.runtime.files import check_output, name_of, read_input, write_output
    from cpuc.runtime.records import format_answers, parse_records
    from cpuc.runtime.tensors import format_tensors, parse_tensors

    options = {name: value for name, value in given.items() if value is not None}
    if raw and (without := [*options, *(["streams"] if streams is not None else [])]):
        raise InputError(f"--{without[0].replace('_', '-')} has no meaning with --raw")
    check_output(output, force=force)
    opened = open_bundle(bundle, trust=trust)  # a wrong bundle is told before standard input is waited for
    data = read_input(source)
    # Input that makes no sense is told before torch is imported, which takes seconds.
    if raw:
        tensors = parse_tensors(data, name_of(source), opened.manifest)
        result = format_tensors(Engine(opened, check_digests=check_digests).run(tensors), npz=output.endswith(".npz"))
    else:
        records = parse_records(data, name_of(source))
        model = load(bundle, trust=trust, check_digests=check_digests, warm_up=False, streams=1 if streams is None else streams)
        with bar(len(records.values)) as advance:
            result = format_answers(list(model.answers(records.values, records.names, options, advance)), records.form).encode()
    write_output(output, result, force=force)


@main.command("eval", cls=TaskOptions, wanted=_evaluated)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Labelled data: a file, or a folder of media.")
@click.option("--against", metavar="MODEL", help="The original model, to run beside the artifact, eager and in float32.")
@click.option("--revision", help="Branch, tag or commit of a MODEL on the Hub.")
@click.option("--limit", type=click.IntRange(1), help="Take so many samples from the beginning of the data.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def eval_command(
    bundle: Path, data: Path, against: str | None, revision: str | None, limit: int | None, as_json: bool, **given: Any
) -> None:
    """Score BUNDLE on labelled data, and compare it with the original model in the same run.

    The data has the form that is usual for the task: SQuAD's JSON, CoNLL columns, JSON Lines of texts, pairs or paths
    with their label or score, a folder with a subfolder for each label. Scores are in points, 100 is perfect; throughput
    counts tokenising and decoding.

    \b
    Examples:
      cpuc eval model.pt --data dev-v1.1.json
      cpuc eval model.pt --data dev-v2.0.json --against bert-base-uncased-squad-v1 --max-seq-length 384
      cpuc eval ner.pt --data test.conll --truncate --json
    """
    import cpuc
    from cpuc.compiler.evaluation.summary import describe

    with bar(None) as advance:
        evaluation = cpuc.evaluate(
            bundle, data, against=against, revision=revision, limit=limit, report=reporter(), progress=advance, **given
        )
    show(evaluation.to_json() if as_json else describe(evaluation))


@main.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--batch-size", type=int, multiple=True, default=[1], show_default=True, help="Rows in a call; repeatable.")
@click.option("--seq-len", type=int, multiple=True, help="Tokens, or samples of sound; repeatable.  [default: 16, 128, 384]")
@click.option("--against", metavar="MODEL", help="The original model, to run beside the artifact, eager and in float32.")
@click.option("--revision", help="Branch, tag or commit of a MODEL on the Hub.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Time for each batch size with each length.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw roofline and latencies to a PNG, SVG or PDF.")
@click.option("--force", is_flag=True, help="Replace the plot if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench_command(bundle: Path, as_json: bool, **given: Any) -> None:
    """Measure BUNDLE on this machine: latency, throughput, share of the machine's peak, time by operator.

    The peak is measured first, by multiplying matrices and by multiply-and-add instructions alone, in every precision
    that the CPU has. Inputs are random and without padding. The sizes take turns, as does the original model with
    --against, so that all of them meet the same states of the machine. Leave the machine alone meanwhile.

    \b
    Examples:
      cpuc bench model.pt
      cpuc bench model.pt --batch-size 1 --batch-size 8 --seq-len 128 --json
      cpuc bench model.pt --against bert-base-uncased-squad-v1 --plot model.png
    """
    import cpuc

    with bar(None, "measuring") as advance:
        benchmark = cpuc.bench(bundle, report=reporter(), progress=advance, **given)
    show(benchmark.to_json() if as_json else benchmark.describe(), alone=given.get("plot") is None)


@main.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--trust", type=click.Path(path_type=Path), help="A public key (PEM) that must have signed the bundle.")
@click.option("--against", metavar="MODEL", help="The original model: compare the artifact with it on this machine.")
@click.option("--revision", help="Branch, tag or commit of a MODEL on the Hub.")
@click.option("--json", "as_json", is_flag=True, help="Print what was checked as JSON.")
def verify_command(bundle: Path, trust: Path | None, against: str | None, revision: str | None, as_json: bool) -> None:
    """Check BUNDLE: its layout, manifest, digests and signature, offline and without running any of it.

    With --against the artifact is run too, and compared with the original as at the end of a compile; exit code 3 if they
    do not agree.

    \b
    Examples:
      cpuc verify model.pt
      cpuc verify model.pt --trust release.pub.pem
      cpuc verify model.pt --against bert-base-uncased-squad-v1 --json
    """
    import cpuc

    checked = cpuc.verify(bundle, trust=trust, against=against, revision=revision, report=reporter())
    show(checked.to_json() if as_json else checked.describe())


@main.command("sign")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="An Ed25519 private key in PEM form.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The signed bundle.  [default: BUNDLE is replaced]")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def sign_command(bundle: Path, key: Path, output: Path | None, force: bool) -> None:
    """Sign BUNDLE, so that 'run', 'verify' and 'load' can insist on where it comes from.

    The password of an encrypted key is taken from the environment variable CPUC_KEY_PASSWORD.

    \b
    Examples:
      openssl genpkey -algorithm ed25519 -out key.pem
      openssl pkey -in key.pem -pubout -out key.pub.pem
      cpuc sign model.pt --key key.pem
      cpuc run model.pt --trust key.pub.pem --input q.json
    """
    import cpuc

    password = os.environb.get(b"CPUC_KEY_PASSWORD") or None
    signed = cpuc.sign(bundle, cpuc.read_private_key(key, password), output, force=force)
    show([f"{output or bundle}: signed by {signed.signature and signed.signature.signer}"], alone=False)


@main.command("package")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--tar", is_flag=True, help="Write one file instead, OUTPUT with .tar at its end.")
@click.option("--trust", type=click.Path(path_type=Path), help="Package only if the bundle is signed by this public key.")
@click.option("--force", is_flag=True, help="Replace the output if it exists: a package, or with --tar a file.")
@click.option("--build-dir", type=click.Path(path_type=Path), help="Where to build the program.  [default: a cache]")
@click.option("--json", "as_json", is_flag=True, help="Print what is in the package as JSON.")
def package_command(
    bundle: Path, output: Path, tar: bool, trust: Path | None, force: bool, build_dir: Path | None, as_json: bool
) -> None:
    """Make a folder that answers from BUNDLE on any x86-64 Linux, without Python, torch or anything else installed.

    It holds the artifact, a program in C++, every library that it needs, a Dockerfile, checksums and licences. The program
    is built first, which takes a compiler and some minutes, once. Before the folder gets its name, the program is run in a
    root that holds nothing else, and its answer is compared with that of 'cpuc run'; exit code 3 if they do not agree.

    \b
    Examples:
      cpuc package model.pt -o dist/
      dist/bin/cpuc-run dist/model.pt --input dist/example.json
      cpuc package model.pt -o model-1.0.tar --tar --trust release.pub.pem
    """
    import cpuc

    shared: dict[str, Any] = {"report": reporter(), "warn": warn}
    packaged = cpuc.package(bundle, output, tar=tar, trust=trust, force=force, build_folder=build_dir, **shared)
    show(packaged.to_json() if as_json else packaged.describe(), alone=False)


@main.command("tasks")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def tasks_command(as_json: bool) -> None:
    """List the tasks: what each takes and gives, with an example.

    \b
    Examples:
      cpuc tasks
      cpuc tasks --json | jq '."fill-mask".example'
    """
    import dataclasses

    from cpuc.runtime import summary, tasks

    about = {name: dataclasses.asdict(tasks.task_module(name).ABOUT) for name in tasks.names()}
    show(about if as_json else summary.tasks())


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Print what BUNDLE says of itself, without loading the model.

    \b
    Examples:
      cpuc inspect model.pt
      cpuc inspect model.pt --json | jq .proof
    """
    from cpuc.runtime.bundle import open_bundle
    from cpuc.runtime.summary import describe

    opened = open_bundle(bundle)
    show(opened.manifest.to_dict() if as_json else describe(opened))


def program() -> None:
    """What the installed `cpuc` calls."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' own, of which a user of the command line can change nothing
    end_early(main)
