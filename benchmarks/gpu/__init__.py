"""One prepared run on a machine with a GPU: `python -m benchmarks gpu --minutes 8 --output DIR`.

`runner` starts every section in its own process, bounded in time; `job` is a section's side of that; each of the other
modules is a section. With `--device cpu` all of it runs at toy sizes.
"""
