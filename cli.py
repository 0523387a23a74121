"""The command line of a checkout: `python cli.py trace ...`; an installation has `tracer`."""

from tracer.commands import main

if __name__ == "__main__":
    main()
