"""The command line: one module for each subcommand's parser, the options that they share, and the defaults.

These modules import the standard library alone, so that ``--help`` and a mistyped option are answered at once: MXNet
takes seconds to import. What the options do is in the other rooms.
"""

# In the order of the help: each is a module here, with `add_parser`, and one of the package above, with `run`. On the
# command line, an underscore in a name is a hyphen.
SUBCOMMANDS = ("finetune", "groups", "lr_find", "predict", "evaluate", "export")
