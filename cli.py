"""The command line of a checkout: `python cli.py trace ...`; an installation has `tracer`."""

from tracer.commands import run

if __name__ == "__main__":
    run()
