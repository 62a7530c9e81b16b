"""A frame rule and its text say the same."""

import subprocess
import sys

import pytest

from virnucpro.config.frame_rule import OPEN_RULE, FrameRule
from virnucpro.errors import UsageError


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("open", OPEN_RULE),
        ("open:code=11", FrameRule("open", genetic_code=11)),
        ("stretches:2:20", FrameRule("stretches")),
        ("stretches:6:15", FrameRule("stretches", 6, 15)),
        ("stretches:2:20:code=4", FrameRule("stretches", genetic_code=4)),
        ("stretches:1:1:code=25", FrameRule("stretches", 1, 1, 25)),
    ],
)
def test_a_rule_and_its_text_say_the_same(text: str, rule: FrameRule) -> None:
    assert FrameRule.parse(text) == rule
    assert str(rule) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("stretches", "stretches:2:20"),
        ("stretches:code=4", "stretches:2:20:code=4"),
        ("open:code=1", "open"),
        ("stretches:02:20:code=1", "stretches:2:20"),
    ],
)
def test_every_rule_has_one_text(text: str, written: str) -> None:
    assert str(FrameRule.parse(text)) == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "frame rule ''"),
        ("Open", "frame rule 'Open': wanted open, stretches or stretches:N:M"),
        ("open:2:20", "frame rule 'open:2:20'"),
        ("open\n", "frame rule"),
        ("stretches:2", "frame rule 'stretches:2'"),
        ("stretches:-1:20", "frame rule 'stretches:-1:20'"),
        ("stretches:2:2٠", "frame rule 'stretches:2:2٠'"),
        ("stretches:0:20", "stretches:0:20: wanted two whole numbers, at least 1"),
        ("stretches:2:0", "stretches:2:0: wanted two whole numbers, at least 1"),
        ("stretches:2:99999999999", "stretches:2:99999999999: wanted two whole numbers"),
        ("open:code=7", "genetic code 7: .* wanted one of 1, 2, 3, 4, 5, 6, 9, 10, 11"),
        ("stretches:code=0", "genetic code 0: "),
    ],
)
def test_what_is_no_rule_is_explained(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FrameRule.parse(text)


def test_open_has_no_numbers() -> None:
    with pytest.raises(UsageError, match="these numbers belong to the rule stretches"):
        FrameRule("open", max_stretches=4)


def test_biopython_is_loaded_for_other_codes_only() -> None:
    program = (
        "import sys; from virnucpro.config.frame_rule import FrameRule; "
        "FrameRule.parse('stretches'); print('Bio' in sys.modules); "
        "FrameRule.parse('stretches:code=4'); print('Bio' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "True"]
