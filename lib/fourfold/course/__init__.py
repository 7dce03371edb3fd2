"""What keeps the course true: promotion, pairs, exercises, the workspace."""
