"""The report of a run: what it holds, and how it is shown: as a page, as JSON, as JUnit XML, and while it runs."""
