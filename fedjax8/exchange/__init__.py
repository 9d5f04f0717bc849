"""A round's link to its clients: messages down and up, aggregated and counted."""
