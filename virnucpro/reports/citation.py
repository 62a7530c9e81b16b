"""Says how to cite virnucpro and what it builds on, from CITATION.cff."""

from __future__ import annotations

from functools import cache
from typing import Any

from virnucpro import __version__
from virnucpro.backend.places import find_packaged


@cache
def read_citation() -> tuple[str, list[dict[str, Any]]]:
    """Return the request to cite, and the works: virnucpro first."""
    import yaml

    path = find_packaged("CITATION.cff", "CITATION.cff")
    software = yaml.safe_load(path.read_text(encoding="utf-8"))
    # One version for all: CITATION.cff does not repeat it.
    software["version"] = __version__
    return software["message"], [software, *software["references"]]


def format_citation(work: dict[str, Any]) -> str:
    """Return the citation of an entry of CITATION.cff as text."""
    authors = ", ".join(one.get("name") or _short_name(one) for one in work["authors"])
    if "journal" not in work:
        return f"{authors}. {work['title']}. Version {work['version']}."
    issue = f"({work['issue']})" if "issue" in work else ""
    pages = f":{work['start']}-{work['end']}" if "start" in work else ""
    place = f"{work['journal']} {work['volume']}{issue}{pages}"
    doi = f"https://doi.org/{work['doi']}"
    return f"{authors} ({work['year']}). {work['title']}. {place}. {doi}"


def _short_name(person: dict[str, str]) -> str:
    initials = "".join(word[0] for word in person["given-names"].split())
    return f"{person['family-names']} {initials}"


def format_bibtex(work: dict[str, Any]) -> str:
    """Return an entry of CITATION.cff as an entry of BibTeX."""
    # Braces keep BibTeX from taking a group of authors for a first and a last name.
    authors = [
        f"{{{one['name']}}}" if "name" in one else f"{one['family-names']}, {one['given-names']}"
        for one in work["authors"]
    ]
    entry = {"author": " and ".join(authors), "title": f"{{{work['title']}}}"}
    if "journal" in work:
        kind, key = "article", f"{work['authors'][0]['family-names']}{work['year']}".lower()
        names = {"journal": "journal", "volume": "volume", "issue": "number", "year": "year"}
        entry |= {new: work[name] for name, new in names.items() if name in work}
        if "start" in work:
            entry["pages"] = f"{work['start']}--{work['end']}"
        entry["doi"] = work["doi"]
    else:
        kind, key = "misc", "virnucpro"
        entry["note"] = f"Version {work['version']}"
    fields = "".join(f"  {name} = {{{value}}},\n" for name, value in entry.items())
    return f"@{kind}{{{key},\n{fields}}}"
