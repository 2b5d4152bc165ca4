"""Makes `python -m purejaxdqn` the command `purejaxdqn`."""

from purejaxdqn.cli.main import main

if __name__ == "__main__":
    main()
