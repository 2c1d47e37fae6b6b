r"""Values with their names: `x = 3`, `AB = 5`, `f(2) = 5`, `(x, y) = (3, 2)` say what `3`, `5`, `5` and `(3, 2)` say.

A bare value answers a named gold and the other way round; two different names are two different answers. The right
side alone answers an equation that is solved for one name: `-2x` for `y = -2x`, as math-verify and Hendrycks' grader
have it, because the question names y. An equation that is not solved for a name (`2x + 3y = 6`) wants an equation.
"""

from __future__ import annotations

from collections.abc import Iterable

from verifiers._math.tree import Node, variables

SIDES_OF_FIGURES = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
COORDINATES = "xyzw"
OF_ANGLES = frozenset("sin cos tan cot sec csc".split())
Assignment = dict[Node, Node]


def is_name(node: Node) -> bool:
    r"""x, x_1, f(2), P(A|B), |z|, AB, m\angle A, \Delta x, \cos A, dy/dx or words such as Area."""
    if node.op in ("var", "text", "apply"):
        return True
    if node.op == "abs":
        return is_name(node.args[0])
    if node.op == "call":
        return node.value in OF_ANGLES and node.args[0].op == "var"
    if node.op == "div":
        return all(_is_differential(arg) for arg in node.args)
    if node.op != "mul" or not all(arg.op in ("var", "text") for arg in node.args):
        return False
    if any(arg.op == "text" or str(arg.value).startswith(("angle ", "triangle ", "overline ")) for arg in node.args):
        return True
    letters = [str(arg.value) for arg in node.args]
    figure = len(letters) <= 4 and len(set(letters)) == len(letters) and SIDES_OF_FIGURES.issuperset(letters)
    return figure or (letters[0] == "Delta" and len(letters) == 2)


def _is_differential(node: Node) -> bool:
    return node.op == "mul" and len(node.args) == 2 and node.args[0] == Node("var", (), "d") and is_name(node.args[1])


def value_of(node: Node) -> tuple[Node, Node] | None:
    r"""(name, value) of `x = 3`, `3 = x` or `x \in S`."""
    if node.op != "rel" or node.value not in (("=",), ("in",)):
        return None
    left, right = node.args
    if is_name(left) and (node.value == ("in",) or not is_name(right) or (left.op == "apply" and right.op == "var")):
        return left, right  # f(x) = x, too, is solved for f(x)
    return (right, left) if is_name(right) and node.value == ("=",) and not is_name(left) else None


def assignment(node: Node) -> Assignment | None:
    """The values by name of `(x, y) = (3, 2)` or of `x = 3, y = 2`, in the order of the coordinates."""
    if node.op == "rel" and node.value == ("=",):
        names, values = node.args
        if names.op == values.op == "group" and len(names.args) == len(values.args) > 1:
            named = dict(zip(names.args, values.args, strict=True))
            return named if len(named) == len(names.args) and all(map(is_name, named)) else None
        return None
    if node.op != "list" or len(node.args) < 2:
        return None
    pairs = [value_of(arg) if arg.op == "rel" and arg.value == ("=",) else None for arg in node.args]
    named = {pair[0]: pair[1] for pair in pairs if pair}
    if len(named) != len(node.args):
        return None
    if all(_coordinate(name) is not None for name in named):
        return dict(sorted(named.items(), key=lambda pair: str(_coordinate(pair[0]))))
    return named


def _coordinate(name: Node) -> str | None:
    """x < y < z < w, and x_1 < x_2; None for other names, which keep the order they are given in."""
    letter, _, index = str(name.value).partition("_")
    if name.op != "var" or letter not in COORDINATES or not (index.isdigit() or not index):
        return None
    return f"{COORDINATES.index(letter)} {int(index or 0):06d}"


def without_names(gold: Node, answer: Node) -> tuple[Node, Node]:
    """Both without the names that say nothing more. `y = 3` is not `x = 3`: those keep their names."""
    of_gold, of_answer = assignment(gold), assignment(answer)
    if of_gold and of_answer:
        if of_gold.keys() == of_answer.keys():
            return _group(of_gold.values()), _group(of_answer[name] for name in of_gold)
        return gold, answer
    if of_answer and gold.op == "group":
        return gold, _group(of_answer.values())
    if of_gold and answer.op == "group":
        return _group(of_gold.values()), answer
    if points := _named_points(gold, answer):
        return points
    return _without_name(gold, answer)


def _group(values: Iterable[Node]) -> Node:
    return Node("group", tuple(values), "()")


def _named_points(gold: Node, answer: Node) -> tuple[Node, Node] | None:
    """`P(3, 4)` is the point `(3, 4)`."""
    for one, other in ((gold, answer), (answer, gold)):
        if one.op == "apply" and len(one.args) > 1 and other.op == "group" and one.value in SIDES_OF_FIGURES:
            pair = (_group(one.args), other)
            return pair if one is gold else (pair[1], pair[0])
    return None


def _without_name(gold: Node, answer: Node) -> tuple[Node, Node]:
    if answer.op == "list" and gold.op in ("list", "set"):
        named = [value_of(arg) for arg in answer.args]
        if not any(value_of(arg) for arg in gold.args) and all(named):
            names = {str(pair[0].value).partition("_")[0] for pair in named if pair}
            if len(names) == 1:
                return gold, Node("list", tuple(pair[1] for pair in named if pair))
    of_gold, of_answer = value_of(gold), value_of(answer)
    if of_gold and of_answer:
        if of_gold[0] == of_answer[0] and not variables(of_gold[1]):
            return of_gold[1], of_answer[1]
        if {_is_y(of_gold[0]), _is_y(of_answer[0])} == {True, False} and all(
            map(_is_function_of, (of_gold, of_answer))
        ):
            return of_gold[1], of_answer[1]
    elif of_answer and gold.op != "rel":
        return gold, of_answer[1]
    elif of_gold and answer.op != "rel" and (gold.value == ("in",) or is_solved(gold)):
        return of_gold[1], answer
    return gold, answer


def _is_y(name: Node) -> bool:
    return name == Node("var", (), "y")


def _is_function_of(named: tuple[Node, Node]) -> bool:
    """y = ..., or f(x) = ...: two names of one curve."""
    name, value = named
    if _is_y(name):
        return "y" not in variables(value)
    return name.op == "apply" and len(name.args) == 1 and name.args[0].op == "var"


def is_solved(node: Node) -> bool:
    """Whether an equation is solved for its name: the name does not stand on the other side."""
    named = value_of(node)
    return named is not None and not (variables(named[0]) & variables(named[1]) and named[0].op == "var")
