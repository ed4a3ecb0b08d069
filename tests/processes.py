"""Two processes that know each other, for tests of what several do together."""

import os
import socket

import torch
import torch.distributed
import torch.multiprocessing


def ports(count=1):
    """So many free ports of this machine, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


def in_two(task, *arguments, limit=240):
    """task(rank, *arguments) in each of two new processes of one gloo group; both must end well within so many seconds.

    The task is a function of a module, and a queue among the arguments comes from `queue`.
    """
    context = torch.multiprocessing.get_context("spawn")
    (port,) = ports()
    workers = [context.Process(target=_enter, args=(rank, port, task, arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(limit)
        worker.kill()
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


def queue():
    """In which the tasks of `in_two` can answer."""
    return torch.multiprocessing.get_context("spawn").Queue()


def _enter(rank, port, task, arguments):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    task(rank, *arguments)
    torch.distributed.destroy_process_group()
