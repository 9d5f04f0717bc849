"""Rounds as compiled programs: who takes part, their rows, the call, evaluation, client states."""
