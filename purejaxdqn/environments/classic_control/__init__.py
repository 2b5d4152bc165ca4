"""The control tasks that gymnasium calls classic, each a file of its own."""
