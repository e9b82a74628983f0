"""A generator of CLEVR-style data: scenes, pictures, questions and their programs, in the layout of the release.

`generate.generate` writes a data set, `programs.execute` answers a question. Needs NumPy and Pillow only, and knows
nothing of the harness that reads what it writes.
"""
