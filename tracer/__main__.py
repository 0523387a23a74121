"""`python -m tracer`: the command line."""

from tracer.commands import main

if __name__ == "__main__":
    main()
