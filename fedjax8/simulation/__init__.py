"""Running rounds: the link with its byte ledger, the compiled round, evaluation, checkpoints, writers."""
