"""The original system's extension modules by their names, on actnn's operations and on any device.

For scripts that call them directly. actnn's own layers do not: their packed format (docs/format.md) takes its ranges
itself.
"""

from . import backward_func, calc_precision, minimax, quantization

__all__ = ["backward_func", "calc_precision", "minimax", "quantization"]
