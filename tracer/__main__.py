"""`python -m tracer`: the command line."""

from tracer.commands import run

if __name__ == "__main__":
    run()
