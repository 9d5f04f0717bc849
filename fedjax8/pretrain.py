"""Central pre-training of a small model, so that fine-tuning it can be studied: a safetensors file for `pretrained`.

    python -m fedjax8.pretrain --out=runs/pretrained.safetensors --data_dir=DIR
    python -m fedjax8.train --config=fedpeft:lora --data_dir=DIR \\
        --config.adapter.adapters.0.file=runs/pretrained.safetensors

The model is the one that a config has, by default the small vision transformer of the config fedpeft on 28 x 28 pixels;
other sizes by --set. AdamW with warm-up and cosine decay on one data set, or on some of its classes: then fine-tuning
can be done on the others. By default on the letters of FEMNIST, dark on light; MNIST's digits, light on dark, are
other classes of another look. Prints loss and test accuracy after every epoch.
"""

import math
import sys
import time

import numpy as np
from absl import app, flags, logging


def define_flags() -> None:
    """Registers the flags; not done on import, since other command lines have flags of the same names."""
    flags.DEFINE_string("out", None, "File to write.", required=True)
    flags.DEFINE_string("config", "fedpeft", "Whose model is trained, NAME or FILE.py[:argument].")
    flags.DEFINE_multi_string("set", [], "A setting of it that differs, such as model.width=96; may be repeated.")
    flags.DEFINE_string("data", "femnist.npz", "A file in fedjax8/data/sources, or NAME.npz in the folder.")
    flags.DEFINE_string("data_dir", None, "Folder of the data sets.")
    flags.DEFINE_list(
        "classes",
        [str(label) for label in range(10, 62)],
        "Labels to train on, numbered anew in this order; none for all.",
    )
    flags.DEFINE_integer("epochs", 10, "Passes over the data.", lower_bound=1)
    flags.DEFINE_integer("batch", 128, "Images a step.", lower_bound=1)
    flags.DEFINE_float("learning_rate", 2e-3, "Peak of the step size, after a tenth of the steps.")
    flags.DEFINE_float("weight_decay", 0.05, "Of arrays of two dimensions or more.")
    flags.DEFINE_list("augment", [], "crop, flip, both or none.")
    flags.DEFINE_integer("seed", 0, "Of initial parameters, order and augmentation.")


def pretrain(out: str) -> None:
    """Trains the model that the flags name and writes its parameters."""
    import jax
    import optax

    from fedjax8 import trees
    from fedjax8.adapters.inputs import inputs
    from fedjax8.build import build_augment, check_shapes
    from fedjax8.components import SEAMS, build_component
    from fedjax8.config import component, load_config, override
    from fedjax8.engine.evaluation import evaluation
    from fedjax8.executors.chunked import chunked
    from fedjax8.keys import random_key
    from fedjax8.local import masked_mean
    from fedjax8.models.pretrained import check_saving, save_params
    from fedjax8.types import Variables

    check_saving(out)
    config = load_config(flags.FLAGS.config)
    override(config, [one.partition("=")[::2] for one in flags.FLAGS.set])
    data = component("part", of=flags.FLAGS.data, classes=tuple(map(int, flags.FLAGS.classes)))
    dataset = build_component("--data", data, SEAMS["data"], data_dir=flags.FLAGS.data_dir)
    model = build_component("config.model", config.model, SEAMS["model"], num_classes=dataset.num_classes)
    model = inputs(model, dataset.mean, dataset.std, augment=build_augment(tuple(filter(None, flags.FLAGS.augment))))
    check_shapes(model, dataset)

    rows, steps = len(dataset.train["y"]), math.ceil(len(dataset.train["y"]) / flags.FLAGS.batch)
    total = steps * flags.FLAGS.epochs
    rate = optax.warmup_cosine_decay_schedule(0.0, flags.FLAGS.learning_rate, max(total // 10, 1), total)
    matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=flags.FLAGS.weight_decay, mask=matrices)
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
        mask = np.arange(flags.FLAGS.batch) < len(chosen)
        chosen = np.resize(chosen, flags.FLAGS.batch)
        return {name: column[chosen] for name, column in dataset.train.items()} | {"mask": mask.astype(np.float32)}

    key = random_key(flags.FLAGS.seed)
    variables = model.init(key, batch_of(np.arange(min(rows, flags.FLAGS.batch))))
    moments, order = optimizer.init(variables.params), np.random.default_rng(flags.FLAGS.seed)
    evaluate = evaluation(model, dataset.test, chunked(1))
    print(f"{trees.num_bytes(variables.params) // 4:,} parameters, {rows:,} rows, {total:,} steps", flush=True)
    begun, number = time.perf_counter(), 0
    for epoch in range(1, flags.FLAGS.epochs + 1):
        losses = []
        for chosen in np.array_split(order.permutation(rows), range(flags.FLAGS.batch, rows, flags.FLAGS.batch)):
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
        pretrain(flags.FLAGS.out)
    except UserError as error:
        sys.exit(f"pretrain: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
