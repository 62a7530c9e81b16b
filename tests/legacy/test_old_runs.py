from __future__ import annotations

from tests import legacy_files as old
from virnucpro.legacy.old_runs import feature_files, read_expected_length


def test_files_of_features_in_their_natural_order_and_none_of_ours(tmp_path):
    for number in (10, 9, 1):
        old.save(tmp_path / f"s_nucleotide/output_{number}_DNABERT_S.pt", {}, done=True)
    old.write_fasta(tmp_path / "s_nucleotide/output_1.fa", {"a": "ACG"})
    old.write_shard(tmp_path / "esm_v2/shard_20.h5", old.make_frames(2, 4, seed=1))
    (tmp_path / "checkpoints/dna").mkdir(parents=True)
    (tmp_path / "checkpoints/dna/part-00000-000000.h5").touch()
    names = [path.name for path in feature_files(tmp_path)]
    assert names == ["shard_20.h5"] + [f"output_{number}_DNABERT_S.pt" for number in (1, 9, 10)]


def test_the_chunk_length_of_an_old_run(tmp_path):
    assert read_expected_length(tmp_path) is None
    old.write_state(tmp_path, ["completed"], 300)
    assert read_expected_length(tmp_path) == 300
    (tmp_path / ".checkpoints/pipeline_state.json").write_text("[]")
    assert read_expected_length(tmp_path) is None
