"""The bits that a block's plan gives to each of its steps."""

from typing import Any

Stages = list[dict[str, Any]]


def bits_of_steps(program: dict[str, Any], stages: Stages) -> list[int | None]:
    """Of each step: the bits of the copy of a convolution's input, of a norm's normalized input, of another result,
    of the derivative of a smooth activation.

    None for a step without a copy: a norm whose input is computed again, what keeps a mask or positions.
    """
    made_by = {stage["output"]: stage for stage in stages if "output" in stage}
    copies = {stage.get("output", stage["inputs"][0]): stage["bits"] for stage in stages if _has_copy(stage)}
    readers = {value: program["inputs"] + i for i, step in enumerate(program["steps"]) for value in step["inputs"]}
    found = []
    for value, step in enumerate(program["steps"], program["inputs"]):
        if step["op"] == "convolution":
            found.append(copies.get(step["inputs"][0]))
            continue
        while value not in made_by and value in readers:  # a later step of the same stage makes a result
            value = readers[value]
        found.append(_bits(step["op"], made_by.get(value, {})))
    return found


def _has_copy(stage: dict[str, Any]) -> bool:
    return stage.get("keeps") in ("copy", "sides and copy")


def _bits(op: str, stage: dict[str, Any]) -> int | None:
    if op == "batch_norm" and "normalized_bits" in stage:
        return stage["normalized_bits"]
    if op == "activation" and stage.get("keeps") in ("derivative", "normalized and derivative"):
        return stage.get("derivative_bits", stage.get("bits"))
    if stage.get("keeps") in (None, "mask") or (op == "batch_norm" and "recomputes" in stage):
        return None
    return stage.get("bits")
