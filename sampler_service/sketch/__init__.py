"""Stage 1: what is remembered of every example. numpy only."""
