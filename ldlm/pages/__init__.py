"""Charts, the report of a run, and pages and films of a text on its way from noise."""
