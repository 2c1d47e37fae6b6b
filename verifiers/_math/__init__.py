"""Reading and comparing mathematical answers, without eval, sympy or recursion without end.

text.py      the final answer of a completion; LaTeX and unicode to one spelling
lexer.py     that spelling -> tokens
cursor.py    where in the tokens a reader stands, and its limits on depth and size
parse.py     tokens -> a tree (tree.py)
units.py     units, and the words that are none
number.py    a tree -> its value: exact rational where it can be, else complex floats of enough digits
region.py    intervals, inequalities and unions on the real line
compare.py   whether an answer's tree says what the gold's tree says
fallback.py  math-verify, in a process that is killed, for golds outside the grammar
"""
