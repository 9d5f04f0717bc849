"""Metrics as TensorBoard scalars in `DIR/tensorboard`, by tensorboardX: no TensorFlow, no server."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax8.errors import UserError
from fedjax8.running.writers import Writer, numbers

FLUSH_SECONDS = 10
"""Seconds that TensorBoard may be late."""


def tensorboard() -> Writer:
    """Writer for `tensorboard --logdir=DIR`: a scalar for each number of a line, at its round, and the config as text.

    A run that is resumed goes on after its checkpoint: lines of later rounds are purged.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--writers: tensorboard needs tensorboardX: pip install 'fedjax8[tensorboard]'") from error

    def open_(folder: Path, record: Mapping[str, Any], done: int) -> SummaryWriter:
        log = SummaryWriter(
            str(folder / "tensorboard"), purge_step=done + 1 if done else None, flush_secs=FLUSH_SECONDS
        )
        if not done:
            # Four spaces make it code in Markdown, which TensorBoard shows.
            log.add_text("config", "    " + json.dumps(record, indent=2).replace("\n", "\n    "), 0)
        return log

    def write(log: SummaryWriter, line: Mapping[str, Any]) -> None:
        for name, value in numbers(line).items():
            log.add_scalar(name, value, line["round"])

    def close(log: SummaryWriter, summary: Mapping[str, Any]) -> None:
        log.close()

    return Writer(open_, write, close)


EXAMPLES = ({},)
