"""Rounds as compiled programs: plans, rows, calls, evaluation, client states."""
