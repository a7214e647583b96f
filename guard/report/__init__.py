"""Reports: a table in the terminal, JSON, CSV, Markdown, and a page to look at."""
