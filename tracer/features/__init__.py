"""What features stand for."""
