"""A causal language model on sequences of symbols: perplexity falls below that of guessing one of twelve."""

import fedjax8

text = {"name": "synthetic_text", "num_clients": 20, "vocabulary": 12, "sequence_length": 16, "num_test": 200}
model = {"name": "gpt", "width": 32, "depth": 1, "heads": 2, "max_length": 16}
client = {"optimizer": {"name": "adam", "learning_rate": 0.003}, "epochs": 1}
clients = {"partition": "by_key", "num_clients": 0, "cohort_size": 10, "client": client}
run = fedjax8.experiment(text, model, task="language_model", rounds=10, config="digits_float32", **clients)
print([line["test_perplexity"] for line in run.metrics if "test_perplexity" in line])
assert run.summary["test_perplexity"] < 9
