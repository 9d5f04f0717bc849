"""A table of clients: the accuracy of the model on each client's own held-out rows, the worst first."""

import json

from fedjax8 import train

train.main(["train", "--workdir=clients", "--config.rounds=20", "--client_accuracy=50"])
with open("clients/clients.json") as file:
    found = json.load(file)
for accuracy, rows, client in sorted(zip(found["accuracy"], found["counts"], found["clients"], strict=True)):
    print(f"client {client:2}  {rows:3} rows  {accuracy:.3f}")
assert len(found["clients"]) == len(found["accuracy"]) > 40 and sum(found["counts"]) <= 359
