"""What a round of an algorithm sees: messages down and up, reduced and counted."""
