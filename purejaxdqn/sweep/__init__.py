"""Many runs: which there are, how they are laid out, kept on disk, and put together."""
