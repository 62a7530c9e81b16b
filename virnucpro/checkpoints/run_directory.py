"""The names of the files in a run's output directory, which nobody else needs to know."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.errors import OutputError, UsageError, name_few

METRICS_NAME = "metrics.jsonl"
"""Of the file in a run's directory that tells how it goes; docs/monitoring.md describes it."""

# What a run writes before it has computed anything: it must not stand in the way of the next.
_WORTHLESS = re.compile(rf"\.lock(\.holder)?|\.launch|run\.log|{re.escape(METRICS_NAME)}")


def staged_dir(directory: Path) -> Path:
    """Return where a new store is built, before it takes the place of the one in `directory`."""
    return directory.with_name(f"{directory.name}.new")


class _Named:
    """A path in a run's directory by its name, behind the run's prefix."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: Any, _owner: object) -> Path:
        directory: Path = run.path
        return directory / (f"{run.prefix}_{self._name}" if run.prefix else self._name)


class _OwnFiles:
    """The files by which each run tells of itself, and keeps others away."""

    __slots__ = ()

    run_log = _Named("run.log")
    """The run's messages."""

    metrics_path = _Named(METRICS_NAME)
    """What each process did, every few seconds."""

    lock_path = _Named(".lock")
    """The file that a run keeps locked, so that no second run writes here meanwhile."""

    launch_path = _Named(".launch")
    """The file by which the machines of a launch see that they share the directory."""


@dataclass(frozen=True, slots=True)
class RunDirectory(_OwnFiles):
    """The paths of the files of a run.

    The names of the tables and of the intermediate files are those of the optimized fork, so that
    programs which read its output keep working.

    Attributes:
        path: The directory itself; it may hold other files as well.
        stem: The input's name without its endings.
        prefix: What the names of all files begin with, and `_`; empty for names without it. So runs
            with different prefixes can share a directory.
    """

    path: Path
    stem: str
    prefix: str = ""

    @property
    def output_path(self) -> Path:
        """What users call the run: its directory, or `directory/prefix`."""
        return self.path / self.prefix

    @property
    def merged_dir(self) -> Path:
        """The directory of the two legacy tables."""
        return self.path / f"{self.stem}_merged"

    @property
    def prediction_results(self) -> Path:
        """The table of frames."""
        return self.merged_dir / "prediction_results.txt"

    @property
    def highest_scores(self) -> Path:
        """The table of chunks (tab-separated despite its name)."""
        return self.merged_dir / "prediction_results_highestscore.csv"

    records_tsv = _Named("records.tsv")
    """The table of input records."""

    chunks_tsv = _Named("chunks.tsv")
    """The table of chunks."""

    scores_bedgraph = _Named("scores.bedgraph")
    """The scores of the chunks along the records."""

    regions_tsv = _Named("viral_regions.tsv")
    """The table of viral regions."""

    regions_bed = _Named("viral_regions.bed")
    """The viral regions as BED."""

    regions_gff3 = _Named("viral_regions.gff3")
    """The viral regions as GFF3."""

    viral_fasta = _Named("viral.fasta")
    """The records that were called viral."""

    viral_fastq = _Named("viral.fastq")
    """The viral reads of FASTQ inputs, with their qualities."""

    proviruses_fasta = _Named("proviruses.fasta")
    """The viral regions of records that were not called viral."""

    evaluation_dir = _Named("evaluation")
    """The directory in which `evaluate` writes its report unless told otherwise."""

    report_html = _Named("report.html")
    """The page that shows the run."""

    run_json = _Named("run.json")
    """What was run, on what, and how it went."""

    checkpoints_dir = _Named("checkpoints")
    """The directory of the frame store and of the parts, or a link to it."""

    def place_checkpoints(self, target: Path | None, *, dry_run: bool = False) -> None:
        """Keep the checkpoints in `target`, or where they are if it is None.

        The processes of a launch may do this at once. With `dry_run`, only look whether it can be.

        Raises:
            OutputError: The link cannot be made.
            UsageError: The run's directory already holds checkpoints elsewhere, or a link to
                checkpoints that are gone; or `target` is the run's directory.
        """
        link = self.checkpoints_dir
        leads_nowhere = self.has_lost_checkpoints()
        if target is None:
            if leads_nowhere:
                raise UsageError(
                    f"{link}: is a link to {link.readlink()}, which is not there; say where the "
                    "checkpoints are now (--checkpoint-dir), or remove the link to start again"
                )
            return
        # Runs of earlier states may have such a link, and go on.
        if target.resolve() == self.path.resolve() != link.resolve():
            raise UsageError(
                f"{target}: is the output directory itself; leave out --checkpoint-dir, or name "
                "another directory for the checkpoints"
            )
        if not dry_run:
            self._link_checkpoints(target, replace=leads_nowhere)
        # Also true if real checkpoints lie here, which a link must not hide.
        if link.exists() and link.resolve() != target.resolve():
            raise UsageError(
                f"{link}: holds the checkpoints of this run already, wanted {target}; leave out "
                "--checkpoint-dir, or choose another output directory (-o)"
            )

    def _link_checkpoints(self, target: Path, *, replace: bool) -> None:
        link = self.checkpoints_dir
        try:
            target.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            if replace:
                # In one step: another process of the launch may have made the new link by now.
                # Not by process number: in containers, those of two machines are often equal.
                new_link = link.with_name(f".{link.name}.{uuid.uuid4().hex}")
                new_link.symlink_to(target.resolve(), target_is_directory=True)
                new_link.replace(link)
            # Another process of the launch was first. Below we see whether it made the same link.
            with suppress(FileExistsError):
                # A link and no setting, so that every later command finds the checkpoints.
                link.symlink_to(target.resolve(), target_is_directory=True)
        except OSError as error:
            raise OutputError(
                f"{link}: cannot be made a link to {target} ({error.strerror}); choose another "
                "output directory (-o)"
            ) from error

    @property
    def checkpoints_lock_paths(self) -> list[Path]:
        """The locks of checkpoints elsewhere: other runs may link there, or one has them itself."""
        link = self.checkpoints_dir
        if not link.is_symlink():
            return []
        place = link.resolve()
        other = place.parent / self.lock_path.name
        locks = [place / self.lock_path.name, *([other] if other.exists() else [])]
        # In runs of earlier states, the link may lead to the run's own directory.
        return [path for path in locks if path != self.lock_path.resolve()]

    def has_lost_checkpoints(self) -> bool:
        """Tell whether the directory of the checkpoints is a link to one that is not there."""
        # Unlike `Path.exists`, this is False, too, if the server of the file is away.
        link = self.checkpoints_dir
        return link.is_symlink() and not os.path.exists(link)  # noqa: PTH110

    _former_screen_dir = _Named("screen")

    @property
    def screen(self) -> RunDirectory:
        """The screen, a small prediction of its own, whose files all are checkpoints of the run."""
        present, former = self._screens()
        # A run of an earlier state goes on in the place where it began.
        return former if former.checkpoints_dir.is_dir() else present

    def _screens(self) -> tuple[RunDirectory, RunDirectory]:
        """Return where a screen is, and where it was in earlier states."""
        present = RunDirectory(self.checkpoints_dir / "screen", self.stem)
        return present, RunDirectory(self._former_screen_dir, self.stem)

    @property
    def frame_store_dir(self) -> Path:
        """The directory of the frame store; everything in it is the run's."""
        return self.checkpoints_dir / "frames"

    @property
    def finetuning_dir(self) -> Path:
        """The directory of a fine-tuning's state and sequences; everything in it is the run's."""
        return self.checkpoints_dir / "finetuning"

    def parts_dir(self, alphabet: Alphabet) -> Path:
        """Return the directory of the parts with the embeddings of one alphabet."""
        return self.checkpoints_dir / alphabet

    def chunked_fasta(self, chunk_length_bp: int) -> Path:
        """Return the intermediate file of chunks."""
        return self.path / f"{self.stem}_chunked{chunk_length_bp}.fa"

    def frames_fasta(self, alphabet: Alphabet) -> Path:
        """Return the intermediate file with the DNA or the proteins of all open frames."""
        name = self.split_dir(alphabet).name
        return self.path / f"{name}.{'fa' if alphabet == 'dna' else 'faa'}"

    def split_dir(self, alphabet: Alphabet) -> Path:
        """Return the directory of the same in lots."""
        return self.path / f"{self.stem}_{'nucleotide' if alphabet == 'dna' else 'protein'}"

    def split_fasta(self, alphabet: Alphabet, number: int) -> Path:
        """Return the intermediate file with the `number`-th lot of open frames."""
        return self.split_dir(alphabet) / f"output_{number}.fa"

    def is_run(self) -> bool:
        """Tell whether a run, finished or not, has been here."""
        return self.run_json.is_file() or self.frame_store_dir.is_dir()

    def is_used(self) -> bool:
        """Tell whether the directory holds more than a run leaves that has computed nothing."""
        if self.prefix:
            # Runs with other prefixes may be in the same directory, so only our own files count.
            worthless = {self.run_log, self.metrics_path}
            return any(path not in worthless and path.exists() for path in self._run_files())
        # Resolved, because the checkpoints may lie elsewhere. All of them, so that a store is
        # recognized under a relative path, too.
        stores = {run.frame_store_dir.resolve() for run in (self, self.screen)}
        return _hold_work({self.path.resolve(), self.checkpoints_dir.resolve()}, stores)

    def owns(self, path: Path) -> bool:
        """Tell whether `path` is a file that a run of this layout writes, and `clear` removes."""
        # An input may be given by another path, or by a link, and still be the same file.
        path = path.resolve()
        files = {file.resolve() for file in self._run_files()}
        return path in files or any(
            path.is_relative_to(store.resolve()) for store in self._stores()
        )

    def clear(self) -> None:
        """Remove what a run of this layout writes, and directories that are empty then.

        Anything else in the directory stays; so does the lock, which the caller may be holding.
        """
        for screen in self._screens():
            if screen.path.is_dir():
                screen.clear()
        # A list, because removing files while a directory is read may skip some.
        for path in list(self._run_files()):
            path.unlink(missing_ok=True)
        for store in self._stores():
            if store.is_dir():
                # Only these are removed as wholes: nobody but a run writes into them.
                shutil.rmtree(store)
        for directory in (
            self.merged_dir,
            *map(self.split_dir, ALPHABETS),
            *map(self.parts_dir, ALPHABETS),
            *(screen.path for screen in self._screens()),
            self.checkpoints_dir,
        ):
            # It may be missing or a link, or have somebody else's files in it.
            with suppress(OSError):
                directory.rmdir()

    def _stores(self) -> tuple[Path, ...]:
        return self.frame_store_dir, staged_dir(self.frame_store_dir), self.finetuning_dir

    def _run_files(self) -> Iterator[Path]:
        yield from (self.prediction_results, self.highest_scores)
        yield from (self.records_tsv, self.viral_fasta, self.report_html)
        yield from (self.run_json, self.run_log)
        yield from (self.chunks_tsv, self.scores_bedgraph, self.viral_fastq, self.proviruses_fasta)
        yield from (self.regions_tsv, self.regions_bed, self.regions_gff3)
        yield from (self.metrics_path, *map(self.frames_fasta, ALPHABETS))
        yield from _matching(self.path, rf"{re.escape(self.stem)}_chunked\d+\.fa")
        for alphabet in ALPHABETS:
            yield from _matching(self.split_dir(alphabet), r"output_\d+\.fa")
            directory = self.parts_dir(alphabet)
            # Temporary files, marks and damaged parts, too; but no file of another name.
            yield from _matching(directory, r"\.?part-\d{5}-\d{6}\.h5.*")


def find_run(path: Path) -> RunDirectory:
    """Return the run that a user names: by its directory, or by `directory/prefix`."""
    prefixed = RunDirectory(path.parent, path.name, path.name)
    # A run that was killed has no run.json yet, but it has metrics.
    is_prefixed = prefixed.run_json.is_file() or prefixed.metrics_path.is_file()
    if path.name and not path.is_dir() and is_prefixed:
        return prefixed
    # The stem is in no file. Only the legacy tables are named after it.
    found = sorted(path.glob("*_merged/prediction_results.txt"))
    return RunDirectory(path, found[0].parent.name.removesuffix("_merged") if found else "")


def suggest_runs(path: Path) -> str:
    """Return which runs a user may mean by `path`, which is no run itself; often empty."""
    directory = path if path.is_dir() else path.parent
    # A file of a run, or the directory of runs with prefixes.
    runs = [f"{directory}"] if path.is_file() and (directory / "run.json").is_file() else []
    runs += sorted(f"{found}".removesuffix("_run.json") for found in directory.glob("?*_run.json"))
    return f"; did you mean {name_few(runs)}?" if runs else ""


def _hold_work(directories: Set[Path], stores: Set[Path]) -> bool:
    """Tell whether there is a file besides log, metrics and locks, and the stores of the input."""
    worthless = stores | {staged_dir(store) for store in stores}
    return any(
        not path.is_dir()
        and worthless.isdisjoint(path.parents)
        # One directory may lie in the other.
        and not (path.parent in directories and _WORTHLESS.fullmatch(path.name))
        for directory in directories
        for path in directory.rglob("*")
    )


def _matching(directory: Path, pattern: str) -> Iterator[Path]:
    if directory.is_dir():
        yield from (path for path in directory.iterdir() if re.fullmatch(pattern, path.name))


@dataclass(frozen=True, slots=True)
class EmbedDirectory(_OwnFiles):
    """The paths of the files of `embed`, which keeps parts until the embeddings file is whole.

    Attributes:
        output_path: The embeddings file.
    """

    output_path: Path

    @property
    def path(self) -> Path:
        """The directory, which also holds the parts."""
        return self.output_path.with_name(f"{self.output_path.name}.parts")

    records_dir = _Named("records")
    """The directory of the record store."""

    # The directory is of one run, so the names need no prefix. The parts lie in it.
    prefix = ""
    checkpoints_lock_paths: ClassVar[list[Path]] = []

    def is_used(self) -> bool:
        """Tell whether there is an output, or more than a run leaves that has computed nothing."""
        return self.output_path.exists() or _hold_work({self.path}, {self.records_dir})

    def owns(self, path: Path) -> bool:
        """Tell whether `path` is the output, or its mark."""
        mark = self.output_path.with_name(f"{self.output_path.name}.done")
        return path.resolve() in (self.output_path.resolve(), mark.resolve())

    def clear(self) -> None:
        """Remove everything but the files of the lock, which the caller may be holding."""
        # Everything: `embed` made this directory for itself.
        for path in list(self.path.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            # Where the file system has no locks, `.lock.holder` stands for it.
            elif not path.name.startswith(self.lock_path.name):
                path.unlink()
