"""A progress bar in a notebook: one output that is updated in place, by IPython's own display."""

import html
import sys
from typing import Any


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class NotebookBar:
    """As much of `rich.progress.Progress` as a run uses, drawn by HTML; taken away when it stops."""

    def __init__(self, display: Any = None):
        """`display` is IPython's function, or a stand-in."""
        self._display = display
        self._handle: Any = None
        self._total, self._done, self._note = 1, 0, ""

    def add_task(self, description: str, total: int, completed: int = 0, note: str = "") -> int:
        """The number of the one task there is."""
        self._total, self._done, self._note = total, completed, note
        return 0

    def start(self) -> None:
        """Shows the bar."""
        if self._display is None:
            from IPython.display import display

            self._display = display
        self._handle = self._display(self, display_id=True)

    def update(self, task: int, completed: int | None = None, note: str | None = None) -> None:
        """Moves the bar."""
        self._done = self._done if completed is None else completed
        self._note = self._note if note is None else note
        self._show()

    def stop(self) -> None:
        """Takes the bar away, its rows and result stay."""
        if self._handle is not None:
            self._total = 0
            self._show()
            self._handle = None

    def _show(self) -> None:
        if self._handle is not None:
            self._handle.update(self)

    def _repr_html_(self) -> str:
        if not self._total:
            return ""
        return (
            f"<progress value='{self._done}' max='{self._total}'></progress> "
            f"round {self._done} of {self._total} {html.escape(self._note)}"
        )

    def __repr__(self) -> str:
        return f"round {self._done} of {self._total} {self._note}".strip() if self._total else ""
