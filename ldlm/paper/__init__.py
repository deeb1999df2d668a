"""The tables and figures of the paper as data: what each row changes, what the paper prints, and how it is made again.

A row is a file in `rows/`, a table or figure one in `exhibits/`. `plan` turns rows into commands of `ldlm`, and
`results` turns what these leave into the table, with the paper's figures beside ours.
"""
