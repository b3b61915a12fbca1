"""Reference pages: one a wing and one a file of it, which Sphinx's autodoc fills from signatures and docstrings.

Docstrings of this package are plain text, not reStructuredText: `restructured` hands them to Sphinx so that no
character is markup, formulas and columns keep their layout, and names in backticks lead to what they name.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

from dmsmil.jobs.files import InputError
from dmsmil.jobs.text import as_written

CONSTANT = re.compile(r"^[A-Z]\w*(?:, [A-Z]\w*)* = .*\S  # .+$", re.M)  # with what it means beside it
LAID_OUT = re.compile(r"^ |\S {3,}\S", re.M)  # a formula, or columns
NAME = re.compile(r"`([A-Za-z_][\w.]*)`")
SETTINGS = {  # of Sphinx, for these pages
    "default_role": "py:obj",
    "suppress_warnings": ["ref.python"],
    "add_module_names": False,
    "autodoc_inherit_docstrings": False,
    "autodoc_member_order": "bysource",
    "autodoc_preserve_defaults": True,
    "autodoc_typehints_format": "short",
    "python_use_unqualified_type_names": True,
    "python_maximum_signature_line_length": 84,
    "toc_object_entries_show_parents": "hide",
    "html_domain_indices": False,
}


def wings(package: Path) -> dict[str, str]:
    """The wings of a package and the question that each answers: `{"dmsmil.cohorts": "Which slides? (notebook 00)"}`.

    package: its folder. Those that a notebook belongs to stand first, in the order of the notebooks.
    """
    found = {path.parent.name: _first(_parsed(path)) for path in sorted(package.glob("*/__init__.py"))}
    order = sorted(found, key=lambda wing: re.findall(r"notebooks? (\d+)", found[wing]) or ["last"])
    return {f"{package.name}.{wing}": found[wing] for wing in order}


def pages(package: Path) -> dict[str, str]:
    """The pages, name -> Markdown: one a wing, for a table of contents, which leads to one a file of it.

    package: its folder. Files are read here, and imported by Sphinx. Raises InputError for a file that is no Python.
    """
    found = {}
    for wing in wings(package):
        inside = sorted((package / wing.rpartition(".")[2]).rglob("*.py"))
        files = {module_name(path.relative_to(package.parent).as_posix()): path for path in inside}
        for name, path in files.items():
            above = f"---\norphan: true\n---\n# {name}\n\nReference / [{wing}]({wing}.md)"
            found[name] = _page(name, path, above if name != wing else f"# {name}")
        said = [
            f"- [{name}]({name}.md)\n\n  {as_written(_first(_parsed(path)))}\n"
            for name, path in files.items()
            if name != wing
        ]
        found[wing] += "\n".join(["", "````{container} reading", *said, "````", ""])
    return found


def module_name(path: str) -> str:
    """A file as the module it is: `dmsmil/models/clam.py` is `dmsmil.models.clam`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _page(name: str, path: Path, above: str) -> str:
    public = [
        node.name
        for node in _parsed(path).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    members = f"   :members: {', '.join(public)}\n   :undoc-members:\n" if public else ""
    text = f"{above}\n\n```{{eval-rst}}\n.. automodule:: {name}\n{members}```\n"
    if constants := CONSTANT.findall(path.read_text(encoding="utf-8")):
        text += "\n".join(["\n## Constants\n\n```{code-block} python\n:class: signature\n", *constants, "```\n"])
    return text


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise InputError(f"{path.name} is no Python, line {error.lineno}: mend that file of the package") from error


def _first(tree: ast.Module) -> str:
    """The first paragraph of a module's docstring on one line."""
    return " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())


# ------------------------------------------------------------------------------------------------ for Sphinx


def setup(app) -> None:
    """What Sphinx calls of an extension."""
    app.connect("autodoc-skip-member", skipped)
    app.connect("autodoc-process-signature", shortened)
    app.connect("autodoc-process-docstring", restructured)


def skipped(app, what: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Attributes that hold a value are left out: fields of a dataclass stand in its signature."""
    return None if callable(value) or isinstance(value, property) else True


def shortened(
    app, what: str, name: str, value: object, options: object, signature: str | None, result: str | None
) -> tuple[str, str | None] | None:
    """The signature of a dataclass: the default that a factory makes is no Python, and is shown as dots."""
    return (signature.replace("<factory>", "..."), result) if signature else None


def restructured(app, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Change the lines of a docstring to reStructuredText that means the same; parameters are code, not links."""
    try:
        parameters = set(inspect.signature(value).parameters)
    except (TypeError, ValueError):  # of what cannot be called
        parameters = set()
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines[:] = "\n\n".join([*(_block(block, parameters) for block in blocks), ""]).splitlines()


def _block(block: str, parameters: set[str]) -> str:
    """A paragraph, a list, or what is laid out."""
    if LAID_OUT.search(block) and not block.startswith("- "):
        return ".. code-block:: text\n\n" + textwrap.indent(textwrap.dedent(block), "   ")
    text = "".join(
        _ticked(part, parameters) if part.startswith("`") else _escaped(part) for part in re.split(r"(`[^`]+`)", block)
    )
    return re.sub(r"^\\- ", "- ", text, flags=re.M) if block.startswith("- ") else text


def _ticked(part: str, parameters: set[str]) -> str:
    """What stands in backticks: a name as a link if Sphinx knows it, anything else as code."""
    if NAME.fullmatch(part) and part.strip("`") not in parameters:
        return f"\\ `.{part[1:]}\\ "
    return f"\\ `{part}`\\ "


def _escaped(text: str) -> str:
    """A text of which no character is markup in reStructuredText."""
    return re.sub(r"([^\w\s]|_)", r"\\\1", text)
