"""`python -m streamq`: the command line."""

from streamq.cli import main

if __name__ == "__main__":
    main()
