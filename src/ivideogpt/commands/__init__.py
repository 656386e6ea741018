"""What each command does: one plain function a verb."""
