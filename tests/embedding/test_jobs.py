"""What a job says of the rows that it embeds."""

from pathlib import Path

import numpy as np
import pytest

from tests.runs import write_reads
from virnucpro import PredictConfig
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import OPEN_RULE, FrameRule
from virnucpro.embedding.jobs import make_frame_jobs
from virnucpro.embedding.models import open_model
from virnucpro.embedding.passes import Pass
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store


@pytest.mark.parametrize("rule", [OPEN_RULE, FrameRule("stretches"), FrameRule("open", 2, 20, 4)])
def test_the_identity_has_the_rule_of_the_frame_store(
    rule: FrameRule, demo_weights: dict[str, str], tmp_path: Path
) -> None:
    reads = write_reads(tmp_path / "reads.fa", 10)
    config = PredictConfig(inputs=[str(reads)], output_dir=tmp_path / "out", **demo_weights)
    directory = RunDirectory(config.resolved_output_dir, config.stem)
    store = build_frame_store(
        [str(reads)], directory.frame_store_dir, StoreSettings(300, rule=rule)
    )
    model = open_model("dnabert-s", demo_weights["dna_weights"])
    [job] = make_frame_jobs(config, directory, store, [model], "fp32")
    assert job.identity.frame_rule == str(rule)
    # A chunk's DNA is embedded once, however many stretches the chunk has.
    if rule.kind == "stretches":
        chunks = store.chunk_sequences(0, store.num_chunks)
        assert len(job.rows) == len({chunks[index] for index in store.find_chunks(job.rows)})
        assert len(job.rows) <= np.count_nonzero(np.diff(store.chunk_first_frame))
        assert len(job.rows) < store.num_rows


def test_for_a_chosen_copy_the_first_of_its_equals_is_embedded(
    demo_weights: dict[str, str], tmp_path: Path
) -> None:
    """As after a screen, which may leave out the record with the first of two equal frames."""
    path = tmp_path / "in.fa"
    path.write_text("".join(f">r{number}\n{'ACG' * 40}\n" for number in range(3)))
    config = PredictConfig(inputs=[str(path)], output_dir=tmp_path / "out", **demo_weights)
    directory = RunDirectory(config.resolved_output_dir, config.stem)
    store = build_frame_store([str(path)], directory.frame_store_dir, StoreSettings(300))
    model = open_model("dnabert-s", demo_weights["dna_weights"])
    num_rows = store.num_rows // 3
    rows = np.arange(num_rows, store.num_rows)
    [job] = make_frame_jobs(config, directory, store, [model], "fp32", rows)
    [first] = make_frame_jobs(config, directory, store, [model], "fp32")
    assert job.rows.tolist() == first.rows.tolist()
    assert first.rows.max() < num_rows
    assert Pass(job, [], []).has(rows).all()
