"""Writers of run folders: the files that a run leaves, without the run."""

import json
import math

LINE = {"round": 1, "uplink_bytes": 10, "downlink_bytes": 7}


def write_folder(folder, config=None, lines=(LINE,), summary=None, **document):
    """The three files as given; without `config.json` for None, without `summary.json` for `summary=()`.

    `summary=None` is that of a finished run.
    """
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"config": config, **document}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary != ():
        done = {"rounds": lines[-1]["round"], "finished": True} if summary is None else summary
        (folder / "summary.json").write_text(json.dumps(done))
    return folder


def write_run(
    folder,
    accuracies,
    per_round=(1, 1),
    *,
    seed=0,
    every=1,
    loss=True,
    timed=True,
    finished=True,
    metric="accuracy",
    document=None,
    simulated=None,
    **config,
):
    """A run that sends `per_round` = (up, down) bytes a round and evaluates every `every` rounds.

    A round takes half a second unless it is not `timed`; a run that is `finished` took 9 seconds and saved 4x. The
    values are of the `metric` on test rows, None where a round has none, NaN where it is not finite; `document` goes
    into `config.json` beside the config. With `simulated` seconds a round there is a clock: clients wait half of the
    first round and a quarter of each later one, a tenth of all bytes is wasted, and the largest rate is 1000 B/s times
    the round.
    """
    lines = []
    for r in range(1, every * len(accuracies) + 1):
        line = {"round": r, "uplink_bytes": r * per_round[0], "downlink_bytes": r * per_round[1]}
        line |= {"round_seconds": 0.5} if timed else {}
        if simulated is not None:
            line |= {"simulated_seconds": r * simulated, "waiting_share": 0.5 if r == 1 else 0.25}
            line |= {"wasted_bytes": r * sum(per_round) // 10, "peak_rate": 1000.0 * r}
        if r % every == 0:
            value = accuracies[r // every - 1]
            line |= {} if value is None else {f"test_{metric}": None if math.isnan(value) else value}
            line |= {"test_loss": 1.0 / r} if loss else {}
        lines.append(line)
    done = {"rounds": len(lines), "saving": 4.0, "seconds": 9.0, "finished": True} if finished else ()
    return write_folder(folder, {"seed": seed, **config}, lines, done, **(document or {}))
