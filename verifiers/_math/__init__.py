"""Read and compare mathematical answers, without eval, without sympy, with bounded recursion.

text.py         the final answer of a completion; LaTeX and Unicode in one spelling
statement.py    a final answer stated without a box
lexer.py        that spelling -> tokens
cursor.py       the position of a reader in the tokens, and its limits on depth and size
parse.py        tokens -> a tree (tree.py), with names.py, quantities.py and matrices.py
units.py        units in one canonical form
number.py       a tree -> its value: an exact rational if possible, else complex floats of enough digits
naming.py       values with their names: x = 3, (x, y) = (3, 2)
region.py       intervals, inequalities and unions on the real line
vectors.py      scalar times matrix
equivalence.py  whether an answer's tree means what the gold's tree means
fallback.py     math-verify, in a process with a limit on CPU time, for golds outside the grammar
"""
