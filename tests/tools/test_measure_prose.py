"""What counts as prose, as a sentence and as a comment."""

from __future__ import annotations

from pathlib import Path

from tools.measure_prose import count_comments, measure_markdown

PAGE = """\
# A heading of five words

One two three. Four five
[six](a/very/long/target.md)!

- Seven `eight.nine` ten.
- Eleven

| a table | is not prose. |

    neither is code. Not at all, however long the line is.

```sh
nor is this. At all.
```
"""


def test_sentences_and_lines_of_prose_are_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    num_words, num_sentences, max_line = measure_markdown(page)
    assert (num_words, num_sentences) == (3 + 3 + 3 + 1, 4)
    assert max_line == len("- Seven `eight.nine` ten.")


def test_instructions_to_tools_are_no_comments(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('# Why.\na = "# text"  # noqa: E501\nb = 1  # because\n')
    assert count_comments(module) == (2, 3)
