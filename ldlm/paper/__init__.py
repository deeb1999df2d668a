"""The tables and figures of the paper as data: what each row changes, what the paper prints, and how to reproduce it.

A row is a file in `rows/`, a table or figure a file in `exhibits/`. `plan` turns rows into `ldlm` commands, and
`results` turns their outputs into the table, with the paper's figures beside ours.
"""
