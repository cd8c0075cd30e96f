"""What a test raises where a process would be killed."""


class Killed(Exception):
    pass
