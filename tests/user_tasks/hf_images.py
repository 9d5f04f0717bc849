"""Images of a Hugging Face data set, with a camera for each: needs pip install 'fedjax8[hf]'."""

import datasets
import numpy as np
from PIL import Image

import fedjax8

images = [Image.fromarray(np.full((8, 8), 200 if i % 2 else 40, np.uint8)) for i in range(120)]
kinds, cameras = ["owl", "swan"] * 60, [f"camera {i % 5}" for i in range(120)]
birds = datasets.Dataset.from_dict({"image": images, "kind": kinds, "camera": cameras})
birds.save_to_disk("birds")
source = {"name": "hf", "folder": "birds", "x": "image", "y": "kind", "client": "camera"}
run = fedjax8.experiment(source, data_dir=".", partition="by_key", num_clients=0, cohort_size=3, rounds=5)
assert run.experiment.dataset.class_names == ("owl", "swan") and run.summary["test_accuracy"] == 1.0
