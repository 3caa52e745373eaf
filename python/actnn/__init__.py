"""Activation-compressed training: layers that keep randomly rounded copies of 1 to 8 bits for backward.

Importing the package loads libactnn.so, whose operations are `torch.ops.actnn`.
"""

from . import _library

_library.load()
