"""Tables with positions, as `predict` and `call` write them and as other programs read them."""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from Bio import SeqIO
from Bio.Data.CodonTable import standard_dna_table

from tests.runs import read_table
from virnucpro import CallConfig, PredictConfig, PredictResult, call, predict
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.errors import InputError, UsageError
from virnucpro.sequences.fasta import RecordReader

LENGTHS = {"contig": 30_000, "odd;id=1%": 1_435, "read": 400, "twin": 12_000, "empty": 0}
CLOSED = "odd;id=1%"
SENSE_CODONS = sorted(standard_dna_table.forward_table)
PROPHAGE = ("contig", 20, 40)
"""A record, and the numbers of its first viral chunk and of the first one after it, from 0."""


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("input") / "records.fq"
    with path.open("w") as file:
        for name, length in LENGTHS.items():
            # Without stop codons, so that every chunk has an open frame, and so a score.
            codons = generator.choices(SENSE_CODONS, k=length // 3 + 1)
            letters = "".join(codons)[:length]
            if name == CLOSED:
                letters = "".join(generator.choices("ACGTacgt", k=length))
            qualities = "".join(generator.choices("!@+5IJ", k=length))
            file.write(f"@{name} of length {length}\n{letters}\n+\n{qualities}\n")
    return path


@pytest.fixture(scope="module")
def config(records: Path, demo_weights, tmp_path_factory) -> PredictConfig:
    output_dir = tmp_path_factory.mktemp("runs") / "run"
    return PredictConfig(
        inputs=str(records), output_dir=output_dir, device="cpu", resume=True, **demo_weights
    )


@pytest.fixture(scope="module")
def predicted(config: PredictConfig) -> PredictResult:
    return predict(config)


@pytest.fixture(scope="module")
def with_prophage(predicted: PredictResult, tmp_path_factory) -> RunDirectory:
    """A run whose chunks have the scores of a prophage, and whose records `twin` is viral."""
    directory = tmp_path_factory.mktemp("copies") / "run"
    shutil.copytree(predicted.output_dir, directory)
    edit(directory / "chunks.tsv", score_chunk)
    edit(directory / "records.tsv", lambda row: "0.9" if row["record_id"] == "twin" else "0.2")
    return call(CallConfig(run_dir=directory, threshold=0.5, regions="provirus")).directory


def score_chunk(row: dict[str, str]) -> str:
    name, first, stop = PROPHAGE
    is_inside = row["record_id"] == name and first < int(row["chunk"]) <= stop
    return "0.95" if is_inside or row["record_id"] == "twin" else "0.05"


def edit(path: Path, score: Callable[[dict[str, str]], str]) -> None:
    """Give the lines of a table that have a score another one.

    Tables of earlier states have no evidence, and `call` makes it from the scores.
    """
    rows = read_table(path)
    for row in rows:
        row.pop("evidence", None)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"score": score(row) if row["score"] != "NA" else "NA"})


def test_every_chunk_has_its_place(predicted: PredictResult) -> None:
    rows = read_table(predicted.directory.chunks_tsv)
    assert " ".join(rows[0]) == (
        "record_id chunk start end num_frames score probability scored evidence"
    )
    places: dict[str, list[tuple[int, int]]] = {name: [] for name in LENGTHS}
    for row in rows:
        places[row["record_id"]].append((int(row["start"]), int(row["end"])))
        assert int(row["chunk"]) == len(places[row["record_id"]])
        assert (row["scored"] == "true") == (row["score"] != "NA") == (row["num_frames"] != "0")
    assert places[CLOSED] == [(0, 500), (478, 978), (956, 1435)]
    assert places["read"] == [(0, 400)]
    assert places["empty"] == []
    for name, spans in places.items():
        covered = 0
        for start, end in spans:
            assert start <= covered < end
            covered = end
        assert covered == LENGTHS[name]
    counts = {
        row["record_id"]: (int(row["num_chunks"]), int(row["num_open_chunks"]))
        for row in read_table(predicted.directory.records_tsv)
    }
    for name, spans in places.items():
        scored = sum(row["record_id"] == name and row["scored"] == "true" for row in rows)
        assert counts[name] == (len(spans), scored)


def test_a_prophage_is_a_region_and_a_viral_record_is_one(with_prophage: RunDirectory) -> None:
    provirus, virus = read_table(with_prophage.regions_tsv)
    assert provirus == {
        "record_id": "contig",
        "region": "1",
        "start": "10000",
        "end": "20000",
        "length": "10000",
        "record_length": "30000",
        "kind": "provirus",
        "reaches": "-",
        "num_open_chunks": "20",
        "score": "0.95",
        "probability": "NA",
        "record_number": "1",
    }
    records = read_table(with_prophage.records_tsv)
    assert records[int(virus["record_number"]) - 1]["record_id"] == "twin"
    assert [virus[name] for name in ("record_id", "start", "end", "kind", "reaches", "score")] == [
        *("twin", "0", "12000", "virus", "both", "0.9")
    ]
    assert json.loads(with_prophage.run_json.read_bytes())["counts"]["proviruses"] == 1


def test_sequences_of_regions(with_prophage: RunDirectory, records: Path) -> None:
    sequences = {record.id: record.sequence for record in RecordReader(records, "dna")}
    (provirus,) = RecordReader(with_prophage.proviruses_fasta, "dna")
    assert provirus.header == (
        "contig_region_1 record=contig start=10000 end=20000 score=0.95 probability=NA"
    )
    assert provirus.sequence == sequences["contig"][10_000:20_000]
    (virus,) = RecordReader(with_prophage.viral_fasta, "dna")
    assert virus.header == "twin of length 12000 score=0.9 probability=NA regions=0-12000"
    assert virus.sequence == sequences["twin"]


def test_call_keeps_the_files_of_the_run_unless_told_otherwise(
    with_prophage: RunDirectory, records: Path, tmp_path: Path
) -> None:
    shutil.copytree(with_prophage.path, tmp_path / "run")
    call(CallConfig(run_dir=tmp_path / "run", threshold=0.5, fastq=True))
    assert not (tmp_path / "run/proviruses.fasta").exists()
    (tmp_path / "run/viral.fastq").rename(tmp_path / "viral.fastq")
    read = next(each for each in SeqIO.parse(records, "fastq") if each.id == "twin")
    (found,) = SeqIO.parse(tmp_path / "viral.fastq", "fastq")
    assert (found.description, found.seq) == (read.description, read.seq)
    assert found.letter_annotations == read.letter_annotations
    call(CallConfig(run_dir=tmp_path / "run", threshold=0.5, regions="provirus"))
    assert (tmp_path / "run/proviruses.fasta").is_file()
    assert not (tmp_path / "run/viral.fastq").exists()


def test_predict_writes_the_viral_reads_with_their_qualities(
    config: PredictConfig, records: Path, predicted: PredictResult
) -> None:
    result = predict(replace(config, fastq=True, threshold=0.0))
    wanted = [each for each in SeqIO.parse(records, "fastq") if each.id not in ("empty", CLOSED)]
    found = list(SeqIO.parse(result.directory.viral_fastq, "fastq"))
    assert [(each.id, each.seq, each.letter_annotations) for each in found] == [
        (each.id, each.seq, each.letter_annotations) for each in wanted
    ]
    # `call` does as the run did.
    result.directory.viral_fastq.unlink()
    call(CallConfig(run_dir=result.output_dir, threshold=0.0))
    assert result.directory.viral_fastq.is_file()
    text = records.read_text()
    try:
        records.write_text(text.replace("@twin", "@other"))
        with pytest.raises(InputError, match=r"has other reads than in the run"):
            call(CallConfig(run_dir=result.output_dir, threshold=0.0))
    finally:
        records.write_text(text)
    predict(config)
    assert not result.directory.viral_fastq.exists()


def test_standard_input_cannot_be_read_again() -> None:
    with pytest.raises(UsageError, match="- can be read only once, as standard input or a pipe"):
        PredictConfig(inputs="-", output_dir="out", fastq=True)


def test_gff3_is_read_by_biopython(with_prophage: RunDirectory) -> None:
    gff = pytest.importorskip("BCBio.GFF")
    with with_prophage.regions_gff3.open() as file:
        found = [
            (record.id, feature.type, int(feature.location.start), int(feature.location.end))
            for record in gff.parse(file)
            for feature in record.features
        ]
    assert found == [
        ("contig", "proviral_region", 10_000, 20_000),
        ("twin", "viral_sequence", 0, 12_000),
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bedtools") is None, reason="bedtools is not installed")
def test_bedtools_reads_every_interval(
    with_prophage: RunDirectory, records: Path, tmp_path: Path
) -> None:
    def bedtools(*words: object) -> list[list[str]]:
        done = subprocess.run(
            ["bedtools", *map(str, words)], capture_output=True, text=True, check=True
        )
        assert "error" not in done.stderr.lower()
        return [line.split("\t") for line in done.stdout.splitlines()]

    genome, fasta, chunks = (tmp_path / name for name in ("lengths", "records.fa", "chunks.bed"))
    lengths = {name: length for name, length in LENGTHS.items() if length}
    genome.write_text("".join(f"{name}\t{length}\n" for name, length in lengths.items()))
    SeqIO.convert(records, "fastq", fasta, "fasta-2line")
    rows = read_table(with_prophage.chunks_tsv)
    chunks.write_text(
        "".join(f"{row['record_id']}\t{row['start']}\t{row['end']}\n" for row in rows)
    )
    # The union of the chunks covers each record, and no interval reaches beyond its record.
    merged = bedtools("merge", "-i", chunks)
    assert merged == [[name, "0", str(length)] for name, length in lengths.items()]
    for path in (with_prophage.regions_bed, with_prophage.scores_bedgraph, chunks):
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        assert lines
        # `slop` cuts what lies beyond the end.
        assert bedtools("slop", "-b", 0, "-i", path, "-g", genome) == lines
        assert bedtools("sort", "-i", path, "-g", genome) == lines
    graph = with_prophage.scores_bedgraph
    assert all(row[-1] == "1" for row in bedtools("genomecov", "-i", graph, "-g", genome, "-bg"))
    scored = {row["record_id"] for row in rows if row["scored"] == "true"}
    assert {row[0] for row in bedtools("intersect", "-u", "-a", chunks, "-b", graph)} == scored
    both = bedtools(
        *("intersect", "-wa", "-a", with_prophage.regions_bed, "-b", with_prophage.regions_gff3)
    )
    assert [row[3] for row in both] == ["contig_region_1", "twin_region_1"]
    cut = bedtools("getfasta", "-fi", fasta, "-bed", with_prophage.regions_bed, "-nameOnly")
    (provirus,) = RecordReader(with_prophage.proviruses_fasta, "dna")
    assert cut[:2] == [[f">{provirus.id}"], [provirus.sequence]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pyGenomeTracks") is None, reason="it is not installed")
def test_pygenometracks_draws_scores_and_regions(
    with_prophage: RunDirectory, tmp_path: Path
) -> None:
    tracks, picture = tmp_path / "tracks.ini", tmp_path / "contig.png"
    tracks.write_text(
        f"[scores]\nfile = {with_prophage.scores_bedgraph}\nmin_value = 0\nmax_value = 1\n"
        f"[regions]\nfile = {with_prophage.regions_bed}\n[x-axis]\n"
    )
    command = ["pyGenomeTracks", "--tracks", tracks, "--region", "contig:0-30000", "-o", picture]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    # It warns of a track in which it finds nothing.
    assert "No interval" not in done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("samtools") is None, reason="samtools is not installed")
def test_samtools_indexes_the_sequences(with_prophage: RunDirectory, tmp_path: Path) -> None:
    for path in (with_prophage.viral_fasta, with_prophage.proviruses_fasta):
        copy = Path(shutil.copy(path, tmp_path))
        subprocess.run(["samtools", "faidx", copy], check=True)
        (record,) = RecordReader(path, "dna")
        index = copy.with_name(f"{copy.name}.fai").read_text().split("\t")
        assert index[:2] == [record.id, str(len(record.sequence))]
