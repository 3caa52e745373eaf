"""Programs, options and arguments that make no sense are refused with a sentence."""

import json

import pytest
import torch
from block_programs import Program, basic_block, bottleneck

ops = torch.ops.actnn

LINEAR = {"op": "linear", "inputs": [0], "weight": 0}


def with_step(step, results=(1,), **program):
    return {"inputs": 1, "steps": [step], "results": list(results), **program}


def test_the_least_that_a_program_must_have():
    assert json.loads(ops.describe_program(json.dumps({"program": with_step(LINEAR)})))["saves"] == [
        {"value": 0, "form": "copy", "bits": 4, "group_rows": 256}
    ]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ({"inputs": 1}, "not a program: .*steps"),
        ({"inputs": 1, "steps": [], "results": [0]}, "must have steps"),
        (with_step(LINEAR, inputs=0), "must read values in 0..-1"),
        (with_step(LINEAR, results=[]), "must have results"),
        (with_step(LINEAR, results=[2]), "results must be values that steps make, in 1..1, got 2"),
        (with_step(LINEAR, results=[0]), "results must be values that steps make"),
        (with_step(LINEAR, colour=4), 'has no "colour"'),
        (with_step(LINEAR, dtypes=["float32"]), "dtypes must have one entry per value, 2, got 1"),
        (with_step(LINEAR, dtypes=["float32", "float64"]), "a dtype must be float32, .* got .*float64"),
        (with_step({"op": "fold", "inputs": [0]}), 'a step must be one of activation, .* got "fold"'),
        (with_step({**LINEAR, "colour": 4}), 'linear has no field "colour"'),
        (with_step({"op": "linear", "inputs": [0]}), 'linear must have a field "weight"'),
        (with_step({**LINEAR, "weight": None}), 'linear cannot have "weight": null'),
        (with_step({**LINEAR, "weight": "w"}), 'linear cannot have "weight"'),
        (with_step({**LINEAR, "weight": -1}), "must name parameters by places from 0 on, got -1"),
        (with_step({**LINEAR, "inputs": [1]}), "must read values in 0..0, which are there before it, got 1"),
        (with_step({"op": "add", "inputs": [0]}), "add must have 2 inputs"),
        (with_step({"op": "activation", "inputs": [0], "kind": "x"}), "x"),
        (with_step({"op": "dropout", "inputs": [0], "probability": 1.5}), r"probability in \[0, 1\], got 1.5"),
        (with_step({"op": "reshape", "inputs": [0], "sizes": [{"integer": 0}]}), "must name integers in 0..-1, got 0"),
        (with_step({"op": "batch_norm", "inputs": [0], "training": False}), "running"),
    ],
)  # fmt: skip
def test_wrong_programs(program, message):
    for op in (ops.describe_program, lambda text: ops.run_program(text, [torch.randn(3, 3)], [], [], [], [])):
        with pytest.raises(ValueError, match=message):
            op(json.dumps({"program": program}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"bits": 1}}, "bits must be in 2..8, got 1"),
        ({"options": {"group_rows": 100}}, "group_rows must be 64, 128 or 256, got 100"),
        ({"options": {"output_bits": 9}}, "output_bits must be in 2..8"),
        ({"options": {"norm_bits": 9}}, "norm_bits must be in 1..8, got 9"),
        ({"options": {"smooth_bits": 1}}, "smooth_bits must be in 2..8, got 1"),
        ({"options": {"value_bits": {"0": 9}}}, "value_bits must be in 2..8"),
        ({"options": {"value_bits": {"99": 4}}}, "must name values in 0"),
        ({"options": {"value_bits": {"x": 4}}}, "not a program"),
        ({"options": {"exact": [99]}}, "exact must name values in 0"),
        ({"options": {"colour": 4}}, 'options has no "colour"'),
        ({"options": {"bits": "four"}}, "not a program"),
        ({"exports": [2]}, "the copy of value 2 cannot be exported, for the plan saves none"),
        ({"imports": [{"input": 1, "copy": {"kind": "exact", "bits": 4}}]}, "imports must name inputs, got value 1"),
        (
            {"imports": [{"input": 0, "copy": {"kind": "zipped", "bits": 4}}]},
            "must be packed, columns, pass or exact, got",
        ),
        ({"imports": [{"input": 0, "copy": {"kind": "packed", "bits": 11}}]}, "bits of an import must be in 2..8"),
        ({"imports": [{"input": 0, "copy": {"kind": "packed", "bits": 1}}]}, "import must be in 2..8, got 1"),
        (
            {"imports": [{"input": 0, "copy": {"kind": "pass", "bits": 8, "activation": "relu6"}}]},
            "bits of an import must be in 1..7, got 8",
        ),
        (
            {"imports": [{"input": 0, "copy": {"kind": "pass", "bits": 4, "activation": "gelu"}}]},
            "block: activation must be identity, leaky_relu, relu6, silu or hardswish, got gelu",
        ),
        ({"imports": [{"input": 0}]}, "not a program"),
        ({"colour": 4}, 'has no "colour"'),
    ],
)
def test_wrong_options_imports_and_exports(change, message):
    with pytest.raises(ValueError, match=message):
        ops.describe_program(json.dumps({"program": basic_block().json(), **change}))


def test_what_is_no_json():
    with pytest.raises(ValueError, match="not a program"):
        ops.describe_program("{")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["inputs"].append(a["inputs"][0]), "inputs must have 1 entries, got 2"),
        (lambda a: a["parameters"].pop(), "parameters must have 6 entries, got 5"),
        (lambda a: a["buffers"].pop(), "buffers must have 6 entries"),
        (lambda a: a["copies"].append(torch.zeros(1)), "copies must have 0 entries"),
        (lambda a: a["integers"].append(3), "integers must have 0 entries, got 1"),
        (lambda a: a.update(inputs=[a["inputs"][0].double()]), "must be float32, float16 or bfloat16"),
        (lambda a: a.update(inputs=[a["inputs"][0].bfloat16()]), "must have the inputs' dtype"),
        (lambda a: a.update(inputs=[torch.randn(3)]), "4-dimensional input"),
        (lambda a: a.update(inputs=[torch.randn(4, 5, 6, 6)]), "expected input.* to have 8 channels"),
    ],
)
def test_wrong_arguments(change, message):
    program = basic_block()
    arguments = {"inputs": [torch.randn(4, 8, 6, 6)], "parameters": list(program.parameters),
                 "buffers": list(program.buffers), "copies": [], "integers": []}  # fmt: skip
    change(arguments)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        ops.run_program(program.text(), *arguments.values())


def test_a_copy_that_is_not_the_inputs():
    first, second = bottleneck(32), bottleneck(32)
    copy = first.description()["copies"]["10"]["copy"]
    x = torch.randn(4, 32, 6, 6, requires_grad=True)
    between, *copies = first.run(x, exports=[10])
    imports = [{"input": 0, "copy": copy}]
    with pytest.raises(ValueError, match="copies must have 2 entries, got 1"):
        second.run(between, copies=copies[:1], imports=imports)


def test_sums_of_other_sizes_must_say_so():
    program = Program(inputs=2)
    total = program.add(program.batch_norm(program.convolution(0, 8, 8), 8), 1)
    program.activation(total)
    x, gate = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 8, 1, 1)
    with pytest.raises(ValueError, match="residual must have shape"):
        program.run(x, gate)
    program.steps[2]["broadcast"] = True
    assert program.run(x, gate).shape == x.shape


@pytest.mark.parametrize("place", [0, 1])
def test_a_norms_parameters_have_the_shape_of_a_row(place):
    program = Program(inputs=1)
    program.layer_norm(0, 16)
    parameters = list(program.parameters)
    parameters[place] = torch.ones(8)
    with pytest.raises(
        ValueError, match=r"a norm's (weight|bias) must have the shape of a row, \[16\], got shape \[8\]"
    ):
        ops.run_program(program.text(), [torch.randn(2, 3, 16)], parameters, [], [], [])
