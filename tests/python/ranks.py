"""Processes that form a process group and run functions of the tests."""

import math
import multiprocessing
import pickle
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

ANSWER_WITHIN = 120  # seconds


class AllReduces:
    """Records the number of elements of each all-reduce of ours.

    By the profiler: below a dispatch mode nothing is captured.
    """

    def __init__(self):
        self.sizes = []

    def __enter__(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True)
        self.profile.__enter__()
        return self

    def __exit__(self, *error):
        self.profile.__exit__(*error)
        calls = [
            event
            for event in self.profile.events()
            if event.name == "_c10d_functional::all_reduce"
            and any(child.name == "c10d::allreduce_" for child in event.cpu_children)
        ]  # not those of fake tensors
        self.sizes += [math.prod(call.input_shapes[0]) for call in sorted(calls, key=lambda c: c.time_range.start)]


def serve(connection, backend, rank, world_size, store):
    import actnn  # noqa: F401  # loads the library

    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    try:
        while request := connection.recv():
            function, arguments = request
            try:
                answer = (True, function(device, *arguments))
            except Exception:
                answer = (False, traceback.format_exc())
            connection.send_bytes(pickle.dumps(answer))  # tensors by value
    finally:
        dist.destroy_process_group()


class Ranks:
    """`world_size` processes with a default process group, which meets in the file `store`. For use in `with`."""

    def __init__(self, backend, world_size, store):
        context = multiprocessing.get_context("spawn")
        self.connections, self.processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (theirs, backend, rank, world_size, str(store))
            self.processes.append(context.Process(target=serve, args=arguments, daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.connections.append(ours)

    def __len__(self):
        return len(self.processes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for connection in self.connections:
            try:
                connection.send(None)
            except OSError as error:  # it has ended by itself
                print(error, file=sys.stderr)
        for process in self.processes:
            process.join(30)
            if process.is_alive():
                process.kill()

    def run(self, function, *arguments):
        """What function(device, *arguments) returns on each rank. The function is one of a module's own."""
        for connection in self.connections:
            connection.send((function, arguments))
        answers = []
        for rank, connection in enumerate(self.connections):
            assert connection.poll(ANSWER_WITHIN), f"rank {rank} does not answer"
            answers.append(pickle.loads(connection.recv_bytes()))
        for rank, (is_result, answer) in enumerate(answers):
            assert is_result, f"rank {rank}: {answer}"
        return [answer for _, answer in answers]
