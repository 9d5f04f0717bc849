"""The one exception that a user's mistake raises.

Command lines turn it into a single line on stderr and exit status 2; everywhere else it is an ordinary `ValueError`.
"""


class UserError(ValueError):
    """Something the user gave cannot work: says what was given, what is allowed and what to try, in one line."""
