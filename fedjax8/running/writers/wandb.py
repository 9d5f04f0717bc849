"""Metrics in Weights & Biases. Project, entity and mode (`offline`) are those of its environment variables.

WANDB_PROJECT is `fedjax8` unless set. The run's id is kept in `DIR/wandb_id`, so that a run which goes on goes on there
too; rounds that come again after an interruption are dropped by the service, and are the same.
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax8.errors import UserError
from fedjax8.running.writers import Writer, numbers

IDENTITY = "wandb_id"


def wandb() -> Writer:
    """Writer of a run with the numbers of each line at its round, the config, and at the end the summary."""
    try:
        import wandb as library
    except ImportError as error:
        raise UserError("--writers: wandb needs Weights & Biases: pip install 'fedjax8[wandb]'") from error

    def open_(folder: Path, record: Mapping[str, Any], done: int) -> Any:
        identity = folder / IDENTITY
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:12] + "\n")
        return library.init(
            project=os.environ.get("WANDB_PROJECT", "fedjax8"),
            name="/".join(folder.resolve().parts[-2:]),
            id=identity.read_text().strip(),
            resume="allow",
            dir=str(folder),
            config=dict(record),
            reinit="create_new",  # seeds side by side are several runs of one process
        )

    def write(log: Any, line: Mapping[str, Any]) -> None:
        log.log(numbers(line), step=line["round"])

    def close(log: Any, summary: Mapping[str, Any]) -> None:
        log.summary.update(dict(summary))
        log.finish(exit_code=0 if summary else 1)

    return Writer(open_, write, close)


EXAMPLES = ({},)
