"""The exercises of "Bring your own program": stubs wait, right answers of several styles pass, wrong ones are named."""

import exercise_checks as checks
import pytest
import torch
import torch.distributed as dist

from book.exercises import guest as tasks

EVERY = [tasks.sends_most, tasks.stops_together, tasks.loss_for_ddp]


def counted(devices):
    """By the formula, from the bytes of one device and step."""
    gradients, logits = 4 * (32 * 100 + 100), 4 * 8 * 100
    sent = {"B": 2 * (devices - 1) / devices * gradients, "C": (devices - 1) * logits}
    return max(sent, key=sent.get)


def agrees_first(losses):
    """All losses at once, before the loop."""
    losses = losses / dist.get_world_size()
    dist.all_reduce(losses)
    rises = (losses[1:] > losses[:-1]).nonzero()
    return int(rises[0]) + 1 if len(rises) else len(losses)


def gathers(losses):
    """The losses of all devices, on all devices."""
    everyones = [torch.empty_like(losses) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, losses)
    mean = torch.stack(everyones).mean(0).tolist()
    return next((i for i in range(1, len(mean)) if mean[i] > mean[i - 1]), len(mean))


def votes(losses):
    """Stops when anyone wants to: compares with its own loss before."""
    before = float("inf")
    for epoch, loss in enumerate(losses):
        stop = torch.tensor(float(loss > before))
        dist.all_reduce(stop)
        if stop:
            return epoch
        before = loss
    return len(losses)


def in_place(op):
    """The stub with one line more: what each device was given is overwritten."""

    def program(losses):
        before = float("inf")
        for epoch, loss in enumerate(losses):
            dist.broadcast(loss, src=0) if op is None else dist.all_reduce(loss, op=op)
            if loss > before:
                return epoch
            dist.barrier()
            before = loss
        return len(losses)

    return program


def one_factor(losses):
    """P / n first: a float32 number, rounded."""
    samples = torch.tensor(float(len(losses)))
    dist.all_reduce(samples)
    return losses.sum() * (dist.get_world_size() / samples)


def of_the_mean(losses):
    samples = torch.tensor(float(len(losses)))
    dist.all_reduce(samples)
    return losses.mean() * (len(losses) * dist.get_world_size() / samples)


def of_one_element(losses):
    """The number of samples as a tensor (1,): the loss becomes one of float32."""
    samples = torch.tensor([float(len(losses))])
    dist.all_reduce(samples)
    return losses.sum() / samples * dist.get_world_size()


def divided_early(losses):
    """A slip in another order: other last digits."""
    samples = torch.tensor(float(len(losses)))
    dist.all_reduce(samples)
    return (losses / samples).sum()


def forgets_return(losses):
    losses.mean()


def nearly_right(losses):
    """Right, but for one part in 10,000."""
    return tasks.loss_for_ddp.solution(losses) * (1 + 1e-4)


def weighted(losses):
    """The own mean, weighted with the own share of the samples."""
    samples = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    samples[dist.get_rank()] = len(losses)
    dist.all_reduce(samples)
    return losses.mean() * len(losses) / samples.float().mean()


test_right_answers_pass = checks.right_answers_pass(
    EVERY,
    [
        (tasks.sends_most, counted), (tasks.stops_together, agrees_first), (tasks.stops_together, gathers),
        (tasks.stops_together, in_place(dist.ReduceOp.AVG)), (tasks.loss_for_ddp, weighted),
        (tasks.loss_for_ddp, one_factor), (tasks.loss_for_ddp, of_the_mean), (tasks.loss_for_ddp, of_one_element),
    ],
    {"sends_most": "on 2, 4, 8, 9 and 16", "stops_together": "all stop together", "loss_for_ddp": "even and uneven"},
)  # fmt: skip
test_the_stub_waits = checks.stubs_wait([tasks.sends_most, tasks.loss_for_ddp])
test_the_stub_to_be_mended_hangs = checks.stubs_to_be_mended_are_wrong(
    [(tasks.stops_together, ("hangs for 2 devices", "DeadlockError", "1  barrier() in group (0, 1)"))], dist=dist
)
test_wrong_answers_are_rejected = checks.wrong_answers_are_rejected(
    [
        (tasks.sends_most, lambda devices: "B", "What grows with the number of devices?"),
        (tasks.sends_most, lambda devices: "C", "on few devices the logits of all are little"),
        (tasks.sends_most, lambda devices: "A", "once, before the loop"),
        (tasks.sends_most, lambda devices: "D", "a loss is one number"),
        (tasks.sends_most, lambda devices: "B" if devices < 8 else "C", "Put 8 into both formulas"),
        (tasks.sends_most, lambda devices: "B" if devices < 10 else "C", "Put 9 into both formulas"),
        (tasks.sends_most, lambda devices: "E", "expected one of the letters A, B, C, D, given 'E'"),
        (tasks.stops_together, tasks.stops_when(tasks.of_rank_0), "rank 0 decides for all"),
        (tasks.stops_together, tasks.stops_when(lambda x: tasks.reduced(x, dist.ReduceOp.MAX)), "the worst device"),
        (tasks.stops_together, tasks.stops_when(lambda x: tasks.reduced(x, dist.ReduceOp.MIN)), "the best device"),
        (tasks.stops_together, in_place(None), "rank 0 decides for all"),
        (tasks.stops_together, in_place(dist.ReduceOp.MAX), "the worst device"),
        (tasks.stops_together, in_place(dist.ReduceOp.MIN), "the best device"),
        (tasks.stops_together, votes, "when the loss of any device rises"),
        (tasks.stops_together, tasks.stops_for(lambda x: tasks.reduced(x, dist.ReduceOp.MIN)), "losses of all devices"),
        (tasks.stops_together, lambda losses: losses.no_such, "fails for 1 device."),
        (tasks.stops_together, lambda losses: str(len(losses)), "asked for is a number of epochs"),
        (tasks.loss_for_ddp, lambda losses: losses.mean(), "who has few samples counts as much"),
        (tasks.loss_for_ddp, lambda losses: losses.sum(), "nobody has divided by their number"),
        (tasks.loss_for_ddp, tasks.knowing_all_samples(lambda x, n, p: x.sum() / n), "so multiply by P"),
        (
            tasks.loss_for_ddp,
            tasks.knowing_all_samples(lambda x, n, p: x.sum() / n / p),
            "where you have divided by it",
        ),
        (tasks.loss_for_ddp, tasks.knowing_all_samples(lambda x, n, p: x.mean() * p / n), "take the sum"),
        (tasks.loss_for_ddp, divided_early, "so multiply by P"),
        (tasks.loss_for_ddp, forgets_return, "is a return missing?"),
        (tasks.loss_for_ddp, lambda losses: losses.mean().item(), "backward() is called on it"),
        (tasks.loss_for_ddp, lambda losses: losses, "a tensor of shape (5,); asked for is a tensor of one number"),
        (tasks.loss_for_ddp, lambda losses: losses.mean().detach(), "not connected with `losses`"),
        (tasks.loss_for_ddp, nearly_right, "off by 0.01%"),
    ]
)


def test_no_answer_changes_the_cases_of_the_next():
    for op in dist.ReduceOp.AVG, dist.ReduceOp.MAX:
        tasks.stops_together.check(in_place(op))
    stub = checks.defined_by(tasks.stops_together.stub, "stops_together", {"dist": dist})
    checks.rejects(tasks.stops_together, stub, "hangs for 2 devices", twice=False)


def test_half_of_a_loss_waits():
    def half(losses):
        losses.sum()
        return ...

    assert tasks.loss_for_ddp.check(half).state == "waiting"


test_pages_show_task_and_hints = checks.pages_show_task_and_hints(EVERY)


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_solutions_can_be_copied(task):
    names = {"torch": torch, "dist": dist}
    assert task.check(checks.defined_by(task.show_solution().text, task.name, names)).passed


def test_what_is_no_function_is_told_so():
    checks.rejects(tasks.stops_together, 3, "cannot be checked.", "given a value of type int")
