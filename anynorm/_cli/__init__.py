"""What `python -m anynorm` is made of. The library itself never imports it, and it uses the library's public names."""


class UsageError(Exception):
    """The command cannot run as asked; the message says what to do instead. Shown without a traceback, exit code 2."""
