"""The command line. Starts processes and shows results; the only place that sees all rooms. Imports them lazily."""
