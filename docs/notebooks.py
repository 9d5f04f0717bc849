"""Notebooks as Jupyter's files, for Sphinx."""

from pathlib import Path


def write_notebooks(source: Path, target: Path) -> list[Path]:
    """The `.ipynb` files in `target` of all scripts in cells of `source`; others there are removed.

    A file is written only where it changes, so that pages are built, and cells run, no more often than needed.
    """
    import jupytext

    target.mkdir(exist_ok=True)
    made = []
    for script in sorted(source.glob("*.py")):
        if "# %%" not in (text := script.read_text(encoding="utf-8")):
            continue
        notebook = jupytext.reads(text, fmt="py:percent")
        notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}  # known before it has run
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"  # else they are drawn anew each time
        file, content = target / f"{script.stem}.ipynb", jupytext.writes(notebook, fmt="ipynb")
        if not file.exists() or file.read_text(encoding="utf-8") != content:
            file.write_text(content, encoding="utf-8")
        made.append(file)
    for old in set(target.glob("*.ipynb")) - set(made):
        old.unlink()
    return made
