"""Damages files of every kind, runs commands that read them, and says how each of them ended.

Nothing may be silent (a wrong result without a word), crash or hang.

    python -m tests.robustness.break_files --attempts 500
    python -m tests.robustness.break_files --kinds parts weights --attempts 1 --first-seed 77
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.finetuned import make_changes, write_finetuned
from tests.robustness.children import Ending, limit_memory, start, wait
from tests.robustness.inputs import INPUTS, parse_plainly, write_inputs
from tests.robustness.mutations import mutate
from tests.runs import predict_options, read_tables, write_reads
from tools.make_demo_weights import DNA_DIM, make_demo_weights
from tools.make_dnabert_s_weights import make_config, write_weights
from virnucpro.config import PredictConfig
from virnucpro.config.settings_file import command_keys, read_settings
from virnucpro.errors import VirnucproError
from virnucpro.sequences.fasta import RecordReader

FAULTS = ("silent", "crashed", "hung")
SECONDS = 120.0
MEMORY_BYTES = 4 << 30
VERDICTS = ("right", "told", "refused", *FAULTS)
"""right: the result is the same. told: it differs, and the output says of which other file it is.
refused: an error of ours. The others are faults."""


@dataclass(frozen=True)
class Kind:
    """A kind of file to damage.

    Attributes:
        find: Returns the files below a copy of the prepared directory.
        form: How `mutate` changes them.
        work: Returns the command line, or a function, that reads them.
        judge: Returns the verdict for a child that ended with exit code 0.
    """

    find: Callable[[Path], Sequence[Path]]
    work: Callable[[Path, Path], Sequence[str] | Callable[[], None]]
    judge: Callable[[Path, Path, Ending], str]
    form: Callable[[Path], str] = lambda path: "bytes"


def prepare(directory: Path) -> None:
    """Write everything that a run reads, and what it leaves."""
    write_reads(directory / "reads.fa", 14)
    weights = make_demo_weights(directory / "w")
    write_weights(directory / "w2", make_config(width=DNA_DIM, num_heads=6), safetensors=True)
    _write_published_classifier(Path(weights["model_path"]), directory / "w/500_model.pth")
    write_inputs(directory / "inputs")
    (directory / "settings.yaml").write_text(SETTINGS)
    tuned = write_finetuned(weights, directory / "w/tuned.safetensors", make_changes(0))
    for output, settings in (("out", {}), ("tuned", tuned)):
        _run(directory, _predict(directory, output, **settings))


SETTINGS = """\
predict:
  chunk-length-bp: 300
  min-length-bp: 40
  threshold: 0.7
  precision: fp32
  gpus: "0,1"
  pin-memory: true
  dna-weights: w/dnabert_s
  attention: sdpa
  compile: off
  resume: true
  dataloader-workers: 2
train:
  viral: [a.fa, b.fa]
  other:
    - c.fa
    - d.fa
  valid-share: 0.2
checkpoints:
  show: {json: true}
"""


def _write_published_classifier(source: Path, target: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(source), target)


def _predict(directory: Path, output: str, **settings: str) -> list[str]:
    weights = {
        "dna_weights": f"{directory}/w/dnabert_s",
        "protein_weights": f"{directory}/w/esm2.pt",
        "model_path": f"{directory}/w/500_model.safetensors",
    } | settings
    return ["predict", f"{directory}/reads.fa", "-o", output, *predict_options(weights)]


def _run(directory: Path, work: Sequence[str] | Callable[[], None]) -> Ending:
    output = directory / "said.txt"
    return wait(start(work, output, directory=directory), output, SECONDS)


# Verdicts


def _judge_tables(directory: Path, wanted: Path, ending: Ending) -> str:
    same = read_tables(directory / "out") == read_tables(wanted / "out")
    return "right" if same else "silent"


def _judge_other_models(directory: Path, wanted: Path, ending: Ending, run: str = "out") -> str:
    """A file without a checksum may be another model, and then run.json names another identity."""
    if read_tables(directory / run) == read_tables(wanted / run):
        return "right"
    identities = [_identities(each / run / "run.json") for each in (directory, wanted)]
    return "silent" if identities[0] == identities[1] else "told"


def _identities(path: Path) -> list[str]:
    """Return every digest in a run.json but those of the input."""
    run = json.loads(path.read_text())
    return [text for name in ("backends", "models", "classifier") for text in _texts(run.get(name))]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from _texts(each)
    if isinstance(value, str) and "sha256:" in value:
        yield value


def _judge_monitor(directory: Path, wanted: Path, ending: Ending) -> str:
    controls = [letter for letter in ending.output if not letter.isprintable() and letter != "\n"]
    return "silent" if controls else "right"


def _judge_settings(directory: Path, wanted: Path, ending: Ending) -> str:
    """Compare with what YAML itself says of each option."""
    found = json.loads((directory / "found.json").read_text())
    keys = command_keys()
    plain: dict[str, Any] = {}

    def walk(section: dict[Any, Any], prefix: str) -> None:
        for name, value in section.items():
            path = f"{prefix}{name}".replace("_", "-")
            key = keys.get(path)
            if key is not None and value is not None:
                plain[key.target] = json.loads(json.dumps(key.convert(value), default=str))
            elif isinstance(value, dict):
                walk(value, f"{path}.")

    walk(yaml.safe_load((directory / "settings.yaml").read_text()) or {}, "")
    return "right" if plain == found else "silent"


def _judge_records(directory: Path, wanted: Path, ending: Ending) -> str:
    """Compare with what a plain parser finds, or with the records before the damage."""
    path = directory / (directory / "damaged.txt").read_text()
    found = (directory / "found.json").read_text()
    plain = directory / "plain.json"
    for each in (path, wanted / path.relative_to(directory)):
        plain.unlink(missing_ok=True)
        # In a child, because the libraries may crash.
        _run(directory, lambda each=each: _write(plain, parse_plainly(each)))  # type: ignore[misc]
        if plain.exists() and found == plain.read_text():
            return "right"
    return "told" if "Warning: " in ending.output else "silent"


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))


# What reads them


def _read_records(path: Path, directory: Path) -> None:
    (directory / "damaged.txt").write_text(str(path))
    with _explained():
        records = [[each.header, each.sequence] for each in RecordReader(path, "dna")]
    _write(directory / "found.json", records)


def _read_settings(path: Path, directory: Path) -> None:
    with _explained():
        found = read_settings(path, command_keys())
        fields = {name.removeprefix("predict."): value for name, value in found.items()}
        names = PredictConfig.__dataclass_fields__
        PredictConfig(
            **{"inputs": ("reads.fa",), "model_path": "p"}
            | {name: fields[name] for name in fields if name in names}
        )
    (directory / "found.json").write_text(json.dumps(found, default=str))


class _explained:  # noqa: N801 (reads as a word)
    """Ends a child as the command line would: by an error of ours, or by a traceback."""

    def __enter__(self) -> None:
        from virnucpro.runtime.logs import set_up_logging

        set_up_logging()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, VirnucproError):
            print(f"Error: {error}")  # noqa: T201
            raise SystemExit(1) from error


def _below(*patterns: str) -> Callable[[Path], list[Path]]:
    def find(directory: Path) -> list[Path]:
        found = {path for pattern in patterns for path in directory.glob(pattern)}
        return sorted(path for path in found if path.is_file())

    return find


def _resume(path: Path, directory: Path) -> list[str]:
    return [*_predict(directory, "out"), "--resume"]


def _inputs(*patterns: str) -> Kind:
    return Kind(
        _below(*patterns),
        lambda path, directory: lambda: _read_records(path, directory),
        _judge_records,
    )


def _monitor(path: Path, directory: Path) -> list[str]:
    is_odd = path.exists() and path.stat().st_size % 2
    return ["monitor", "out", "--once" if is_odd else "--json"]


KINDS = {
    "parts": Kind(
        _below("out/checkpoints/dna/*", "out/checkpoints/protein/*"), _resume, _judge_tables
    ),
    "store": Kind(
        _below("out/checkpoints/frames/*"),
        _resume,
        _judge_tables,
        lambda path: "json" if path.suffix == ".json" else "bytes",
    ),
    "weights": Kind(
        _below("w/esm2.pt", "w/dnabert_s/*.bin"),
        lambda path, directory: [*_predict(directory, "out"), "--force"],
        _judge_tables,
    ),
    "safetensors": Kind(
        _below("w2/*.safetensors"),
        lambda path, directory: [
            *_predict(directory, "out", dna_weights=f"{directory}/w2"),
            "--force",
        ],
        _judge_other_models,
    ),
    "configs": Kind(
        _below("w/dnabert_s/*.json"),
        lambda path, directory: [*_predict(directory, "out"), "--force"],
        _judge_other_models,
        lambda path: "json",
    ),
    "classifier": Kind(
        _below("w/500_model.pth", "w/500_model.safetensors"),
        lambda path, directory: [*_predict(directory, "out", model_path=str(path)), "--resume"],
        _judge_other_models,
    ),
    "adapters": Kind(
        _below("w/tuned.safetensors"),
        lambda path, directory: [*_predict(directory, "tuned", model_path=str(path)), "--force"],
        lambda *told: _judge_other_models(*told, run="tuned"),
    ),
    "yaml": Kind(
        _below("settings.yaml"),
        lambda path, directory: lambda: _read_settings(path, directory),
        _judge_settings,
        lambda path: "yaml",
    ),
    "metrics": Kind(_below("out/metrics.jsonl"), _monitor, _judge_monitor, lambda path: "lines"),
    **{name: _inputs(pattern) for name, pattern in INPUTS.items()},
}


@dataclass(frozen=True)
class Attempt:
    """One damaged file, and what became of it."""

    seed: int
    name: str
    verdict: str
    ending: Ending


def attempt(kind: Kind, prepared: Path, scratch: Path, seed: int | None) -> Attempt:
    """Damage one file of a fresh copy, and let the command read it; without a seed, damage none."""
    directory = Path(shutil.copytree(prepared, scratch / "copy"))
    try:
        path = random.Random(seed).choice(kind.find(directory))
        if seed is not None:
            _change(kind, path, seed)
        ending = _run(directory, kind.work(path, directory))
        if ending.exit_code is None:
            verdict = "hung"
        elif ending.is_crash:
            verdict = "crashed"
        else:
            verdict = "refused" if ending.exit_code else kind.judge(directory, prepared, ending)
        return Attempt(seed or 0, str(path.relative_to(directory)), verdict, ending)
    finally:
        shutil.rmtree(directory)


def _change(kind: Kind, path: Path, seed: int) -> None:
    """Change the content of a file; one in twenty is lost, empty, or another file of its kind."""
    others = [other for other in path.parent.iterdir() if other != path and other.is_file()]
    match seed % 60:
        case 7:
            path.unlink()
        case 27:
            path.write_bytes(b"")
        case 47 if others:
            shutil.copy(random.Random(seed).choice(sorted(others)), path)
        case _:
            path.write_bytes(mutate(path.read_bytes(), seed, kind.form(path)))


def break_files(
    names: Sequence[str], seeds: Sequence[int], report: Callable[[str, Attempt], None]
) -> Iterator[tuple[str, list[Attempt]]]:
    """Yield each kind with its attempts, and hand each to `report` as soon as it is done."""
    # Nothing here has to survive a crash of the machine, so that memory is as good as a disk.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        prepared = Path(scratch, "prepared")
        prepared.mkdir()
        prepare(prepared)
        for name in names:
            found = []
            undamaged = attempt(KINDS[name], prepared, Path(scratch), None)
            assert undamaged.verdict == "right", undamaged
            for seed in seeds:
                done = attempt(KINDS[name], prepared, Path(scratch), seed)
                found.append(done)
                report(name, done)
            yield name, found


def main() -> None:
    """Do what the command line asks for, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--attempts", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    limit_memory(MEMORY_BYTES)

    def report(name: str, done: Attempt) -> None:
        if done.verdict in FAULTS or args.attempts == 1:
            text = done.ending.output[-1_500:]
            print(f"{name} {done.seed} {done.name}: {done.verdict}\n{text}\n", flush=True)  # noqa: T201

    seeds = range(args.first_seed, args.first_seed + args.attempts)
    print(f"{'kind':12}", *(f"{verdict:>8}" for verdict in VERDICTS), "slowest s", "most MiB")  # noqa: T201
    num_faults = 0
    for name, attempts in break_files(args.kinds, seeds, report):
        counts = Counter(done.verdict for done in attempts)
        slowest = max(done.ending.seconds for done in attempts)
        peak = max(done.ending.peak_bytes for done in attempts) >> 20
        numbers = (f"{counts[verdict]:8}" for verdict in VERDICTS)
        num_faults += sum(counts[verdict] for verdict in FAULTS)
        print(f"{name:12}", *numbers, f"{slowest:9.1f}", f"{peak:8}", flush=True)  # noqa: T201
    sys.exit(num_faults > 0)


if __name__ == "__main__":
    main()
