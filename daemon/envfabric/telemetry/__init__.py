"""How the daemon tells of itself: metrics and logs. Knows nothing of specs or of ROOT."""
