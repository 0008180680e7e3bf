"""What a file of Python says to the interpreter."""

import ast
import functools


@functools.lru_cache(maxsize=1024)
def syntax(source: bytes) -> str:
    """Its syntax tree, without what stands there for readers alone: comments, docstrings, spaces. A SyntaxError or ValueError
    for what is not Python. Kept, for one process may ask for the code of many stages."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [each for each in node.body if not _is_text(each)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
