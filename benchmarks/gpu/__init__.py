"""One prepared run on a machine with a GPU: `python -m benchmarks gpu --minutes 8 --output DIR`.

`runner` starts every section in a process of its own, bounded in time; `job` is what a section sees of that; each of
the other modules is a section. With `--device cpu` all of it runs at toy sizes.
"""
