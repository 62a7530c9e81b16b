"""The settings of `train`: the sequences, the splits, the fit."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from virnucpro.config.finetuning import FineTuningConfig
from virnucpro.config.frame_rule import OPEN_RULE, FrameRule
from virnucpro.config.options import REQUIRED, option
from virnucpro.config.shared import DNA_DIM, PROTEIN_DIM, can_be_read_once, chunk_length_option
from virnucpro.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FineTuningConfig, group="Training"):
    """The settings of `train`."""

    # None of the three is required alone: labelled features stand for both kinds of sequences.
    viral: tuple[str, ...] = option(
        (),
        help="Files of viral sequences; each file is a class.",
        group="Input",
        metavar="FASTA...",
        path="file",
    )
    other: tuple[str, ...] = option(
        (),
        help="Files of other sequences; each file is a class, and all classes count equally.",
        group="Input",
        metavar="FASTA...",
        path="file",
    )
    merged: tuple[str, ...] = option(
        (),
        help="Labelled features of the original VirNucPro, instead of sequences.",
        group="Input",
        metavar="PT...",
        path="file",
    )
    output_path: Path = option(
        REQUIRED,
        "-o",
        "--output",
        help="Classifier to write, for predict -p. The report goes to MODEL_training.",
        details="For my.safetensors, this is the directory my_training. It also keeps finished "
        "work.",
        group="Output",
        metavar="MODEL",
        path="new file",
    )
    chunk_length_bp: int = chunk_length_option(500, within="chunk")
    # Not set here, because --merged decides; `__post_init__` fills it in.
    frame_rule: str = option(
        None,
        "--frames",
        help="Parts of a chunk that the classifier reads: open (whole frames without a stop "
        "codon), or stretches:N:M (the N longest runs of at least M codons without a stop codon).",
        unset="stretches:2:20, and open for --merged",
        details="stretches alone is stretches:2:20. Under this rule, nearly every chunk gets a "
        "score. Add another genetic code by its NCBI number: open:code=11, "
        "stretches:2:20:code=4.",
        metavar="RULE",
    )
    groups: Path | None = option(
        None,
        help="Table with the columns id and group. Records of one group, such as a species, stay "
        "together when records are split.",
        unset="each record alone",
        details="They are also resampled together for the confidence intervals.",
        group="Input",
        metavar="TSV",
        path="file",
    )
    valid_share: float = option(
        0.1,
        help="Share of the frames for the split valid, which decides when to stop, and calibrates "
        "the scores.",
        metavar="SHARE",
        within="share",
    )
    test_share: float = option(
        0.1,
        help="Share of the frames for the split test, which only the report uses.",
        metavar="SHARE",
        within="share",
    )
    epochs: int = option(
        100,
        help="Largest number of epochs (passes over the training frames). Training stops earlier "
        "if it no longer improves.",
        minimum=1,
    )
    seed: int = option(
        0,
        help="Random seed.",
        details="The splits, the choice of chunks, the training and the intervals depend on it.",
        minimum=0,
    )
    dna_dim: int = option(
        DNA_DIM, help="Numbers in a DNA embedding of --merged.", group="Older files", minimum=1
    )
    protein_dim: int = option(
        PROTEIN_DIM,
        help="Numbers in a protein embedding of --merged.",
        group="Older files",
        minimum=1,
    )

    def __post_init__(self) -> None:
        self._set_default("frame_rule", str(OPEN_RULE if self.merged else FrameRule("stretches")))
        super().__post_init__()
        # One text for each rule: `stretches` and `stretches:2:20` must be the same setting.
        self._set("frame_rule", str(FrameRule.parse(self.frame_rule)))
        # The original knew no other rule.
        if self.merged and self.frame_rule != str(OPEN_RULE):
            raise UsageError(
                f"frame rule {self.frame_rule}: labelled features (--merged) are of open frames; "
                "leave the rule out, or give sequences (--viral and --other)"
            )
        if self.merged and self.finetuned:
            raise UsageError(
                f"finetune {self.finetune}: labelled features (--merged) hold no sequences to "
                "learn from; give sequences (--viral and --other)"
            )
        if self.valid_share + self.test_share >= 1:
            raise UsageError(
                f"valid_share {self.valid_share} and test_share {self.test_share}: nothing is left "
                "to train on; wanted less than 1 together"
            )
        sequences = bool(self.viral), bool(self.other)
        if any(sequences) == bool(self.merged) or any(sequences) != all(sequences):
            raise UsageError(
                "wanted either viral and other sequences (--viral and --other), or labelled "
                "features (--merged)"
            )
        path, times = Counter(map(os.path.realpath, self.inputs)).most_common(1)[0]
        if times > 1:
            raise UsageError(
                f"{path}: was given {times} times; give each file once, as viral or as other"
            )
        # The second time, standard input is empty.
        if any(map(can_be_read_once, self.inputs)):
            raise UsageError(
                "training reads its input more than once; give files instead of - and of pipes"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """All input files, viral ones first."""
        # The classes are named in this order, and the records of a frame store find theirs by it.
        return (*self.viral, *self.other, *self.merged)

    @property
    def work_dir(self) -> Path:
        """The directory of the report and of finished work: `head_training` for `head.pth`."""
        return self.output_path.with_name(f"{self.output_path.stem}_training")
