"""The commands: a file each, with a function `run(argv) -> exit code`."""
