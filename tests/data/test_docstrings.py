import ast
from pathlib import Path

import numpy as np
import pytest

from slicedice.data.docstrings import split_docstrings
from slicedice.data.embedded import Embedded

TRICKY = {
    "plain": '"""Module."""\nimport os\n\ndef f(x):\n    """Doc.\n\n    More.\n    """\n    return x\n',
    "not ascii in front": 'class Ä: "döc — ü"; é = "ü"\nñ = 1\n',
    "not ascii within": "def f():\n    '''漢字\n    😀''' ; return 1\n",
    "one line": 'def f(): "doc"\nx = 1\n',
    "one line with more": 'def f(): "doc"; return 1\n',
    "only docstring": 'class A:\n    """doc"""\n\n    def f(self):\n        """doc"""\n',
    "only a module docstring": '"""doc"""',
    "async and nested": 'async def f():\n    "doc"\n    def g():\n        "in"\n        x = 2\n    x = g\n',
    "semicolon at the end": 'def f():\n    "doc";\n    return 1\n',
    "comment behind": 'def f():\n    "doc"  # noqa\n    return 1\n',
    "two strings": 'def f():\n    "doc"\n    "not a docstring"\n    return 1\n',
    "brackets": 'def f():\n    (\n        "doc"\n        " more"\n    )\n    return 1\n',
    "backslash": 'def f(): \\\n    "doc"\n',
    "form feed": '"doc"\n\x0c\ndef f():\n    "a\x0cb\x1cc"\n    return "\x1c"\n',
    "future": '"doc" # c\nfrom __future__ import annotations\n',
    "future on the same line": '"doc"; from __future__ import annotations\n',
    "strings that stay": 'x = "a"\n"not a docstring"\ndef f():\n    x = 1\n    "nor this"\n    f"{x}"\n',
    "no docstring": 'def f():\n    f"{1}"\n    return b"x"\n',
    "in other statements": (
        "try:\n    x = 1\nexcept E:\n    def f():\n        'doc'\n        return 1\n"
        "match x:\n    case 1:\n        class A:\n            'doc'\n            y = 2\n"
    ),
    "decorated": '@f(\n    1\n)\nclass A:\n\t"tab"\n\tx = 1\n',
}


class _Normal(ast.NodeTransformer):
    """Takes away docstrings, then `pass`, which stands for one where nothing else is left."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            node.body = [statement for statement in node.body if not isinstance(statement, ast.Pass)]
        return super().generic_visit(node)


def _check(source: str) -> None:
    parts = split_docstrings(source)
    assert parts is not None
    compile(parts.code, "stripped", "exec", dont_inherit=True)
    tree = ast.parse(parts.code)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    assert [n for n in ast.walk(tree) if isinstance(n, owners) and ast.get_docstring(n) is not None] == []
    assert ast.dump(_Normal().visit(tree)) == ast.dump(_Normal().visit(ast.parse(source)))


@pytest.mark.parametrize("source", TRICKY.values(), ids=TRICKY.keys())
def test_code_without_docstrings_means_the_same(source: str):
    _check(source)


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_modules_of_the_standard_library_mean_the_same():
    source = Embedded()
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    files: list[Path] = list(np.random.default_rng(seed).choice(source._files, 40, replace=False))  # type: ignore
    for file in files:
        print(file)
        _check(file.read_text("utf-8"))


def test_docstrings_are_cleaned_and_in_the_order_of_the_source():
    source = '"one"\nclass A:\n    "two"\n    def f(self):\n        """three\n          more\n        less\n'
    source += "        \"\"\"\ndef g():\n    'fo' 'ur'\n    x = 'not me'\n"
    parts = split_docstrings(source)
    assert parts is not None
    assert parts.docstrings == ("one", "two", "three\n  more\nless", "four")


def test_layout_and_comments_stay():
    parts = split_docstrings('def f( x ):  # why\n    """doc"""\n    return  x # so\n')
    assert parts is not None
    assert parts.code == "def f( x ):  # why\n    return  x # so\n"


@pytest.mark.parametrize("source", ["print 'two'\n", "x = '\0'\n", "def f(:\n"])
def test_what_does_not_parse_is_none(source: str):
    assert split_docstrings(source) is None
