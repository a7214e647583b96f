"""The evaluation: config -> plan of cells -> executor -> store -> report."""
