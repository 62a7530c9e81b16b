"""Pages: self-contained HTML files that show a run, several runs, or a report of figures."""
