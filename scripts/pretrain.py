#!/usr/bin/env python3
"""Central pre-training of a small model, so that fine-tuning it can be studied: a safetensors file for `pretrained`.

    python scripts/pretrain.py --out=runs/pretrained.safetensors --data_dir=DIR
    python -m fedjax8.train --config=configs/fedpeft.py:lora --data_dir=DIR \\
        --config.adapter.adapters.0.file=runs/pretrained.safetensors

The model is the one that a config has, by default the small vision transformer of configs/fedpeft.py on 28 x 28 pixels;
other sizes by --set. AdamW with warm-up and cosine decay on one data set, or on some of its classes: then fine-tuning
can be done on the others. By default on the letters of FEMNIST, dark on light; MNIST's digits, light on dark, are
other classes of another look. Prints loss and test accuracy after every epoch.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging

_OUT = flags.DEFINE_string("out", None, "File to write.", required=True)
_CONFIG = flags.DEFINE_string(
    "config", str(Path(__file__).parents[1] / "configs" / "fedpeft.py"), "Whose model is trained, FILE.py[:argument]."
)
_SET = flags.DEFINE_multi_string("set", [], "A setting of it that differs, such as model.width=96; may be repeated.")
_DATA = flags.DEFINE_string("data", "femnist.npz", "A file in fedjax8/data/sources, or NAME.npz in the folder.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data sets.")
_CLASSES = flags.DEFINE_list(
    "classes", [str(label) for label in range(10, 62)], "Labels to train on, numbered anew in this order; none for all."
)
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Passes over the data.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 128, "Images a step.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak of the step size, after a tenth of the steps.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.05, "Of arrays of two dimensions or more.")
_AUGMENT = flags.DEFINE_list("augment", [], "crop, flip, both or none.")
_SEED = flags.DEFINE_integer("seed", 0, "Of initial parameters, order and augmentation.")


def pretrain(out: str) -> None:
    """Trains the model that the flags name and writes its parameters."""
    import jax
    import optax

    from fedjax8 import trees
    from fedjax8.adapters.inputs import inputs
    from fedjax8.build import SEAMS, build_augment, build_component, check_shapes
    from fedjax8.config import component, load_config, override
    from fedjax8.engine.evaluation import evaluation
    from fedjax8.executors.chunked import chunked
    from fedjax8.local import masked_mean
    from fedjax8.models.pretrained import check_saving, save_params
    from fedjax8.types import Variables

    check_saving(out)
    config = load_config(_CONFIG.value)
    override(config, [one.partition("=")[::2] for one in _SET.value])
    data = component("part", of=_DATA.value, classes=tuple(map(int, _CLASSES.value)))
    dataset = build_component("--data", data, SEAMS["data"], data_dir=_DATA_DIR.value)
    model = build_component("config.model", config.model, SEAMS["model"], num_classes=dataset.num_classes)
    model = inputs(model, dataset.mean, dataset.std, augment=build_augment(tuple(filter(None, _AUGMENT.value))))
    check_shapes(model, dataset)

    rows, steps = len(dataset.train["y"]), math.ceil(len(dataset.train["y"]) / _BATCH.value)
    total = steps * _EPOCHS.value
    rate = optax.warmup_cosine_decay_schedule(0.0, _LEARNING_RATE.value, max(total // 10, 1), total)
    matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=_WEIGHT_DECAY.value, mask=matrices)
    )

    def loss(params, state, batch, key):
        outputs, new = model.apply(Variables(params, state), batch, key=key, train=True)
        return masked_mean(model.loss(outputs, batch), batch["mask"]), new

    @jax.jit
    def step(variables, moments, batch, key):
        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(*variables[:2], batch, key)
        update, moments = optimizer.update(gradient, moments, variables.params)
        return Variables(optax.apply_updates(variables.params, update), state), moments, value

    def batch_of(chosen):
        """A full batch; the last of an epoch is filled up by rows that do not count."""
        mask = np.arange(_BATCH.value) < len(chosen)
        chosen = np.resize(chosen, _BATCH.value)
        return {name: column[chosen] for name, column in dataset.train.items()} | {"mask": mask.astype(np.float32)}

    key = jax.random.key(_SEED.value)
    variables = model.init(key, batch_of(np.arange(min(rows, _BATCH.value))))
    moments, order = optimizer.init(variables.params), np.random.default_rng(_SEED.value)
    evaluate = evaluation(model, dataset.test, chunked(1))
    print(f"{trees.num_bytes(variables.params) // 4:,} parameters, {rows:,} rows, {total:,} steps", flush=True)
    begun, number = time.perf_counter(), 0
    for epoch in range(1, _EPOCHS.value + 1):
        losses = []
        for chosen in np.array_split(order.permutation(rows), range(_BATCH.value, rows, _BATCH.value)):
            number += 1
            variables, moments, value = step(variables, moments, batch_of(chosen), jax.random.fold_in(key, number))
            losses.append(value)
        metrics = evaluate(variables)
        print(
            f"epoch {epoch}: loss {np.mean([float(x) for x in losses]):.4f}, test accuracy "
            f"{metrics['test_accuracy']:.4f}, {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    save_params(out, variables.params)
    print(f"written: {out}")


def main(argv: list[str]) -> None:
    """Pre-trains; the user's mistakes in one line."""
    from fedjax8.errors import UserError

    logging.set_verbosity(logging.WARNING)
    try:
        pretrain(_OUT.value)
    except UserError as error:
        sys.exit(f"pretrain: {error}")


if __name__ == "__main__":
    app.run(main)
