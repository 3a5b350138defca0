"""Takes Python source apart into its docstrings and the code without them.

It must never rewrite the code that stays: `ast.unparse` would drop comments and layout, which are
most of what makes source text worth modelling. So docstrings are cut out of the bytes by position.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

_Owner = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Parts(NamedTuple):
    """A module's source without its docstrings, and its docstrings in the order they are written."""

    code: str
    docstrings: tuple[str, ...]


def split_docstrings(source: str) -> Parts | None:
    """Separates a module's docstrings from its code.

    Args:
      source: the text of a Python module, lines ending in "\\n".

    Returns:
      The parts: `code` compiles to what `source` does but for docstrings (a body that was only a
      docstring becomes `pass`), and each docstring is cleaned as `inspect.cleandoc` does. None if
      this interpreter cannot parse the source.
    """
    try:
        # Old modules hold invalid escapes; their warnings are not news to someone who trains on them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    owners = [node for node in _statements(tree) if isinstance(node, _Owner) and _text(node.body, 0) is not None]
    owners.sort(key=lambda node: node.body[0].lineno)
    texts = tuple(inspect.cleandoc(_text(node.body, 0) or "") for node in owners)
    # ast counts columns in UTF-8 bytes and breaks lines at "\n" alone, unlike str.splitlines.
    code = source.encode()
    starts = [0, *(match.end() for match in re.finditer(rb"\n", code))]
    for node in reversed(owners):
        code = _cut(code, starts, node)
    return Parts(code.decode(), texts)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements within it. Most of a module is expressions, where nobody can have a docstring."""
    open_nodes = [node]
    while open_nodes:
        yield (node := open_nodes.pop())
        within = ast.iter_child_nodes(node)
        open_nodes += (child for child in within if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)))


def _text(body: list[ast.stmt], at: int) -> str | None:
    """Returns the statement at `at` if it is a plain string: at 0 that is what Python calls a docstring."""
    match body[at : at + 1]:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return text
    return None


def _cut(code: bytes, starts: list[int], node: _Owner) -> bytes:
    """Returns `code` without the docstring of `node`; bytes before the docstring stay where they are."""
    statement = node.body[0]
    line = starts[statement.lineno - 1]
    begin = line + statement.col_offset
    end = starts[(statement.end_lineno or 0) - 1] + (statement.end_col_offset or 0)
    alone = len(node.body) == 1 and not isinstance(node, ast.Module)
    if alone or _text(node.body, 1) is not None:
        # Nothing else holds the body together, or the string behind would become the docstring.
        return code[:begin] + b"pass" + code[end:]
    while code[end : end + 1] in (b" ", b"\t", b";"):
        end += 1
    if not code[line:begin].strip() and code[end : end + 1] in (b"\n", b""):
        begin, end = line, end + 1
    return code[:begin] + code[end:]
