"""Tools: how a model is told of them, held to them, and how its calls are read out of its text. Pure.

Each family of models writes a call in its own syntax (``syntax``), which its chat template gives away. ``history`` turns
messages into what that template reads, ``calls`` makes the grammar of an answer that has to call, ``reading`` finds the calls
in what the model says, token by token. Knows nothing of HTTP and of dialects.
"""
