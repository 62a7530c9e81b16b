"""The frame rule: what of a chunk is embedded, and by which genetic code it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from virnucpro.errors import UsageError, brief

STANDARD_CODE = 1
"""NCBI's number of the standard genetic code."""

_RULE = re.compile(
    r"(?P<kind>open|stretches(?::(?P<max_stretches>\d+):(?P<min_codons>\d+))?)"
    r"(?::code=(?P<genetic_code>\d+))?",
    # Otherwise \d takes the digits of every script, and one rule would have several texts.
    re.ASCII,
)
_DEFAULT_MAX_STRETCHES = 2
_DEFAULT_MIN_CODONS = 20
_NUM_FRAMES = 6
# A larger number in a damaged file would overflow the arithmetic on chunks.
_MAX_NUMBER = 1 << 31


@dataclass(frozen=True)
class FrameRule:
    """Says what of a chunk is embedded. A row of the frame store is an open frame or a stretch.

    `open` takes each whole frame without a stop codon, as the original VirNucPro does. `stretches`
    takes the longest runs of codons without a stop codon and without an ambiguous codon, over the
    six frames of a chunk, and nothing of repetitive chunks (`frames.find_repetitive`). Then the
    whole chunk's DNA is embedded.

    Attributes:
        kind: `open` or `stretches`.
        max_stretches: How many stretches of a chunk are taken at most; only for `stretches`.
        min_codons: Shorter stretches are left out; only for `stretches`.
        genetic_code: NCBI's number of the genetic code.

    Raises:
        UsageError: There is no such rule or genetic code.
    """

    kind: Literal["open", "stretches"]
    max_stretches: int = _DEFAULT_MAX_STRETCHES
    min_codons: int = _DEFAULT_MIN_CODONS
    genetic_code: int = STANDARD_CODE

    def __post_init__(self) -> None:
        numbers = (self.max_stretches, self.min_codons)
        if self.kind not in ("open", "stretches"):
            raise UsageError(f"frame rule {brief(self.kind)}: wanted open or stretches")
        # `str` leaves these numbers out for `open`, so two unequal rules would have one text.
        if self.kind == "open" and numbers != (_DEFAULT_MAX_STRETCHES, _DEFAULT_MIN_CODONS):
            raise UsageError(
                f"frame rule open with {numbers[0]} stretches of at least {numbers[1]} codons: "
                "these numbers belong to the rule stretches"
            )
        # `type`, because True is an int: a rule may come from a file.
        if not all(type(number) is int and 0 < number < _MAX_NUMBER for number in numbers):
            raise UsageError(
                f"frame rule stretches:{numbers[0]}:{numbers[1]}: wanted two whole numbers, at "
                "least 1: how many stretches of a chunk, and how many codons at least"
            )
        if self.genetic_code != STANDARD_CODE:
            _check_genetic_code(self.genetic_code)

    @property
    def max_rows(self) -> int:
        """How many open frames or stretches of a chunk are taken at most."""
        return self.max_stretches if self.kind == "stretches" else _NUM_FRAMES

    @classmethod
    def parse(cls, text: str) -> FrameRule:
        """Return the rule that `str` writes as `text`; `stretches` alone has the default numbers.

        Raises:
            UsageError: The text is no rule.
        """
        match = _RULE.fullmatch(text)
        if match is None:
            raise UsageError(
                f"frame rule {brief(text)}: wanted open, stretches or stretches:N:M (the N longest "
                "stretches of at least M codons), each with a genetic code or without: open:code=11"
            )
        # The group of the kind includes the numbers behind it.
        kind, *_ = match["kind"].split(":")
        numbers = {
            name: int(value)
            for name, value in match.groupdict().items()
            if name != "kind" and value is not None
        }
        return cls(kind, **numbers)  # type: ignore[arg-type]

    def __str__(self) -> str:
        words: list[str] = [self.kind]
        if self.kind == "stretches":
            words += [str(self.max_stretches), str(self.min_codons)]
        if self.genetic_code != STANDARD_CODE:
            words.append(f"code={self.genetic_code}")
        return ":".join(words)


def _check_genetic_code(genetic_code: int) -> None:
    # Not above: nearly all runs use the standard code, and never need Biopython for it.
    from Bio.Data import CodonTable

    tables = CodonTable.unambiguous_dna_by_id
    if type(genetic_code) is not int or genetic_code not in tables:
        known = ", ".join(map(str, sorted(tables)))
        raise UsageError(
            f"genetic code {genetic_code}: NCBI has no such table, or Biopython does not know it; "
            f"wanted one of {known}"
        )


OPEN_RULE = FrameRule("open")
"""The original's rule."""
